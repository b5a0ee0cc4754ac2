"""The one error a user sees."""

from __future__ import annotations


class ShmtraceError(Exception):
    """What is wrong, in one line, and what mends it, in another clause of the same line."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)

"""The one error a user sees."""

from __future__ import annotations


class ShmtraceError(Exception):
    """What is wrong and what mends it: one line together. status: what the program ends with."""

    def __init__(self, message: str, remedy: str = "", status: int = 1) -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy
        self.status = status

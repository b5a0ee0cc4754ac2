"""The error that a user sees."""

from __future__ import annotations


class ShmtraceError(Exception):
    """An error that the command line prints as one line, "message: remedy".

    message says what is wrong; remedy, which may be empty, is a command or an instruction that fixes it. status is the
    exit status.
    """

    def __init__(self, message: str, remedy: str = "", status: int = 1) -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy
        self.status = status

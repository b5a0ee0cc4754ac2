"""``shmtrace`` and ``python -m tracer``: the command line, and the end of whatever nothing in it has expected.

It imports next to nothing, so that what goes wrong in importing the rest ends here too.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from tracer.errors import ShmtraceError

TRACEBACK = "SHMTRACE_TRACEBACK"  # 1: all of it is shown
COMMAND_LENGTH, TEXT_LENGTH = 80, 200  # so much of what somebody else may have written is shown
FAULT = f"this is a fault of shmtrace's; please report it, with what {TRACEBACK}=1 shows"
# What is no fault of the program's: the first that fits.
REMEDIES: list[tuple[type[BaseException], str]] = [
    (MemoryError, "let it have more memory, or give it less to look at"),
    (ImportError, "it is not installed whole; `pip install` of it brings what it needs"),
]


def main() -> NoReturn:
    """Run the command line, and end this process: with 70 (EX_SOFTWARE) after an error that nothing has expected."""
    status: Any = None
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # under nohup and the like it stays ignored
            signal.signal(signal.SIGINT, lambda number, _: sys.exit(128 + number))
        sys.unraisablehook = lambda unraisable: _tell(unraisable.exc_value)
        threading.excepthook = lambda thrown: _tell(thrown.exc_value)
        from tracer.cli import main as command_line
        from tracer.cli import streams

        streams.open_all()
        command_line()
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # before there was a handler
        status = 128 + signal.SIGINT
    except ShmtraceError as error:  # before there was a command, or after it
        _say(str(error))
        status = error.status
    except BaseException as error:  # noqa: BLE001 - the last resort
        _tell(error)
        status = os.EX_SOFTWARE
    sys.exit(status)


def _tell(error: BaseException | None) -> None:
    """On one line, what went wrong in doing what, and where; or all of it for whoever has asked for that."""
    if error is None or isinstance(error, (SystemExit, KeyboardInterrupt)):
        return
    if os.environ.get(TRACEBACK) == "1":
        import traceback

        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
        _say("\n".join(_plain(line, len(line)) for line in lines))
        return
    remedy = next((text for kind, text in REMEDIES if isinstance(error, kind)), FAULT)
    what = _plain(" ".join([type(error).__name__, _where(error)]).strip(), TEXT_LENGTH)
    command = _plain(shlex.join(["shmtrace", *sys.argv[1:]]), COMMAND_LENGTH)
    _say(f"`{command}` ended unexpectedly: {what}: {_plain(_text(error), TEXT_LENGTH)}: {remedy}")


def _where(error: BaseException) -> str:
    """The last line of the package that it passed."""
    package = str(Path(__file__).parent)
    found, trace = "", error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename.startswith(package):
            found = f"({trace.tb_frame.f_code.co_filename[len(package) + 1 :]}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


def _text(error: BaseException) -> str:
    try:
        return str(error) or "no more is known"
    except Exception:  # noqa: BLE001 - its own fault
        return "no more is known"


def _plain(text: str, length: int) -> str:
    """On one line, in ASCII, and not longer than that by much."""
    cut = ascii(text[:length])[1:-1]
    return cut if len(text) <= length else f"{cut}..."


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        if sys.stderr:
            print(f"shmtrace: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

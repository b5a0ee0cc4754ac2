"""Writes a unit for systemd that runs `shmtrace record`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from tracer.errors import ShmtraceError
from tracer.proc import bounded
from tracer.record.armed import STATE
from tracer.shipped import shipped

PLACE = Path("/etc/systemd/system/shmtrace.service")
MARK = "# Written by `shmtrace install-service`, which writes it anew unless it is edited: sha256 "
MAX_BYTES = 1 << 16
PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+", re.ASCII)
EDITED = f"`rm {PLACE}` has it written anew; `systemctl edit shmtrace` keeps changes in a file of their own"


def render(arguments: Sequence[str], output_path: Path) -> str:
    """The unit. arguments: of `shmtrace record`. output_path: where its captures go, absolute.

    Raises ShmtraceError where an argument cannot stand in a unit.
    """
    command, environment = _command()
    lines = [f"Environment={_quoted(f'{name}={value}', dollar='$')}" for name, value in environment.items()]
    lines.append("ExecStart=" + " ".join(_quoted(word) for word in [*command, "record", *arguments]))
    directory = output_path.parent
    inside = STATE in (directory, *directory.parents)
    writable = "" if inside else f"ReadWritePaths={_quoted(str(directory), dollar='$')}"
    template = shipped("service/shmtrace.service").read_text()
    text = template.replace("@EXEC@", "\n".join(lines)).replace("@WRITABLE@\n", f"{writable}\n" if writable else "")
    return f"{MARK}{_hash(text)}\n{text}"


def install(text: str, place: Path = PLACE) -> bool:
    """Write the unit, and return whether it was another before. Raises ShmtraceError, also where somebody else's is."""
    try:
        before = _read(place)
        if before is not None and not _is_own(before):
            raise ShmtraceError(f"{place} was not written by this command, or edited since", EDITED)
        _write(place, text)
    except FileNotFoundError:
        raise ShmtraceError(f"there is no {place.parent}", "--print shows the unit, for another host") from None
    except OSError as error:
        raise ShmtraceError(
            f"{place} cannot be written ({error.strerror})", "run it as root (sudo shmtrace …)"
        ) from None
    return before is not None


def _read(place: Path) -> str | None:
    """The unit that is there. Raises ShmtraceError where something else is: a masked unit is a link to /dev/null."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ShmtraceError(f"{place} is no regular file", "`systemctl unmask shmtrace`, or remove it")
    return bounded.read(place, MAX_BYTES).decode(errors="replace")


def _is_own(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return first == MARK + _hash(rest)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(place: Path, text: str) -> None:
    """Write a file that all may read. It has its name once it is whole."""
    unfinished = place.with_name(f".{place.name}.unfinished")
    with contextlib.suppress(FileNotFoundError):
        unfinished.unlink()
    fd = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o644)  # whatever the umask is
        file.write(text)
    unfinished.replace(place)


def _command() -> tuple[list[str], dict[str, str]]:
    """How this shmtrace is run, and the environment that takes."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "__main__.py":  # python -m tracer, in a checkout
        return [sys.executable, "-m", "tracer"], {"PYTHONPATH": str(script.parents[1])}
    return [sys.executable, str(script)], {}


def _quoted(word: str, dollar: str = "$$") -> str:
    """A word of a unit: systemd.syntax(7) and systemd.service(5). dollar: how one stands there.

    Raises ShmtraceError for what cannot be told in a line.
    """
    if not word.isprintable():
        raise ShmtraceError(f"{ascii(word)[:80]} cannot stand in a unit", "leave out what is not printable")
    if PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", dollar)
    return f'"{escaped}"'

"""Bytecode in the kernel: its maps, and its programs as they are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall, host
from tracer.kernel.bpf_syscall import Map
from tracer.kernel.bytecode import Bytecode


class Loaded:
    """All of it is gone once this is closed, and whatever hangs on it. Raises ShmtraceError: the kernel refuses."""

    def __init__(self, bytecode: Bytecode, rooms: Mapping[str, int]) -> None:
        """rooms: how many entries, by bytecode.ROOMS."""
        self._bytecode = bytecode
        self._layouts = {layout.name: layout for layout in bytecode.maps}
        self._maps: dict[str, int] = {}  # their descriptors
        self._programs: list[int] = []
        try:
            for layout in bytecode.maps:
                self._maps[layout.name] = layout.make(rooms)
        except OSError as error:
            self.close()
            raise refusal(error) from None

    def close(self) -> None:
        for descriptor in [*self._maps.values(), *self._programs]:
            os.close(descriptor)

    def fd(self, name: str) -> int:
        """Of a map."""
        return self._maps[name]

    def map(self, name: str) -> Map:
        layout = self._layouts[name]
        return Map(self._maps[name], layout.key_bytes, layout.value_bytes)

    def load(self, name: str, kind: int, function: int = 0, at_exit: bool = False) -> int:
        """The descriptor of a program. kind: as bpf.load, function and at_exit too. Raises ShmtraceError."""
        code = bpf_syscall.renumber_maps(self._bytecode.programs[name], list(self._maps.values()))
        try:
            program = bpf_syscall.load(code, kind, function, at_exit)
        except OSError as error:
            raise refusal(error) from None
        self._programs.append(program)
        return program


def refusal(error: OSError) -> ShmtraceError:
    if host.lockdown() == "confidentiality":
        return ShmtraceError(
            "the kernel is locked down (confidentiality) and refuses BPF",
            "boot with lockdown=integrity; `shmtrace snapshot` works without",
        )
    return ShmtraceError(
        f"BPF refused: {error.strerror}", "`shmtrace doctor` says more, `shmtrace snapshot` works without"
    )

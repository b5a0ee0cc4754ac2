"""Loads bytecode into the kernel: all of its maps, and the programs asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tracer.errors import ShmtraceError
from tracer.kernel import bpf_syscall, host
from tracer.kernel.bpf_syscall import Map
from tracer.kernel.bytecode import Bytecode


class Loaded:
    """Maps and programs in the kernel. close() frees them and detaches the programs.

    Raises ShmtraceError where the kernel refuses.
    """

    def __init__(self, bytecode: Bytecode, rooms: Mapping[str, int]) -> None:
        """rooms: the number of entries of sized maps, by bytecode.ROOMS."""
        self._bytecode = bytecode
        self._layouts = {layout.name: layout for layout in bytecode.maps}
        self._maps: dict[str, int] = {}  # descriptors by name
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
        """The descriptor of a map."""
        return self._maps[name]

    def map(self, name: str) -> Map:
        """A map, to read and write entries of."""
        layout = self._layouts[name]
        return Map(self._maps[name], layout.key_bytes, layout.value_bytes)

    def load(self, name: str, kind: int, function: int = 0, at_exit: bool = False) -> int:
        """Load a program and return its descriptor. kind, function, at_exit: as in bpf_syscall.load().

        Raises ShmtraceError where the kernel refuses.
        """
        code = bpf_syscall.renumber_maps(self._bytecode.programs[name], list(self._maps.values()))
        try:
            program = bpf_syscall.load(code, kind, function, at_exit)
        except OSError as error:
            raise refusal(error) from None
        self._programs.append(program)
        return program


def refusal(error: OSError) -> ShmtraceError:
    """The error to report when bpf(2) has failed."""
    if host.lockdown() == "confidentiality":
        return ShmtraceError(
            "the kernel is locked down (confidentiality) and refuses BPF",
            "boot with lockdown=integrity; `shmtrace snapshot` works without",
        )
    return ShmtraceError(
        f"BPF refused: {error.strerror}", "`shmtrace doctor` says more, `shmtrace snapshot` works without"
    )

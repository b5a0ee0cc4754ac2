"""Compiles bpf/ with bcc. The only module that imports bcc; it runs as a process that does nothing else.

    python -m tracer.kernel.compiler < JSON of [files of bpf/, which of them, defines, flags] > Bytecode.dump()

bcc is the distribution's package (python3-bpfcc). PyPI's ``bcc`` is another project.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tracer.kernel.bpf_syscall import renumber_maps
from tracer.kernel.bytecode import FIRST_ROOM, NO_BCC, ROOMS, Bytecode, MapLayout


def compile_all(files: dict[str, str], sources: list[str], defines: dict[str, int], flags: list[str]) -> Bytecode:
    """Compile some of the files of bpf/ as one text.

    Raises Exception where bcc fails, which writes the reason to stderr. Ends the process where bcc cannot be imported.
    """
    try:
        import bcc
        from bcc.libbcc import lib
    except (ImportError, OSError) as error:  # OSError: libbcc itself is missing
        sys.exit(f"{NO_BCC}{error}")

    rooms = {f"NR_{name.upper()}": FIRST_ROOM + number for number, name in enumerate(ROOMS)}
    cflags = [f"-D{name}={value}" for name, value in {**defines, **rooms}.items()] + [f"-D{flag}" for flag in flags]
    text = "\n".join(f'#line 1 "{name}"\n{files[name]}' for name in sources)
    # for the files they include, and for the stubs that bcc's headers include
    with tempfile.TemporaryDirectory(prefix="shmtrace-") as top:
        for name, content in files.items():
            place = Path(top, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        os.environ["BCC_KERNEL_SOURCE"] = f"{top}/stubs"
        module = bcc.BPF(text=text.encode(), cflags=[*cflags, f"-I{top}", "-Wno-unused-function"]).module

    def ask(function: str, number: int, result: Any = ctypes.c_size_t) -> Any:
        return ctypes.CFUNCTYPE(result, ctypes.c_void_p, ctypes.c_size_t)((function, lib))(module, number)

    maps: list[MapLayout] = []
    places: dict[int, int] = {}  # map index by the descriptor that bcc has for it in this process
    for number in range(lib.bpf_num_tables(ctypes.c_void_p(module))):
        places[ask("bpf_table_fd_id", number, ctypes.c_int)] = number
        sizes = (ask(f"bpf_table_{what}_id", number) for what in ("key_size", "leaf_size", "max_entries"))
        name = ask("bpf_table_name", number, ctypes.c_char_p).decode()
        kind, flags_ = (ask(f"bpf_table_{what}_id", number, ctypes.c_int) for what in ("type", "flags"))
        key_bytes, value_bytes, entries = sizes
        maps.append(MapLayout(name, kind, key_bytes, value_bytes, entries, flags_))
    programs = {}
    for number in range(lib.bpf_num_functions(ctypes.c_void_p(module))):
        name = ask("bpf_function_name", number, ctypes.c_char_p)
        code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        programs[name.decode()] = renumber_maps(code, places)
    return Bytecode(compiler(), maps, programs)


def compiler() -> str:
    """The file name of libbcc, from this process's own mappings."""
    with open("/proc/self/maps") as file:
        return next((line.rsplit("/", 1)[1].strip() for line in file if "/libbcc.so" in line), "?")


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # bcc and LLVM print to stdout
    bytecode = compile_all(*json.load(sys.stdin))
    with out:
        out.write(bytecode.dump())


if __name__ == "__main__":
    main()

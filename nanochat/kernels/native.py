"""Machine code for this processor, compiled when it is first needed, and the threads that run it.

LLVM does it in a second; what it made is kept in the user's cache folder, under the hash of all that went into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import sys
import tempfile
import threading
import weakref
from ctypes import c_int64, c_void_p
from pathlib import Path
from typing import Any

from nanochat.kernels.headway import COMPILING, longer

log = logging.getLogger("nanochat.kernels")

_TEAM_PLACES = 32
_LINE = 64  # bytes
_HASH = 32
_SOURCES = (
    "cpu_code.py", "cpu_team.py", "cpu_matmul.py", "cpu_quantized.py", "cpu_attention.py", "cpu_prompts.py", "cpu_steps.py",
    "native.py",
)  # fmt: skip


def available() -> bool:
    """Whether machine code can be made here: Linux on x86-64 with AVX2 and what came along with it, and llvmlite installed."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        import llvmlite.binding as llvm
    except (ImportError, OSError) as error:
        log.warning("no machine code for the CPU: %s", error)
        return False
    features = llvm.get_host_cpu_features()
    return all(features.get(name) for name in ("avx2", "fma", "f16c"))


class NativeCode:
    """`multiply`, `normalize`, `quantize`, `attend` and `attend_prompts` take a team's memory and int64 arguments, `perform` many of
    these calls (see `cpu_steps`). The rest is `Team`'s.

    Args:
        cache: where compiled code is kept; None compiles anew.
        dots: whether the processor multiplies bfloat16 itself; None finds out. Kept as an attribute.

    Attributes:
        wide: whether 16 lanes are one register.
    """

    def __init__(self, cache: Path | None, *, dots: bool | None = None) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._llvm: Any = llvm
        features = llvm.get_host_cpu_features()
        self.dots = bool(features.get("avx512bf16")) if dots is None else dots
        self.wide = bool(features.get("avx512f"))
        self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine())
        self._engine.add_object_file(self._object(cache))
        self._engine.finalize_object()
        self.multiply = self._function("multiply", 2)
        self.normalize = self._function("normalize", 2)
        self.quantize = self._function("quantize", 2)
        self.attend = self._function("attend", 2)
        self.attend_prompts = self._function("attend_prompts", 2)
        self.perform = self._function("perform", 3)
        self.worker = self._function("worker", 1)
        self.close = self._function("close", 1)

    def _machine(self) -> Any:
        llvm = self._llvm
        return llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
        )

    def _function(self, name: str, parameters: int) -> Any:
        address = self._engine.get_function_address(name)
        return ctypes.CFUNCTYPE(None, *[c_void_p] * parameters)(address)

    def _object(self, cache: Path | None) -> Any:
        """An object file, from the cache where it is there and whole."""
        read = self._llvm.ObjectFileRef.from_data
        if cache is None:
            with longer(COMPILING):
                return read(self._compile())
        kept = cache / f"{self._name()}.o"
        try:
            checked = kept.read_bytes()
        except FileNotFoundError:
            checked = b""
        made = checked[_HASH:]
        if hashlib.sha256(made).digest() != checked[:_HASH]:
            with longer(COMPILING):
                made = self._compile()
            try:
                _keep(hashlib.sha256(made).digest() + made, kept)
            except OSError as error:
                log.warning("compiled code could not be kept in %s: %s", cache, error)
        return read(made)

    def _name(self) -> str:
        """What stands for all that goes into the code."""
        llvm = self._llvm
        parts = [(Path(__file__).parent / name).read_bytes() for name in _SOURCES]
        parts += [repr((llvm.llvm_version_info, self.dots, llvm.get_host_cpu_name())).encode()]
        parts += [llvm.get_host_cpu_features().flatten().encode()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _compile(self) -> bytes:
        llvm, machine = self._llvm, self._machine()
        module = llvm.parse_assembly(source(self.dots))
        builder = llvm.create_pass_builder(machine, llvm.PipelineTuningOptions(speed_level=2))
        builder.getModulePassManager().run(module, builder)
        return machine.emit_object(module)


def source(dots: bool) -> str:
    """LLVM's assembly of everything. `dots`: see `Code`."""
    import llvmlite.ir as ir

    from nanochat.kernels.cpu_attention import build_attention
    from nanochat.kernels.cpu_matmul import build_matmul
    from nanochat.kernels.cpu_prompts import build_prompts
    from nanochat.kernels.cpu_quantized import build_quantize
    from nanochat.kernels.cpu_steps import build_steps
    from nanochat.kernels.cpu_team import build_team

    module = ir.Module("nanochat")
    share = build_team(module)
    norm = build_matmul(module, share, dots)
    build_quantize(module, share)
    place_row = build_attention(module, share, norm, dots)
    build_prompts(module, share, place_row, dots)
    build_steps(module)
    return str(module)


def _keep(made: bytes, file: Path) -> None:
    """Write whole or not at all: another process may read it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "wb") as part:
        part.write(made)
    os.replace(name, file)


class Team:
    """Threads that help with each call, the caller being one of them. They end with the object or the process."""

    def __init__(self, code: NativeCode, threads: int) -> None:
        memory = (c_int64 * (_TEAM_PLACES + _LINE // 8))()
        start = ctypes.addressof(memory)
        self.address = start + -start % _LINE
        helpers = [
            threading.Thread(
                target=_help, args=(code, memory, self.address), name=f"nanochat-cpu-{n}", daemon=True
            )
            for n in range(1, threads)
        ]
        for helper in helpers:
            helper.start()
        self.close = weakref.finalize(self, _end, code, memory, self.address, helpers)


def _help(code: NativeCode, memory: Any, address: int) -> None:
    """A helper's life; it holds on to the code and the memory that it runs in."""
    code.worker(address)


def _end(code: NativeCode, memory: Any, address: int, helpers: list[threading.Thread]) -> None:
    code.close(address)
    for helper in helpers:
        helper.join()

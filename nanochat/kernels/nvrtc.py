"""CUDA C++ compiled at run time, with the compiler that comes with torch, and launched through the driver.

Nothing here needs a CUDA toolkit: libnvrtc is part of torch's CUDA build, libcuda of the driver.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import torch

from nanochat.errors import NanochatError
from nanochat.kernels.headway import COMPILING, longer


class CompilerMissing(NanochatError):
    """No libnvrtc was found, so kernels in CUDA C++ cannot be built; everything has a path without them."""


class DriverError(NanochatError, RuntimeError):
    """The CUDA driver or compiler refused; the text holds its answer. As with torch's, memory may have run out."""


def check(driver: Any, code: int, name: str) -> None:
    """Raise DriverError when the driver's call `name` answered anything but success."""
    if code:
        text = c_char_p()
        driver.cuGetErrorString(code, byref(text))
        raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


class _LaunchAttribute(ctypes.Structure):
    _fields_ = (("id", c_int), ("padding", ctypes.c_char * 4), ("value", ctypes.c_char * 64))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
        ("attributes", POINTER(_LaunchAttribute)), ("num_attributes", c_uint),
    )  # fmt: skip


def _load_compiler() -> ctypes.CDLL:
    """libnvrtc of torch's CUDA version: already loaded, on the loader's path, or in the package that torch needs."""
    major = (torch.version.cuda or "0").split(".")[0]
    folders = [Path(p) / "nvidia" / sub / "lib" for p in sys.path for sub in (f"cu{major}", "cuda_nvrtc")]
    for folder in folders:
        for builtins in folder.glob("libnvrtc-builtins.so*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # libnvrtc looks for it by name alone
    for name in (f"libnvrtc.so.{major}", *(str(f / f"libnvrtc.so.{major}") for f in folders)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompilerMissing(f"libnvrtc.so.{major} was not found: it comes with torch's CUDA build")


def compile_cubin(
    source: str, headers: Mapping[str, str], defines: Mapping[str, int], architecture: str, cache: Path | None
) -> bytes:
    """Machine code of a translation unit; kept in `cache` under the hash of everything that went into it.

    Args:
        headers: what the source may include, by name.
        architecture: "sm_90" and the like.

    Raises:
        CompilerMissing, DriverError: the latter with the compiler's messages.
    """
    options = [
        f"--gpu-architecture={architecture}",
        "-std=c++17",
        "--ftz=true",
        "--prec-div=false",
        "--prec-sqrt=false",
    ]
    options += [f"-D{name}={value}" for name, value in sorted(defines.items())]
    parts = [source, *(f"{k}\0{v}" for k, v in sorted(headers.items())), *options, torch.version.cuda or ""]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    kept = None if cache is None else cache / f"{key}.cubin"
    if kept is not None and kept.is_file():
        return kept.read_bytes()
    with longer(COMPILING):
        code = _compile(source, headers, options)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=kept.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(code)
        os.replace(name, kept)
    return code


def _compile(source: str, headers: Mapping[str, str], options: Sequence[str]) -> bytes:
    library = _load_compiler()

    def strings(values: Sequence[str]) -> ctypes.Array[c_char_p]:
        return (c_char_p * len(values))(*(value.encode() for value in values))

    program = c_void_p()
    names, texts = strings(list(headers)), strings(list(headers.values()))
    failed = library.nvrtcCreateProgram(
        byref(program), source.encode(), b"kernel.cu", len(headers), texts, names
    )
    if failed:
        raise DriverError(f"nvrtcCreateProgram failed with {failed}")
    try:
        failed = library.nvrtcCompileProgram(program, len(options), strings(options))
        size = c_size_t()
        if failed:
            library.nvrtcGetProgramLogSize(program, byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            raise DriverError(f"the kernel did not compile: {log.value.decode(errors='replace')}")
        library.nvrtcGetCUBINSize(program, byref(size))
        code = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        library.nvrtcDestroyProgram(byref(program))


class Kernel:
    """One kernel of a loaded cubin, in torch's context."""

    def __init__(self, code: bytes, name: str, shared_name: str) -> None:
        """Load `code`; the kernel's shared memory is the int that the code holds as `shared_name`."""
        torch.cuda.current_stream()  # makes torch's context current
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._code = code
        self._module, self._function = c_void_p(), c_void_p()
        self._call("cuModuleLoadData", byref(self._module), code)
        self._call("cuModuleGetFunction", byref(self._function), self._module, name.encode())
        at, size, value = c_void_p(), c_size_t(), c_int()
        self._call("cuModuleGetGlobal_v2", byref(at), byref(size), self._module, shared_name.encode())
        self._call("cuMemcpyDtoH_v2", byref(value), at, c_size_t(4))
        self.shared_bytes = value.value
        self._call(
            "cuFuncSetAttribute", self._function, 8, self.shared_bytes
        )  # the most dynamic shared memory

    def launch(self, grid: int, block: int, parameters: ctypes.Structure) -> None:
        """Enqueue on torch's current stream; `parameters` is the kernel's only argument, copied now."""
        config = _LaunchConfig(
            (grid, 1, 1), (block, 1, 1), self.shared_bytes, torch.cuda.current_stream().cuda_stream, None, 0
        )
        arguments = (c_void_p * 1)(ctypes.addressof(parameters))
        self._call("cuLaunchKernelEx", byref(config), self._function, arguments, None)

    def _call(self, name: str, *arguments: object) -> None:
        check(self._driver, getattr(self._driver, name)(*arguments), name)

"""GPU memory that other processes of the same machine map: CUDA IPC, through the driver.

A handle is 64 bytes that mean nothing on another machine or to another user's processes. Nothing has a name, and nothing
is left behind when a process ends.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from ctypes import byref, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p

import torch

from nanochat.kernels.driver import DriverError, check

HANDLE_BYTES = 64
_WHOLE = 2 << 20  # the driver shares whole pages of 2 MiB: nothing else must lie in one
_ENABLE_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = (("bytes", c_ubyte * HANDLE_BYTES),)


class PeerMemory:
    """Zeroed memory of one GPU, and the memories of other processes that were mapped beside it.

    Attributes:
        address: where it begins, in this process.
        handle: what another process needs to map it.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        """Raises DriverError, also where there is no driver."""
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DriverError(f"libcuda was not found: {error}") from error
        self._mapped: list[int] = []
        self.address = 0
        self._device, self._context = c_int(), c_void_p()
        self._call("cuInit", c_uint(0))
        self._call("cuDeviceGet", byref(self._device), c_int(device.index or 0))
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)  # torch's own
        size = -(-size // _WHOLE) * _WHOLE
        try:
            with self._current():
                address, handle = c_uint64(), _Handle()
                self._call("cuMemAlloc_v2", byref(address), c_size_t(size))
                self.address = address.value
                self._call("cuMemsetD8_v2", address, c_ubyte(0), c_size_t(size))
                self._call("cuCtxSynchronize")
                self._call("cuIpcGetMemHandle", byref(handle), address)
                self.handle = bytes(handle.bytes)
        except DriverError:
            self.close()
            raise

    def map(self, handle: bytes) -> int:
        """The address, in this process, of another process's memory, on the same GPU or a peer. Raises DriverError."""
        address = c_uint64()
        with self._current():
            self._call(
                "cuIpcOpenMemHandle_v2", byref(address), _Handle.from_buffer_copy(handle),
                c_uint(_ENABLE_PEER_ACCESS),
            )  # fmt: skip
        self._mapped.append(address.value)
        return address.value

    def unmap(self) -> None:
        """Let go of the other processes' memories; waits for what the GPU still does with them. May be called twice."""
        with self._current():
            while self._mapped:
                self._call("cuIpcCloseMemHandle", c_uint64(self._mapped.pop()))

    def close(self) -> None:
        """Unmap and free; waits for what the GPU still does with it. May be called twice.

        A process that still has it mapped must not use it any more, and should have let go of it.
        """
        if not self._context:
            return
        self.unmap()
        with self._current():
            if self.address:
                self._call("cuMemFree_v2", c_uint64(self.address))
                self.address = 0
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)
        self._context = c_void_p()

    @contextmanager
    def _current(self) -> Generator[None]:
        """The GPU's context is this thread's, whichever thread it is."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        check(self._driver, getattr(self._driver, name)(*arguments), name)

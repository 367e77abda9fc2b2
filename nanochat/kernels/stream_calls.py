"""Calls that queue work on a CUDA stream without letting go of the interpreter's lock.

torch's own calls let go of it each time. Beside a thread that computes in Python each of them then costs the interpreter's
switch interval, which is as long as a step of a small model; a step has four of them. These take microseconds, so
nobody waits long for the lock either. The driver's handles are those of torch's runtime.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_size_t, c_uint64, c_void_p
from typing import Any

import torch

from nanochat.kernels.driver import check

_NOT_READY = 600  # CUDA_ERROR_NOT_READY


class StreamCalls:
    """The driver, as one thread uses it in torch's context. Streams, events and memory are handles and addresses."""

    def __init__(self, driver: Any = None) -> None:
        """`driver`: a loaded libcuda; the machine's own if not given."""
        self._driver = ctypes.PyDLL("libcuda.so.1") if driver is None else driver
        self._launch, self._record = self._driver.cuGraphLaunch, self._driver.cuEventRecord
        self._query = self._driver.cuEventQuery
        self._launch.argtypes = self._record.argtypes = (c_void_p, c_void_p)
        self._query.argtypes = (c_void_p,)
        self._to_device = self._driver.cuMemcpyHtoDAsync_v2
        self._to_device.argtypes = (c_uint64, c_void_p, c_size_t, c_void_p)

    def launch(self, graph: int, stream: int) -> None:
        """Queue an executable graph."""
        self._check(self._launch(graph, stream), "cuGraphLaunch")

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes out of pinned memory, which must stay as it is until the device was there."""
        self._check(self._to_device(device, host, size, stream), "cuMemcpyHtoDAsync")

    def record(self, event: int, stream: int) -> None:
        """Queue an event."""
        self._check(self._record(event, stream), "cuEventRecord")

    def is_done(self, event: int) -> bool:
        """Whether the device has come to the event. Raises DriverError: it never will, since a kernel failed."""
        code: int = self._query(event)
        if code == _NOT_READY:
            return False
        self._check(code, "cuEventQuery")
        return True

    def _check(self, code: int, name: str) -> None:
        check(self._driver, code, name)


class ExecutableGraph:
    """A captured graph, made executable for `StreamCalls.launch`.

    Attributes:
        handle: what is launched.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        """`graph` was captured with `keep_graph`, and is kept with its memory as long as this."""
        self._graph = graph
        driver, handle = ctypes.CDLL("libcuda.so.1"), c_void_p()
        instantiate = driver.cuGraphInstantiateWithFlags
        instantiate.argtypes = (c_void_p, c_void_p, c_uint64)
        code: int = instantiate(byref(handle), graph.raw_cuda_graph(), 0)
        check(driver, code, "cuGraphInstantiate")
        self.handle: int = handle.value or 0
        end = weakref.finalize(self, driver.cuGraphExecDestroy, c_void_p(self.handle))
        end.atexit = False  # the context goes with the process


class Staging:
    """Pinned int32 numbers on their way to the device: a ring, so what was queued long ago is overwritten.

    Attributes:
        most: numbers that may be sent in one step, so that none is overwritten while `steps` are in flight.
    """

    def __init__(self, calls: StreamCalls, steps: int, most: int) -> None:
        self.most = most
        self._calls = calls
        pinned = torch.cuda.is_available()
        self._pinned = torch.empty(steps * most + most, dtype=torch.int32, pin_memory=pinned)
        self._numbers = (ctypes.c_int32 * self._pinned.shape[0]).from_address(self._pinned.data_ptr())
        self._next = 0

    def send(self, numbers: list[int], device: int, stream: int) -> None:
        """Queue numbers to an address on the device."""
        if self._next + len(numbers) > len(self._numbers):
            self._next = 0
        begin, self._next = self._next, self._next + len(numbers)
        self._numbers[begin : self._next] = numbers
        self._calls.copy_to_device(device, self._pinned.data_ptr() + 4 * begin, 4 * len(numbers), stream)

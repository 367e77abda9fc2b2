"""Memory for peers, over a driver that notes what it is asked: no half-shared memory is left, whatever it refuses."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from nanochat.kernels import peer_memory
from nanochat.kernels.driver import DriverError
from nanochat.kernels.peer_memory import HANDLE_BYTES, PeerMemory

GPU = torch.device("cuda", 3)
MIB = 2**20


class Driver:
    """What of libcuda is called; `refuses` is the name of the call that fails."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.asked, self.depth = refuses, list[str](), 0
        self.allocated, self.mapped, self.retained = dict[int, int](), set[int](), 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.refuses:
                return 217
            self.asked.append(name)
            known = vars(Driver).get(f"_{name.removesuffix('_v2')}")
            if known is not None:
                known(self, *arguments)
            return 0

        return call

    def _cuDeviceGet(self, to: Any, ordinal: ctypes.c_int) -> None:
        to._obj.value = ordinal.value

    def _cuDevicePrimaryCtxRetain(self, to: Any, device: ctypes.c_int) -> None:
        assert device.value == GPU.index
        to._obj.value = 77
        self.retained += 1

    def _cuDevicePrimaryCtxRelease(self, device: ctypes.c_int) -> None:
        self.retained -= 1

    def _cuCtxPushCurrent(self, context: ctypes.c_void_p) -> None:
        assert context.value == 77
        self.depth += 1

    def _cuCtxPopCurrent(self, to: Any) -> None:
        self.depth -= 1

    def _cuMemAlloc(self, to: Any, size: ctypes.c_size_t) -> None:
        assert self.depth == 1
        to._obj.value = 5 * MIB
        self.allocated[5 * MIB] = size.value

    def _cuMemFree(self, address: ctypes.c_uint64) -> None:
        assert self.depth == 1 and not self.mapped, "peers' memory goes first"
        del self.allocated[address.value]

    def _cuIpcGetMemHandle(self, to: Any, address: ctypes.c_uint64) -> None:
        assert self.asked[-3:-1] == ["cuMemsetD8_v2", "cuCtxSynchronize"], (
            "a peer may write as soon as it knows"
        )
        ctypes.memmove(ctypes.addressof(to._obj), bytes(range(HANDLE_BYTES)), HANDLE_BYTES)

    def _cuIpcOpenMemHandle(self, to: Any, handle: Any, flags: ctypes.c_uint) -> None:
        assert flags.value == 1
        to._obj.value = (100 + bytes(handle.bytes)[0]) * MIB
        self.mapped.add(to._obj.value)

    def _cuIpcCloseMemHandle(self, address: ctypes.c_uint64) -> None:
        self.mapped.remove(address.value)

    def _cuGetErrorString(self, code: int, to: Any) -> None:
        to._obj.value = b"peer access is not supported"


def with_driver(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_memory.ctypes, "CDLL", lambda name: driver)


def left(driver: Driver) -> tuple[dict[int, int], set[int], int, int]:
    return driver.allocated, driver.mapped, driver.retained, driver.depth


def test_memory_is_zeroed_before_anybody_knows_of_it_and_gone_when_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    with_driver(driver, monkeypatch)
    memory = PeerMemory(3 * MIB, GPU)
    assert driver.allocated == {memory.address: 4 * MIB}, "whole pages: nothing else is shared with it"
    assert memory.handle == bytes(range(HANDLE_BYTES))
    assert memory.map(bytes([9] * HANDLE_BYTES)) == 109 * MIB and driver.mapped == {109 * MIB}
    memory.close()
    memory.close()
    assert left(driver) == ({}, set(), 0, 0)


@pytest.mark.parametrize("refuses", ["cuMemAlloc_v2", "cuMemsetD8_v2", "cuIpcGetMemHandle"])
def test_what_cannot_be_shared_is_not_kept(refuses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(refuses)
    with_driver(driver, monkeypatch)
    with pytest.raises(DriverError, match=rf"{refuses}: peer access is not supported \(217\)"):
        PeerMemory(MIB, GPU)
    assert left(driver) == ({}, set(), 0, 0)


def test_a_peer_that_cannot_be_mapped_leaves_the_rest_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("cuIpcOpenMemHandle_v2")
    with_driver(driver, monkeypatch)
    memory = PeerMemory(MIB, GPU)
    with pytest.raises(DriverError):
        memory.map(bytes(HANDLE_BYTES))
    memory.close()
    assert left(driver) == ({}, set(), 0, 0)


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(peer_memory.ctypes, "CDLL", missing)
    with pytest.raises(DriverError, match="libcuda was not found"):
        PeerMemory(MIB, GPU)

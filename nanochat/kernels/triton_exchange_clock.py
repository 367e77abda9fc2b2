"""What exchanges between ranks take, counted on the device, where a host would have to wait for them."""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

from nanochat.kernels.triton_inbox import clock

_ASKED = 20  # times at most that the device is asked; a wide sum takes as long as a dozen


@triton.jit
def _stamp(began_ptr, spent_ptr, BEGINS: tl.constexpr, TIMES: tl.constexpr, COMPILED: tl.constexpr):
    """Note the time, or count what has passed since, for so many."""
    now = clock(COMPILED)
    if BEGINS:
        tl.store(began_ptr, now)
    else:
        tl.store(spent_ptr, tl.load(spent_ptr) + (now - tl.load(began_ptr)) * TIMES)


class ExchangeClock:
    """One rank's.

    Attributes:
        nanoseconds: int64 [1], on the device: spent in exchanges so far, waiting for slower ranks included; kernels of
            exchanges add to it. Negative while one is under way whose begin and end are different programs' (`time_from`).
    """

    def __init__(self, device: torch.device) -> None:
        self.nanoseconds = torch.zeros(1, dtype=torch.int64, device=device)
        self._began = torch.zeros(1, dtype=torch.int64, device=device)
        self._told = 0
        if device.type == "cuda":  # made now: while a kernel waits, nothing can be allocated
            self._aside = torch.cuda.Stream(device)
            self._spent = torch.zeros(1, dtype=torch.int64, pin_memory=True)

    def seconds(self) -> float:
        """What exchanges took on the device so far; waits for none of them.

        Where one is under way each time that it looks, it is what was found last.
        """
        for _ in range(_ASKED):
            spent = self._ask()
            if spent >= 0:
                self._told = spent
                break
        return self._told / 1e9

    def _ask(self) -> int:
        with torch.cuda.stream(self._aside):
            self._spent.copy_(self.nanoseconds, non_blocking=True)
        self._aside.synchronize()
        return int(self._spent)

    @contextmanager
    def timed(self, times: int = 1) -> Generator[None]:
        """What is launched inside it counts as so many exchanges."""
        self._note(begins=True, times=times)
        yield
        self._note(begins=False, times=times)

    def _note(self, *, begins: bool, times: int) -> None:
        compiled = self.nanoseconds.device.type != "cpu"
        _stamp[(1,)](
            self._began, self.nanoseconds, BEGINS=begins, TIMES=times, COMPILED=compiled, num_warps=1
        )  # fmt: skip

    def reset(self) -> None:
        """Nothing was spent."""
        self.nanoseconds.zero_()

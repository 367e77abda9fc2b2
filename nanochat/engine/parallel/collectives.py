"""What the ranks do together: sums, and logits side by side. Gloo between processes on CPUs, NCCL between GPUs.

The process group belongs to one engine: nothing is registered with `torch.distributed`, so several engines can live
in one process. It is joined through a file in a private folder. Gloo's own connections go over the loopback device,
and so do the few bytes with which NCCL finds its peers.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllreduceOptions, FileStore, GatherOptions

from nanochat.engine.parallel.channel import Pulse

if TYPE_CHECKING:
    from nanochat.engine.parallel.one_shot import Sums
    from nanochat.kernels.bundle import Reduce
    from nanochat.kernels.triton_one_shot import OneShot

_LOOPBACK = "127.0.0.1"
_JOIN = timedelta(seconds=9)  # all ranks are there already when the first one joins
_PARTING = 2.0  # seconds that NCCL gets to let go of the other ranks
_NEVER = timedelta(days=1)  # who waits for a rank that is lost is told so by the watch, not by a timeout


class Collectives:
    """One rank's end of the group.

    Attributes:
        rank, ranks: which one this is, and of how many.
        seconds: spent in collectives since the start, waiting for slower ranks included; on GPUs only what it took
            to launch them.
        count: collectives since the start.
        one_shot: what sums on GPUs without NCCL, where that is faster.
        trial: what is being tried, while it is.
        compared: what was found when the two were measured, in words for people; empty where they were not.
        measured: seconds of a sum with what follows it (in one shot, in a wide sum, by NCCL), for numbers of rows.
    """

    def __init__(self, group: Any, rank: int, ranks: int, device: torch.device, pulse: Pulse) -> None:
        self.rank, self.ranks = rank, ranks
        self.seconds = 0.0
        self.count = 0
        self.one_shot: Sums | None = None
        self.compared = ""
        self.measured: dict[int, tuple[float, float, float]] = {}
        self._group: Any = group
        self.trial: OneShot | None = None
        self._parting: threading.Thread | None = None
        self._lock = threading.Lock()
        self._device = device
        self._pulse = pulse
        self._sums = AllreduceOptions()
        self._gathers = AllgatherOptions()
        self._to_first = GatherOptions()
        if device.type == "cuda":  # on the current stream, so that a graph captures them like any kernel
            self._sums.asyncOp = False
            self._gathers.asyncOp = False

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in x's place. Every rank gets the same bits."""
        self._do(lambda: self._group.allreduce([x], self._sums))
        return x

    def gather(self, share: Tensor, vocabulary: int) -> Tensor:
        """The ranks' columns (see `vocabulary_share`) side by side: [rows, vocabulary].

        On GPUs every rank gets them, and samples the same tokens from them without another exchange. On CPUs only
        rank 0 does, which tells the others the tokens with the next step; they get their own share back.
        """
        width = -(-vocabulary // self.ranks)
        parts = self.exchange(F.pad(share, (0, width - share.shape[1])))
        return share if parts is None else torch.cat(list(parts), dim=1)[:, :vocabulary].contiguous()

    def exchange(self, x: Tensor) -> Tensor | None:
        """Every rank's x, of one shape: [ranks, *x.shape]. On CPUs only rank 0 gets it, the others None."""
        x = x.contiguous()
        if self.one_shot is not None and self.one_shot.gathers(x):
            return self.one_shot.gather(x)
        if self._device.type == "cuda":
            together = x.new_empty(self.ranks * x.shape[0], *x.shape[1:])
            self._do(lambda: self._group._allgather_base(together, x, self._gathers))
            return together.view(self.ranks, *x.shape)
        together = x.new_empty(self.ranks, *x.shape) if self.rank == 0 else None
        parts = [] if together is None else [list(together)]
        self._do(lambda: self._group.gather(parts, [x], self._to_first))
        return together

    @property
    def sums(self) -> Reduce:
        """What a model sums with."""
        return self.one_shot or self.reduce

    def abort(self) -> None:
        """End whatever waits in a collective; from any thread. Waits for nothing."""
        with self._lock:
            for sums in (self.one_shot, self.trial):
                if sums is not None:
                    sums.give_up()
            group = self._group
            if self._device.type == "cpu":
                if group is not None:
                    group.abort()
            elif group is not None and self._parting is None:
                self._parting = _part(group)

    def part(self) -> None:
        """Leave NCCL: on all ranks at the same time, when nothing is under way and no graph is left. Gloo needs none of it."""
        if self._device.type == "cpu":
            return
        self.abort()
        if self._parting is not None:
            self._parting.join(_PARTING)

    def close(self) -> None:
        """Free what was shared with the other ranks, which have ended."""
        with self._lock:
            one_shot, self.one_shot = self.one_shot, None
        if one_shot is not None:
            one_shot.close()
        self._group = None  # gloo gives its port back when nobody holds it: not when all else is collected

    @contextmanager
    def counted(self) -> Generator[None]:
        """One collective: its time and its number, and a sign of life at both ends."""
        started = time.perf_counter()
        self._pulse.enter()
        yield
        self._pulse.leave()
        self.seconds += time.perf_counter() - started
        self.count += 1

    def _do(self, operation: Callable[[], Any]) -> None:
        with self.counted():
            work = operation()
            if work is not None:
                work.wait()


def _part(group: Any) -> threading.Thread | None:
    """End a group of NCCL's in a thread of its own.

    What waits in it is released first. Then NCCL waits: for the other ranks to do the same, which a lost one never does, and
    for every graph that has captured it. The thread holds the group, so that one that never ends is never destroyed
    either, which would wait for it.
    """
    thread = threading.Thread(target=group.abort, name="nanochat-parting", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends and begins no threads: its process takes all with it
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        return None
    return thread


def join(folder: Path, rank: int, ranks: int, device: torch.device, pulse: Pulse) -> Collectives:
    """Meet the other ranks; returns when all are there. Raises RuntimeError when one does not come."""
    store = FileStore(str(folder / "ranks"), ranks)
    connect = _nccl if device.type == "cuda" else _gloo
    return Collectives(connect(store, rank, ranks, device), rank, ranks, device, pulse)


def _gloo(store: Any, rank: int, ranks: int, device: torch.device) -> Any:
    from torch.distributed import ProcessGroupGloo

    gloo = cast(Any, ProcessGroupGloo)
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=_LOOPBACK)]
    options._timeout = _JOIN
    group = gloo(store, rank, ranks, options)
    group._set_default_timeout(_NEVER)
    return group


def _nccl(store: Any, rank: int, ranks: int, device: torch.device) -> Any:
    # A lost rank is the engine's end, not the program's: torch's watchdog must not end the process.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_IB_DISABLE", "1")  # one host: NVLink, PCIe or shared memory
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("NCCL_RAS_ENABLE", "0")  # no service that tells others about this process
    from torch.distributed import ProcessGroupNCCL

    nccl = cast(Any, ProcessGroupNCCL)
    options = nccl.Options()
    options._timeout = _NEVER
    torch.cuda.set_device(device)
    group = nccl(store, rank, ranks, options)
    group.eager_connect_single_device(device)
    return group

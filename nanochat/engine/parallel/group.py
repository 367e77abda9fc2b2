"""Rank 0's side of a tensor-parallel model: it starts the other ranks, agrees with them, and hands out the steps."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.host import usable_cores
from nanochat.engine.memory import MemoryPlan
from nanochat.engine.parallel.channel import Sender
from nanochat.engine.parallel.collectives import join
from nanochat.engine.parallel.links import link
from nanochat.engine.parallel.messages import StepWriter
from nanochat.engine.parallel.processes import Workers
from nanochat.errors import NanochatError
from nanochat.kernels.headway import JOINING, longer

if TYPE_CHECKING:
    from nanochat.engine.scheduler import Chunk

_ASKED_SECONDS = 0.25  # between two looks at what the device has counted


@dataclass(frozen=True, slots=True)
class RankMemory:
    """What one rank holds, in bytes; `read` came from the files."""

    weights: int
    kv_cache: int
    read: int


class RankGroup:
    """The ranks of one engine, seen from rank 0."""

    def __init__(
        self,
        config: EngineConfig,
        ranks: int,
        device: torch.device,
        dtype: torch.dtype,
        when_stuck: Callable[[NanochatError], None] | None = None,
    ) -> None:
        """Start the workers and meet them.

        Args:
            when_stuck: called from another thread, when rank 0's hangs in a call that does not return, in the load or
                in a step. The group is closed then.

        Raises:
            EngineDead: one cannot start.
        """
        self.ranks = ranks
        self._link = link(device, ranks)
        self.memory: list[RankMemory] = []
        self._device = device
        threads = threads_for(ranks)
        self._threads_before = torch.get_num_threads()
        environment = dict(os.environ)
        if device.type == "cpu":
            torch.set_num_threads(threads)
            environment["OMP_NUM_THREADS"] = str(threads)
        self._workers = Workers(ranks, environment)
        self._end = weakref.finalize(self, self._workers.close)
        if when_stuck is not None:
            self._workers.on_stuck = partial(self._leave, when_stuck)
        try:
            self._workers.hear("started")
            self._introduce(config, device, dtype, threads)
        except BaseException:
            self.close()
            raise
        self._spent, self._asked = 0.0, 0.0
        self._sender = Sender(self._workers.memory, self._workers.doorbells, self._workers.check)
        self._writer = StepWriter()

    def _introduce(
        self, config: EngineConfig, device: torch.device, dtype: torch.dtype, threads: int
    ) -> None:
        fields = asdict(replace(config, tensor_parallel_size=self.ranks)) | {
            "model": str(config.model.resolve())
        }
        kind = str(dtype).removeprefix("torch.")
        for rank in range(1, self.ranks):
            self._workers.tell(
                rank, config=fields, device=device_of(device, rank), dtype=kind, threads=threads
            )
        pulse = self._workers.memory.pulse(0)
        try:
            with (
                self.own_work(),
                pulse.collective(),
                longer(JOINING if device.type == "cuda" else 0.0),
            ):
                self.collectives = join(self._workers.folder, 0, self.ranks, device, pulse)
        except RuntimeError as error:
            raise self._workers.explain(error) from error
        self._workers.on_failure = self.collectives.abort

    def agree(self, own: MemoryPlan, bytes_read: int) -> MemoryPlan:
        """The plan that fits on every rank. Waits until all have loaded their weights; raises what one failed of."""
        theirs = self._workers.hear("loaded")
        if self._device.type == "cpu":  # NCCL goes back to its store; gloo does not
            self._workers.forget_folder()
        num_blocks = min(own.num_blocks, *(int(said["num_blocks"]) for said in theirs))
        longest = min(own.max_model_len, num_blocks * BLOCK_SIZE)
        self.memory = [RankMemory(own.weights, num_blocks * own.block_bytes, bytes_read)]
        self.memory += [
            RankMemory(said["weights"], num_blocks * said["block_bytes"], said["bytes_read"])
            for said in theirs
        ]
        for rank in range(1, self.ranks):
            self._workers.tell(rank, num_blocks=num_blocks, max_model_len=longest)
        return replace(own, num_blocks=num_blocks, max_model_len=longest)

    def start(self) -> None:
        """Wait until every rank is ready for steps."""
        self._workers.hear("ready")
        self._workers.loaded()

    @property
    def failure(self) -> NanochatError | None:
        """What ended the group; None while it works."""
        return self._workers.failure

    @property
    def pids(self) -> list[int]:
        """The process ids of ranks 1 and on."""
        return self._workers.pids

    def check(self) -> None:
        """Raise EngineDead when a rank is lost."""
        self._workers.check()

    @property
    def link(self) -> str:
        """How the ranks reach each other, in words for people."""
        return ", ".join(filter(None, (self._link, self.collectives.compared)))

    @property
    def collective_seconds(self) -> float | None:
        """Spent in collectives since the start, waiting for slower ranks included; None where nobody counts it.

        On GPUs no host waits: sums are counted on the device, where some go in one shot, and it is what was found at the
        last `count_seconds`.
        """
        if self._device.type == "cpu":
            return self.collectives.seconds
        return None if self.collectives.one_shot is None else self._spent

    def count_seconds(self, *, now: bool = True) -> float | None:
        """`collective_seconds`, asked of the device, which may have to be waited for: for the engine's thread.

        Without `now`, only when nobody asked for a while.
        """
        one_shot, moment = self.collectives.one_shot, time.monotonic()
        if one_shot is not None and (now or moment - self._asked > _ASKED_SECONDS):
            self._spent, self._asked = one_shot.seconds, moment
        return self.collective_seconds

    def figures(self) -> dict[str, Any]:
        """What `EngineStats` says of the ranks."""
        return {
            "rank_bytes": tuple(memory.weights + memory.kv_cache for memory in self.memory),
            "link": self.link,
            "collective_seconds": self.collective_seconds,
        }

    def send(self, chunks: list[Chunk]) -> None:
        """Hand a step to the other ranks."""
        self._workers.busy = True
        self._sender.send(self._writer.write(chunks))

    def _leave(self, when_stuck: Callable[[NanochatError], None], error: NanochatError) -> None:
        when_stuck(error)
        self.close()

    def own_work(self) -> AbstractContextManager[None]:
        """Inside it, this thread does rank 0's part, and is watched. May raise EngineDead anywhere: then rank 0 hung."""
        return self._workers.own.going_on()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Rank 0 waits for its GPU, which waits for the others: what is a collective on CPUs."""
        self._workers.busy = True
        try:
            with self._workers.memory.pulse(0).collective():
                yield
        finally:
            self._workers.busy = False

    def rest(self) -> None:
        """No step is under way."""
        self._workers.busy = False

    def explain(self, error: BaseException) -> Exception:
        """What ended a step; the group is ended."""
        return self._workers.explain(error)

    def close(self) -> None:
        """Leave the workers, and end them. May be called twice. Graphs with collectives in them are to be gone."""
        if self._end.detach() is None:
            return
        try:
            if hasattr(self, "collectives"):
                self._workers.dismiss()
                self.collectives.part()
        finally:
            self._workers.close()
            self._workers.on_failure = self._workers.on_stuck = None
            if hasattr(self, "collectives"):
                self.collectives.close()
            if self._device.type == "cpu":
                torch.set_num_threads(self._threads_before)


def device_of(first: torch.device, rank: int) -> str:
    """The device of a rank: the ones that follow rank 0's."""
    return "cpu" if first.type == "cpu" else f"cuda:{(first.index or 0) + rank}"


def threads_for(ranks: int) -> int:
    """Threads for each rank on a CPU: together as many as there are cores."""
    return max(usable_cores() // ranks, 1)

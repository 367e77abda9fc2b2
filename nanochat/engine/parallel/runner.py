"""A `ModelRunner` on rank 0 whose every step the other ranks do too, and what reads such a step."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nanochat.engine.parallel.group import RankGroup
    from nanochat.engine.runner import ModelRunner
    from nanochat.engine.scheduler import Chunk
    from nanochat.engine.step import PendingStep, Token


class ParallelRunner:
    """A `ModelRunner` on rank 0 whose every step the other ranks do too."""

    unprepared = False  # the ranks capture together, when a step needs a graph

    def __init__(self, runner: ModelRunner, group: RankGroup) -> None:
        self._runner = runner
        self.group = group
        self._end = weakref.finalize(self, _end, runner, group)

    def dispatch(self, chunks: list[Chunk]) -> PendingStep:
        """See `ModelRunner`. Raises EngineDead when a rank is lost."""
        self.group.check()
        try:
            with self.group.own_work():
                self.group.send(chunks)
                step = self._runner.dispatch(chunks)
        except Exception as error:
            failure = self.group.explain(error)
            if failure is error:
                raise
            raise failure from error
        except BaseException as error:  # Ctrl-C in the middle of a step: the others went on
            self.group.explain(error)
            raise
        finally:
            self.group.rest()
        return step if self._runner.device.type == "cpu" else WatchedStep(step, self.group)

    def prepare(self) -> None:
        """Nothing, see `unprepared`."""

    def describe(self, dtype: torch.dtype) -> str:
        """See `ModelRunner`; and how the ranks are linked."""
        return f"{self._runner.describe(dtype)}, {self.group.ranks} ranks, {self.group.link}"

    @property
    def weight_itemsize(self) -> float | None:
        """See `ModelRunner`; of this rank's part, which is like the others'."""
        return self._runner.weight_itemsize

    def close(self) -> None:
        """Drop the tensors, end the workers."""
        self._end()


def _end(runner: ModelRunner, group: RankGroup) -> None:
    runner.close()
    if runner.device.type == "cuda":
        gc.collect()  # a graph may be left in a cycle, and NCCL waits for it
    group.close()


class WatchedStep:
    """A step whose results may never come, because a rank was lost: then whoever reads it is told so."""

    def __init__(self, step: PendingStep, group: RankGroup) -> None:
        self.chunks = step.chunks
        self._step = step
        self._group = group

    def done(self) -> bool:
        """Whether the device is through with it. Raises EngineDead when it never will be."""
        try:
            return self._step.done()
        except RuntimeError as error:
            raise self._group.explain(error) from error

    def read(self) -> tuple[list[bool], list[Token]]:
        """See `PendingStep`. Raises EngineDead when a rank is lost."""
        try:
            with self._group.waiting():
                results = self._step.read()
        except Exception as error:
            failure = self._group.explain(error)
            if failure is error:
                raise
            raise failure from error
        self._group.check()
        self._group.count_seconds(now=False)
        one_shot = self._group.collectives.one_shot
        if one_shot is not None and not all(results[0]) and one_shot.lost:
            raise self._group.explain(RuntimeError("another rank did not come to a sum"))
        return results

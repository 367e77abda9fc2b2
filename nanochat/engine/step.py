"""A dispatched step whose tokens were not read yet, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nanochat.engine.outputs import Logprob
from nanochat.engine.sampler import Sampled
from nanochat.engine.scheduler import Chunk

KVTensors = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token, on the host."""

    id: int
    finite: bool
    logprob: float | None = None
    logprobs: dict[int, Logprob] | None = None


class PendingStep(Protocol):
    """A dispatched step; `read` waits for the device."""

    chunks: list[Chunk]

    def read(self) -> tuple[list[bool], list[Token]]:
        """Per chunk whether its last hidden state is finite, and the tokens of the chunks that sample."""
        ...

    def done(self) -> bool:
        """Whether the device is through with it."""
        ...


class EagerStep:
    """A step that was run operation by operation. What it brought is copied to the host as soon as it is there."""

    def __init__(self, chunks: list[Chunk], healthy: Tensor, sampled: Sampled | None) -> None:
        self.chunks = chunks
        self._healthy = to_host(healthy)
        self._sampled = None if sampled is None else Sampled(*(to_host(t) for t in sampled.tensors()))
        self._event: torch.cuda.Event | None = None
        if healthy.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def done(self) -> bool:
        """Whether the device is through with it."""
        return self._event is None or self._event.query()

    def read(self) -> tuple[list[bool], list[Token]]:
        """Wait for the device: whether each chunk's last hidden state is finite, and the sampled tokens."""
        if self._event is not None:
            self._event.synchronize()
        healthy: list[bool] = self._healthy.tolist()
        return healthy, self._tokens() if self._sampled is not None else []

    def _tokens(self) -> list[Token]:
        sampled = self._sampled
        assert sampled is not None
        ids: list[int] = sampled.ids.tolist()
        finite: list[bool] = sampled.finite.tolist()
        if (
            sampled.logprob is None
            or sampled.rank is None
            or sampled.top_ids is None
            or sampled.top_logprobs is None
        ):
            return [Token(i, ok) for i, ok in zip(ids, finite, strict=True)]
        tokens: list[Token] = []
        chosen, ranks = sampled.logprob.tolist(), sampled.rank.tolist()
        top_ids, top_logprobs = sampled.top_ids.tolist(), sampled.top_logprobs.tolist()
        sequences = [chunk.sequence for chunk in self.chunks if chunk.samples]
        for row, sequence in enumerate(sequences):
            wanted = sequence.params.logprobs
            if wanted is None:
                tokens.append(Token(ids[row], finite[row]))
                continue
            pairs = zip(top_ids[row][:wanted], top_logprobs[row][:wanted], strict=True)
            table = {token: Logprob(value, rank) for rank, (token, value) in enumerate(pairs, 1)}
            table.setdefault(ids[row], Logprob(chosen[row], ranks[row]))
            tokens.append(Token(ids[row], finite[row], chosen[row], table))
        return tokens


class StepInParts:
    """A step that the device does in parts, in any order."""

    def __init__(self, parts: Sequence[PendingStep]) -> None:
        self.chunks = [chunk for part in parts for chunk in part.chunks]
        self._parts = parts

    def done(self) -> bool:
        """Whether the device is through with it."""
        return all(part.done() for part in self._parts)

    def read(self) -> tuple[list[bool], list[Token]]:
        """See `PendingStep`."""
        results = [part.read() for part in self._parts]
        return [ok for healthy, _ in results for ok in healthy], [t for _, tokens in results for t in tokens]


def to_host(tensor: Tensor | None) -> Any:
    """A copy in pinned memory that is complete once the device gets there; a host tensor as it is."""
    if tensor is None or tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

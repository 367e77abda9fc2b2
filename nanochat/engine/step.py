"""A dispatched step whose tokens were not read yet, and how they are read."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nanochat.engine.device_copies import to_host
from nanochat.engine.outputs import Logprob
from nanochat.engine.sampler import Logprobs, Sampled
from nanochat.engine.scheduler import Chunk
from nanochat.engine.sequence import Sequence

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
        self._sampled = None if sampled is None else sampled.on_host()
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
        sampled = self._sampled
        if sampled is None:
            return healthy, []
        sequences = [chunk.sequence for chunk in self.chunks if chunk.samples]
        return healthy, tokens_of(sequences, sampled.ids.tolist(), sampled.finite.tolist(), sampled.logprobs)


class StepInParts:
    """A step that the device does in parts, in any order."""

    def __init__(self, parts: abc.Sequence[PendingStep]) -> None:
        self.chunks = [chunk for part in parts for chunk in part.chunks]
        self._parts = parts

    def done(self) -> bool:
        """Whether the device is through with it."""
        return all(part.done() for part in self._parts)

    def read(self) -> tuple[list[bool], list[Token]]:
        """See `PendingStep`."""
        results = [part.read() for part in self._parts]
        return [ok for healthy, _ in results for ok in healthy], [t for _, tokens in results for t in tokens]


def tokens_of(
    sequences: list[Sequence], ids: list[int], finite: list[bool], logprobs: Logprobs | None
) -> list[Token]:
    """The tokens of a step's rows, each with the log-probabilities that its request asked for; all on the host."""
    if logprobs is None:
        return [Token(i, ok) for i, ok in zip(ids, finite, strict=True)]
    tokens: list[Token] = []
    chosen, ranks = logprobs.chosen.tolist(), logprobs.rank.tolist()
    top_ids, top = logprobs.top_ids.tolist(), logprobs.top.tolist()
    for row, sequence in enumerate(sequences):
        wanted = sequence.params.logprobs
        if wanted is None:
            tokens.append(Token(ids[row], finite[row]))
            continue
        pairs = zip(top_ids[row][:wanted], top[row][:wanted], strict=True)
        table = {token: Logprob(value, rank) for rank, (token, value) in enumerate(pairs, 1)}
        table.setdefault(ids[row], Logprob(chosen[row], ranks[row]))
        tokens.append(Token(ids[row], finite[row], chosen[row], table))
    return tokens

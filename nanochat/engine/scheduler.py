"""Which tokens run next: decodes first, then prefill chunks in what is left of the budget."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.kv_cache import KVCache
from nanochat.engine.sequence import Sequence, Status


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence in one step: positions [start, start + count). `samples` when the last of
    them is the sequence's last token, so that its logits give the next one."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """How large a step may be.

    `beside_decodes` bounds the prefill tokens of a step that also decodes, to begin with: it is what bounds the gap
    between two tokens of a running reply while a long prompt is read.
    """

    sequences: int
    tokens: int
    beside_decodes: int


class Scheduler:
    """Owns the queues. Sequences wait in order of (priority, arrival) and run until they finish or are preempted."""

    def __init__(self, cache: KVCache, budget: Budget, lookahead: int = 0) -> None:
        self.cache = cache
        self.lookahead = (
            lookahead  # positions beyond the next one that a decoding sequence's table must cover
        )
        self.budget = budget
        self.beside_decodes = budget.beside_decodes  # the core sets it anew as it sees what steps take
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._seats = list(range(budget.sequences - 1, -1, -1))
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, sequence, key=lambda s: s.order)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back. What was interrupted in it may be done again."""
        if sequence.status is Status.WAITING and sequence in self.waiting:
            self.waiting.remove(sequence)
        self._leave(sequence)
        sequence.status = Status.FINISHED

    def reclaim(self) -> None:
        """No sequence is left: every seat and block is there again, which a Ctrl-C may have kept from its owner."""
        self._seats = list(range(self.budget.sequences - 1, -1, -1))
        self.cache.reclaim()

    def reprioritise(self, sequence: Sequence, priority: int) -> None:
        """Change who goes first from the next step on."""
        sequence.priority = priority
        self.waiting.sort(key=lambda s: s.order)
        self.running.sort(key=lambda s: s.order)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks, decodes first; empty when nothing can run."""
        self._yield_to_urgent()
        chunks = self._decodes()
        decodes = len(chunks)
        left = self.budget.tokens - decodes
        if decodes:
            left = min(left, self.beside_decodes)
        for sequence in self.running:
            if left <= 0:
                break
            if sequence.pending == 0 and not sequence.decoding:
                left -= self._prefill(sequence, left, chunks)
        while left > 0 and (sequence := self._admit()) is not None:
            left -= self._prefill(sequence, left, chunks)
        return chunks

    def _decodes(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        # Penalties count tokens that were read. Those who wait for theirs go on together: apart they would share no step.
        unread = any(s.pending and s.needs_history for s in self.running)
        for sequence in list(self.running):
            if len(chunks) == self.budget.tokens:
                break
            if sequence.status is not Status.RUNNING or not (sequence.decoding and sequence.wants_more):
                continue
            if unread and sequence.needs_history:
                continue
            if self._extend(sequence):
                chunks.append(Chunk(sequence, sequence.num_computed, 1, samples=True))
        chunks = [
            chunk for chunk in chunks if chunk.sequence.status is Status.RUNNING
        ]  # not preempted meanwhile
        for chunk in chunks:
            chunk.sequence.num_computed += 1
            chunk.sequence.pending += 1
        return chunks

    def _extend(self, sequence: Sequence) -> bool:
        """Make room for one more position, preempting whoever is last in order; False if that is `sequence`."""
        last = len(sequence.prompt) + sequence.max_tokens - 1
        needed = min(sequence.num_computed + self.lookahead, last)
        while len(sequence.blocks) * BLOCK_SIZE <= needed:
            block = self.cache.allocate(1)
            if block is not None:
                sequence.blocks += block
                continue
            victim = max(self.running, key=lambda s: s.order)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue without blocks. They keep their names, so resuming finds those not yet evicted."""
        self._leave(sequence)
        sequence.num_published = 0
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        sequence.preemptions += 1
        self.preemptions += 1
        self.add(sequence)

    def _leave(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence.seat >= 0:
            seat, sequence.seat = sequence.seat, -1
            self._seats.append(seat)
        self.cache.release(sequence.blocks)

    def _prefill(self, sequence: Sequence, left: int, chunks: list[Chunk]) -> int:
        start = sequence.num_computed
        count = min(len(sequence.tokens) - start, left)
        if count <= 0:
            return 0
        samples = start + count == len(sequence.tokens) and sequence.wants_more
        chunks.append(Chunk(sequence, start, count, samples))
        sequence.num_computed += count
        sequence.pending += samples
        return count

    def _next_waiting(self) -> Sequence | None:
        """The first in order that may start: no step of it is in flight, and its leader has computed the prompt."""
        for sequence in self.waiting:
            if not sequence.pending and (sequence.leader is None or sequence.leader.prompt_ready):
                return sequence
        return None

    def _yield_to_urgent(self) -> None:
        """Push running sequences of lower priority aside while a waiting one of higher priority has no room."""
        urgent = self._next_waiting()
        while urgent is not None and self.running and self._fitting(urgent) is None:
            victim = max(self.running, key=lambda s: s.order)
            if victim.priority <= urgent.priority:
                return
            self._preempt(victim)

    def _fitting(self, sequence: Sequence) -> tuple[list[int], int] | None:
        """Its cached blocks and how many more it needs; None when there is no room to start it."""
        if len(self.running) >= self.budget.sequences:
            return None
        blocks = self.cache.match(sequence)
        needed = -(-len(sequence.tokens) // BLOCK_SIZE) - len(blocks)
        room = self.cache.num_available - self.cache.num_idle(blocks)
        return (blocks, needed) if needed <= room else None

    def _admit(self) -> Sequence | None:
        """Start the first waiting sequence, if there is room for all its known tokens."""
        sequence = self._next_waiting()
        fitting = None if sequence is None else self._fitting(sequence)
        if sequence is None or fitting is None:
            return None
        blocks, needed = fitting
        self.cache.acquire(blocks)
        fresh = self.cache.allocate(needed)
        assert fresh is not None
        sequence.blocks = blocks + fresh
        sequence.num_published = len(blocks)
        sequence.num_computed = len(blocks) * BLOCK_SIZE
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.num_computed
        self.waiting.remove(sequence)
        sequence.status = Status.RUNNING
        sequence.seat = self._seats.pop()
        insort(self.running, sequence, key=lambda s: s.order)
        return sequence

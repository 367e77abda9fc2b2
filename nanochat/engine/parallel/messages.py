"""A step as it travels from rank 0 to the other ranks: 64-bit words, and what both sides remember of the sequences.

A message is the words below; floating-point numbers are the words that hold their bits. Only news travel: a
sequence's tokens and blocks that the other side does not have yet, its parameters when it comes up for the first time.

    step      number of sequences that are gone, number of chunks, the gone, the chunks
    chunk     key, start, count, samples, seat, pending, is new, tokens, from block, blocks, [new], tokens..., blocks...
    new       prompt's length, seed, greedy's and the other numbers of `_NUMBERS`, logprobs (-1: none), minimum of
              tokens, and how many ends, stops, biases and bad words follow; ends..., stops..., (token, bias)...,
              (length, tokens...)...
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from typing import Any

from nanochat.engine.bad_words import Spellings
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.engine.sequence import Sequence, Status

_NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class _Sent:
    """What the other ranks have of a sequence."""

    __slots__ = ("blocks", "key", "tokens")

    def __init__(self, key: int) -> None:
        self.key = key
        self.tokens = 0
        self.blocks: list[int] = []


class StepWriter:
    """Rank 0's side."""

    def __init__(self) -> None:
        self._known: dict[Sequence, _Sent] = {}
        self._keys = 0

    def write(self, chunks: list[Chunk]) -> bytes:
        """A step's message. Called once for each step, before it is dispatched."""
        gone = [sequence for sequence in self._known if sequence.status is Status.FINISHED]
        words = array("q", [len(gone), len(chunks)])
        words.extend(self._known.pop(sequence).key for sequence in gone)
        for chunk in chunks:
            self._chunk(chunk, words)
        return words.tobytes()

    def _chunk(self, chunk: Chunk, words: array[int]) -> None:
        sequence = chunk.sequence
        sent = self._known.get(sequence)
        new = sent is None
        if sent is None:
            self._keys += 1
            sent = self._known[sequence] = _Sent(self._keys)
        tokens, blocks = sequence.tokens[sent.tokens :], sequence.blocks
        same = _common(sent.blocks, blocks)
        words.extend(
            (sent.key, chunk.start, chunk.count, chunk.samples, sequence.seat, sequence.pending, new,
             len(tokens), same, len(blocks) - same)
        )  # fmt: skip
        if new:
            _write_params(sequence, words)
        words.extend(tokens)
        words.extend(blocks[same:])
        sent.tokens += len(tokens)
        sent.blocks[same:] = blocks[same:]


class StepReader:
    """A worker's side: keeps a likeness of every sequence, as far as a step asks about it."""

    def __init__(self) -> None:
        self._known: dict[int, Sequence] = {}
        self._seated: dict[int, Sequence] = {}  # who was seen last on each seat

    def read(self, message: bytes) -> list[Chunk]:
        """The chunks of a step, over the same objects as in the steps before."""
        words = array("q")
        words.frombytes(message)
        gone, count = words[0], words[1]
        for key in words[2 : 2 + gone]:
            self._leave(self._known.pop(key))
        at, chunks = 2 + gone, list[Chunk]()
        for _ in range(count):
            at, chunk = self._chunk(words, at)
            chunks.append(chunk)
        return chunks

    def _chunk(self, words: array[int], at: int) -> tuple[int, Chunk]:
        key, start, count, samples, seat, pending, new, tokens, same, blocks = words[at : at + 10]
        at += 10
        if new:
            at, prompt, seed, params, ends, bad_words = _read_params(words, at)
            self._known[key] = Sequence(
                request_id=str(key), index=0, prompt=tuple(words[at : at + prompt]), params=params, seed=seed,
                priority=0, arrival=key, submitted=0.0, max_tokens=0, root=b"", eos_ids=frozenset(ends),
                bad_words=bad_words,
            )  # fmt: skip
            self._known[key].tokens = []
        sequence = self._known[key]
        sequence.tokens.extend(words[at : at + tokens])
        at += tokens
        if same < len(sequence.blocks):
            sequence.table_changed = True
        sequence.blocks[same:] = words[at : at + blocks]
        self._sit(sequence, seat)
        sequence.pending = pending
        return at + blocks, Chunk(sequence, start, count, bool(samples))

    def _sit(self, sequence: Sequence, seat: int) -> None:
        """On rank 0 nobody else has the seat: whoever was preempted left it."""
        if sequence.seat == seat:
            return
        self._leave(sequence)
        if seat in self._seated:
            self._leave(self._seated[seat])
        sequence.seat, self._seated[seat] = seat, sequence

    def _leave(self, sequence: Sequence) -> None:
        self._seated.pop(sequence.seat, None)
        sequence.seat = -1


def _common(old: list[int], new: list[int]) -> int:
    """How many blocks at the beginning are the same."""
    if new[: len(old)] == old:
        return len(old)
    return next(i for i, block in enumerate(old) if i >= len(new) or new[i] != block)


def _write_params(sequence: Sequence, words: array[int]) -> None:
    params = sequence.params
    ends, stops, biases = sequence.eos_ids, params.stop_token_ids, params.logit_bias or {}
    seed = sequence.seed - 2**64 if sequence.seed >= 2**63 else sequence.seed
    words.extend((len(sequence.prompt), seed))
    words.extend(_bits(float(getattr(params, name) or 0) for name in _NUMBERS))
    words.extend((-1 if params.logprobs is None else params.logprobs, params.min_tokens))
    words.extend((len(ends), len(stops), len(biases), len(sequence.bad_words), *sorted(ends), *stops))
    for token, bias in biases.items():
        words.extend((token, *_bits([bias])))
    for ids in sequence.bad_words:
        words.extend((len(ids), *ids))


def _read_params(words: array[int], at: int) -> tuple[int, int, int, SamplingParams, list[int], Spellings]:
    """(where they end, the prompt's length, seed, parameters, ends of sequence, bad words)."""
    prompt, seed = words[at : at + 2]
    at += 2
    values = _floats(words[at : at + len(_NUMBERS)])
    numbers: dict[str, Any] = dict(zip(_NUMBERS, values, strict=True))
    numbers["top_k"] = int(numbers["top_k"])
    at += len(_NUMBERS)
    logprobs, least, num_ends, num_stops, num_biases, num_words = words[at : at + 6]
    at += 6
    ends, stops = (
        words[at : at + num_ends].tolist(),
        words[at + num_ends : at + num_ends + num_stops].tolist(),
    )
    at += num_ends + num_stops
    pairs = words[at : at + 2 * num_biases]
    params = SamplingParams(
        **numbers,
        logprobs=None if logprobs < 0 else logprobs,
        min_tokens=least,
        max_tokens=None,
        stop_token_ids=stops,
        logit_bias=dict(zip(pairs[::2].tolist(), _floats(pairs[1::2]), strict=True)) or None,
    )
    at += 2 * num_biases
    bad: list[tuple[int, ...]] = []
    for _ in range(num_words):
        bad.append(tuple(words[at + 1 : at + 1 + words[at]]))
        at += 1 + words[at]
    return at, prompt, seed % 2**64, params, ends, tuple(bad)


def _bits(values: Iterable[float]) -> list[int]:
    numbers = list(values)
    return list(struct.unpack(f"={len(numbers)}q", struct.pack(f"={len(numbers)}d", *numbers)))


def _floats(words: Iterable[int]) -> list[float]:
    bits = list(words)
    return list(struct.unpack(f"={len(bits)}d", struct.pack(f"={len(bits)}q", *bits)))

"""One reply in the making: its tokens, its blocks, its clock."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING

from nanochat.engine.bad_words import Spellings
from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.seen_tokens import SeenTokens

if TYPE_CHECKING:
    from nanochat.engine.detokenizer import IncrementalDetokenizer

_request_ids = count(1)


def next_request_id() -> str:
    """A name for a request that is unique within this process."""
    return f"request-{next(_request_ids)}"


def block_name(parent: bytes, tokens: list[int]) -> bytes:
    """The name of a full block: sha256 over its parent's name and its token ids (int32, little-endian)."""
    return hashlib.sha256(parent + array("i", tokens).tobytes()).digest()


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """One reply to one prompt: `tokens` is the prompt and what was generated so far.

    Invariants: `blocks` covers positions [0, num_computed); the first `num_published` blocks are full and
    named; tokens are only ever appended, so `chain`, the names of the leading full blocks, only grows; KV
    for positions [0, num_computed) is written by steps that were dispatched; `pending` tokens were sampled
    by dispatched steps whose results were not read yet.
    """

    request_id: str
    index: int
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    priority: int
    arrival: int
    submitted: float
    max_tokens: int  # the reply's length at most, the context's end included
    root: bytes  # the name that the first block's parent goes by
    eos_ids: frozenset[int]
    bad_words: Spellings = ()  # of `params.bad_words`
    leader: Sequence | None = None  # of n > 1 replies, the one that computes the prompt
    detokenizer: IncrementalDetokenizer | None = None
    tokens: list[int] = field(default_factory=list[int])
    seen: SeenTokens = field(default_factory=SeenTokens)  # as far as penalties asked
    blocks: list[int] = field(default_factory=list[int])
    chain: list[bytes] = field(default_factory=list[bytes])
    num_published: int = 0
    table_changed: bool = False  # a block of the table was exchanged for its twin
    status: Status = Status.WAITING
    num_computed: int = 0
    pending: int = 0
    seat: int = -1  # its row in the device's per-sequence state while it runs
    prompt_ready: bool = False  # the prompt was computed once: followers may start
    cached_tokens: int | None = None  # at the first admission
    preemptions: int = 0
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list[dict[int, Logprob]])
    cumulative_logprob: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def order(self) -> tuple[int, int, int]:
        """Who goes first: lower priority numbers, then earlier arrivals."""
        return (self.priority, self.arrival, self.index)

    @property
    def output_ids(self) -> list[int]:
        """The reply's token ids."""
        return self.tokens[len(self.prompt) :]

    @property
    def num_output(self) -> int:
        """Tokens of the reply that were read."""
        return len(self.tokens) - len(self.prompt)

    @property
    def length(self) -> int:
        """Tokens that exist, those sampled and not yet read included."""
        return len(self.tokens) + self.pending

    @property
    def counter(self) -> int:
        """While a step that samples is dispatched: how many tokens of the reply come before the one it samples."""
        return self.num_output + self.pending - 1

    @property
    def needs_history(self) -> bool:
        """Whether the logits depend on the tokens sampled before, so that these must have been read."""
        return self.params.needs_history or any(len(ids) > 1 for ids in self.bad_words)

    @property
    def plain(self) -> bool:
        """While a step that samples is dispatched: whether the token follows from its logits and its seat's parameters."""
        params = self.params
        return (
            not params.needs_history
            and not self.bad_words
            and not params.logit_bias
            and params.logprobs is None
            and self.counter >= params.min_tokens
        )

    @property
    def decoding(self) -> bool:
        """Whether one token is left to compute: the last one sampled."""
        return self.num_computed == self.length - 1 and self.length > len(self.prompt)

    @property
    def wants_more(self) -> bool:
        """Whether another token may be sampled, counting those in flight."""
        return self.length - len(self.prompt) < self.max_tokens

    def name(self, i: int) -> bytes:
        """The name of block `i` of `tokens`, which must be full; the root for -1."""
        while len(self.chain) <= i:
            parent = self.chain[-1] if self.chain else self.root
            self.chain.append(block_name(parent, self.block_tokens(len(self.chain))))
        return self.chain[i] if i >= 0 else self.root

    def block_tokens(self, i: int) -> list[int]:
        """The token ids of block `i`."""
        return self.tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE]

    def completion(
        self, reason: FinishReason, stop_reason: int | str | None, error: str | None
    ) -> CompletionOutput:
        """The whole reply, for its end: `detokenizer` has released all of its text."""
        wanted = self.params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text="" if self.detokenizer is None else self.detokenizer.text,
            token_ids=tuple(self.output_ids),
            finish_reason=reason,
            stop_reason=stop_reason,
            logprobs=tuple(self.logprobs) if wanted else None,
            cumulative_logprob=self.cumulative_logprob if wanted else None,
            metrics=self.metrics(),
            error=error,
        )

    def metrics(self) -> RequestMetrics:
        """The reply's figures so far. TTFT here is the engine's; the consumer's side may replace it."""
        started = self.started or self.submitted
        first = self.first_token or started
        return RequestMetrics(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens or 0,
            output_tokens=self.num_output,
            preemptions=self.preemptions,
            queue_time=started - self.submitted,
            prefill_time=first - started,
            ttft=first - self.submitted,
            decode_time=max(self.last_token - first, 0.0),
        )

"""What comes out of the engine: results, figures and statistics, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"  # end-of-sequence, a stop id or a stop string
    LENGTH = "length"  # max_tokens, or the end of the context
    ABORT = "abort"  # cancelled
    ERROR = "error"  # this request failed; `error` says why


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability under the raw logits, and its rank (1 is the likeliest)."""

    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times and counts of one reply; times in seconds.

    `prefill_tokens` were computed, `cached_tokens` came from the prefix cache: together the prompt.
    `ttft` runs from submit to the first text on the consumer's side; decode tok/s is
    (n - 1) / (t_last - t_first); prefill tok/s counts computed tokens only, over the time from the
    first scheduled chunk to the first token.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    queue_time: float = 0.0
    prefill_time: float = 0.0
    ttft: float = 0.0
    decode_time: float = 0.0

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that were computed."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def prefill_rate(self) -> float:
        """Computed prompt tokens per second; 0 when not measurable."""
        return self.prefill_tokens / self.prefill_time if self.prefill_time > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Decoded tokens per second after the first; 0 when not measurable."""
        return (
            (self.output_tokens - 1) / self.decode_time
            if self.decode_time > 0 and self.output_tokens > 1
            else 0.0
        )

    def line(self) -> str:
        """The one line of figures: `prefill 38 tok (0 cached) 412 tok/s · decode 21 tok 58 tok/s · TTFT 0.09 s`."""
        return (
            f"prefill {self.prefill_tokens} tok ({self.cached_tokens} cached) {self.prefill_rate:,.0f} tok/s · "
            f"decode {self.output_tokens} tok {self.decode_rate:,.0f} tok/s · TTFT {self.ttft:.2f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """All figures, derived ones too, for JSON."""
        derived = {
            "prefill_tokens": self.prefill_tokens,
            "prefill_rate": self.prefill_rate,
            "decode_rate": self.decode_rate,
        }
        return asdict(self) | derived


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One reply to one prompt.

    `token_ids` is a tuple, which equals no list: compare `list(output.token_ids)`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    cumulative_logprob: float | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What `LLM.generate` returns for one prompt: vLLM's attributes, and Nano-vLLM's keys (`output["text"]`).

    `prompt_token_ids` and `token_ids` are tuples, which equal no list: compare `list(output.token_ids)`.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool = True

    @property
    def text(self) -> str:
        """The first reply's text."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first reply's token ids."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first reply ended."""
        return self.outputs[0].finish_reason

    @property
    def metrics(self) -> RequestMetrics:
        """The first reply's figures."""
        return self.outputs[0].metrics

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache, for the first reply."""
        return self.metrics.cached_tokens

    def __getitem__(self, key: str) -> Any:
        if key in (
            "text",
            "token_ids",
            "finish_reason",
            "metrics",
            "prompt",
            "prompt_token_ids",
            "request_id",
            "outputs",
        ):
            return getattr(self, key)
        raise KeyError(key)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine. Rates are over the last second; memory in bytes."""

    state: str = "unloaded"  # unloaded, loading, ready, dead
    model: str = ""
    device: str = ""
    dtype: str = ""
    max_model_len: int = 0
    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0
    blocks_used: int = 0
    block_size: int = 16
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    prefill_tokens: int = 0  # since load, computed
    cached_tokens: int = 0  # since load, reused
    decode_tokens: int = 0  # since load
    preemptions: int = 0  # since load
    steps: int = 0  # since load
    weight_bytes: int = 0  # by the model's configuration
    weights_held: int = 0  # what they were seen to take
    reserve_bytes: int = 0  # set aside for the work of a step
    kv_bytes: int = 0
    load_seconds: float = 0.0
    ranks: int = 1  # devices that the model is split over
    rank_bytes: tuple[int, ...] = ()  # weights and KV cache of each, where there are several
    link: str = ""  # how they reach each other
    collective_seconds: float | None = None  # since load, in exchanges between ranks; None: no host counts it
    error: str | None = None

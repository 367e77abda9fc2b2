"""How one request samples: vLLM's names and ranges. `None` means the model's own default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, cast

from nanochat.errors import InvalidSampling

MAX_LOGPROBS = 1024
_MOST = 2**31 - 1
_GREEDY = 1e-5  # temperatures below; vLLM's bound
_TUNABLE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen and when the reply ends.

    The five tunable values may be `None`: then the model's `generation_config.json` decides, and where
    it is silent the neutral value (temperature 1, top_p 1, top_k 0, min_p 0, repetition_penalty 1). `None` for
    presence_penalty, frequency_penalty, min_tokens, stop_token_ids or logit_bias is their default, as in vLLM.

    Threads share these, so they stay as they are made: where vLLM's examples say `params.max_tokens = 5`, say
    `params = params.clone(max_tokens=5)`.

    Args:
        temperature: 0 is greedy, and so is less than 1e-5; otherwise the logits are divided by it. 0 to 100.
        top_p: keep the fewest tokens whose probabilities reach this sum. Above 0, at most 1.
        top_k: keep this many of the likeliest tokens; 0 and -1 keep all.
        min_p: drop tokens less likely than this times the likeliest. 0 to 1.
        repetition_penalty: divide (positive) or multiply (negative) the logits of tokens in the prompt
            and the reply by this (Keskar et al., 2019). Above 0, at most 10.
        presence_penalty: subtract this from the logits of tokens in the reply. -2 to 2.
        frequency_penalty: subtract this times the count in the reply. -2 to 2.
        logit_bias: token id -> added to its logit. Each -100 to 100.
        bad_words: texts that the reply must not hold. What is kept from coming is, as in vLLM, the last token of each text as
            the tokenizer spells it, alone and after a blank: other spellings of it (CAPITALS, other tokens) may come.
        seed: makes the reply repeatable: the draws do not depend on what else is in the batch. The logits may, in their last
            bits; the engine's `deterministic` mode excludes that too. `None` draws one.
        n: how many replies to one prompt; they share the prompt's blocks. 1 to 128.
        max_tokens: the reply's length at most; `None` is as far as the context goes. 0 only fills the cache.
        min_tokens: no end-of-sequence and no stop before so many tokens.
        stop: strings that end the reply; they are not part of the text.
        stop_token_ids: ids that end the reply.
        ignore_eos: go on past the model's own end-of-sequence tokens.
        logprobs: how many of the likeliest tokens to report with their log-probabilities, besides
            the sampled one. 0 to 1024; `None` reports none. Raw, before any of the above.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: keep the stop string in the text.

    Raises:
        InvalidSampling: a value of another kind or outside its range; the text names both.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str] | None = None
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = 64
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] = field(default_factory=tuple[int, ...])
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name, value in (self._numbers() | self._collections()).items():
            object.__setattr__(self, name, value)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidSampling(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidSampling(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")

    def _numbers(self) -> dict[str, int | float | None]:
        """The fields that hold one number, checked, as Python's own."""
        kept: dict[str, int | float | None] = {}
        for name, low, high, none in (
            ("temperature", 0, 100, None), ("top_p", 0, 1, None), ("min_p", 0, 1, None),
            ("repetition_penalty", 0, 10, None), ("presence_penalty", -2, 2, 0.0), ("frequency_penalty", -2, 2, 0.0),
        ):  # fmt: skip
            value = getattr(self, name)
            above = name in ("top_p", "repetition_penalty")
            kept[name] = none if value is None else _number(name, value, low, high, above=above)
        for name, low, high, none in (
            ("seed", -(2**63), 2**64 - 1, None), ("max_tokens", 0, _MOST, None), ("min_tokens", 0, _MOST, 0),
            ("logprobs", 0, MAX_LOGPROBS, None),
        ):  # fmt: skip
            value = getattr(self, name)
            kept[name] = none if value is None else _integer(name, value, low, high)
        kept["n"] = _integer("n", self.n, 1, 128)
        if self.top_k is not None:
            top_k = _integer("top_k", self.top_k, -1, _MOST)
            kept["top_k"] = max(top_k, 0)  # -1 is vLLM's word for all
        if kept["temperature"] is not None and kept["temperature"] < _GREEDY:
            kept["temperature"] = 0.0  # logits over less would overflow
        return kept

    def _collections(self) -> dict[str, Any]:
        """The fields that hold several values, checked, as tuples and a dict that nobody else holds."""
        stop: Any = (self.stop,) if isinstance(self.stop, str) else self.stop
        texts = _items("stop", stop, "a string or a list of strings")
        for text in texts:
            if not isinstance(text, str) or not text:
                raise InvalidSampling(f"stop must hold non-empty strings, not {text!r}")
        words = _items("bad_words", self.bad_words, "a list of strings")
        for text in words:
            if not isinstance(text, str) or not text:
                raise InvalidSampling(f"bad_words must hold non-empty strings, not {text!r}")
        ids = _items("stop_token_ids", self.stop_token_ids, "a list of token ids")
        biases: Any = self.logit_bias
        if biases is not None and not isinstance(biases, Mapping):
            raise InvalidSampling(f"logit_bias must be a dict of token id -> bias, not {biases!r}")
        return {
            "stop": texts,
            "bad_words": words,
            "stop_token_ids": tuple(_integer("a token of stop_token_ids", token, 0, _MOST) for token in ids),
            "logit_bias": None if biases is None else {
                _integer("a token of logit_bias", token, 0, _MOST): _number("a bias of logit_bias", bias, -100, 100)
                for token, bias in cast("Mapping[object, object]", biases).items()
            },
        }  # fmt: skip

    def clone(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed, and checked anew: `params.clone(max_tokens=5)`."""
        return replace(self, **changes)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return self.stop if isinstance(self.stop, tuple) else ()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def filtered(self) -> bool:
        """Whether a top-k, top-p or min-p may keep a token from being drawn."""
        return not self.greedy and bool(self.top_k or (self.top_p or 1.0) < 1.0 or self.min_p)

    @property
    def needs_history(self) -> bool:
        """Whether the logits depend on the tokens sampled before, so that these must have been read."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty not in (None, 1.0)
        )

    def resolved(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """These parameters with every `None` among the tunable five replaced: by `defaults`, else neutral."""
        values = {name: getattr(self, name) for name in _TUNABLE}
        chosen = {
            name: (defaults.get(name) if defaults.get(name) is not None else _NEUTRAL[name])
            for name, value in values.items()
            if value is None
        }
        return replace(self, **chosen) if chosen else self


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """Any library's real number as Python's own."""
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:
        raise InvalidSampling(f"{name} must be a number, not {value!r}")
    number = cast("float", value)  # not made one yet: a whole number may be too large
    if not low <= number <= high or (above and number == low):
        span = f"above {low} and at most {high}" if above else f"from {low} to {high}"
        raise InvalidSampling(f"{name} must be {span}, not {value}")
    return float(number)


def _integer(name: str, value: object, low: int, high: int) -> int:
    """Any library's whole number as Python's own."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidSampling(f"{name} must be a whole number, not {value!r}")
    if not low <= (number := int(value)) <= high:
        raise InvalidSampling(f"{name} must be from {low} to {high}, not {number}")
    return number


def _items(name: str, value: object, expected: str) -> tuple[object, ...]:
    """What a list, or whatever else gives its items one by one, holds; nothing where it is `None`."""
    if value is None:
        return ()
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return tuple(cast("Iterable[object]", value))
    except TypeError:
        raise InvalidSampling(f"{name} must be {expected}, not {value!r}") from None

"""What goes into the engine and what a step brings back, as frozen dataclasses. Imports no torch."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nanochat.engine.outputs import CompletionOutput, RequestMetrics
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import next_request_id
from nanochat.errors import InvalidSampling


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete. Lower `priority` numbers go first.

    Args:
        prompt_ids: token ids; kept as a tuple, so that what changes in the caller's list later changes nothing here.
        request_id: a name that no other request of the engine has at the same time.

    Raises:
        InvalidSampling: a value of the wrong kind. What else can never run only a loaded model knows.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    request_id: str = field(default_factory=next_request_id)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", token_ids(self.prompt_ids))
        _check_kind("params", self.params, SamplingParams, "SamplingParams")
        check_priority(self.priority)
        _check_kind("request_id", self.request_id, str, "a text")


def check_priority(priority: object) -> None:
    """Refuse what cannot be ordered among other priorities. Raises InvalidSampling."""
    _check_kind("priority", priority, int, "a whole number")


def _check_kind(name: str, value: object, kind: type, words: str) -> None:
    if not isinstance(value, kind):
        raise InvalidSampling(f"{name} must be {words}, not {value!r}")


def token_ids(ids: Iterable[object]) -> tuple[int, ...]:
    """The ids as Python's own numbers: the engine hashes, compares and packs them. Raises InvalidSampling."""
    try:
        known = tuple(ids)
    except TypeError:
        raise InvalidSampling(f"prompt_ids must be a list of token ids, not {ids!r}") from None
    if set(map(type, known)) <= {int}:  # in a tenth of the time that a look at each takes
        return known  # type: ignore[return-value]
    return tuple(map(_token_id, known))


def _token_id(token: object) -> int:
    try:
        if not isinstance(token, bool):
            return operator.index(token)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InvalidSampling(f"prompt_ids must hold token ids, whole numbers, not {token!r}")


@dataclass(frozen=True, slots=True)
class Update:
    """What one step brought for one reply. `finished` holds the whole reply when it ended.

    `first` comes with the first token: what is known then of prompt, prefix cache and prefill.
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    finished: CompletionOutput | None = None
    last: bool = False  # nothing more will come for this request
    first: RequestMetrics | None = None

"""What goes into the engine and what a step brings back, as frozen dataclasses. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nanochat.engine.outputs import CompletionOutput, RequestMetrics
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import next_request_id


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete. Lower `priority` numbers go first."""

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    request_id: str = field(default_factory=next_request_id)


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

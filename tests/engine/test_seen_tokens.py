"""Penalties over tokens that are counted as they come: the numbers are those of counting anew, and no token is read twice."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import torch

from nanochat.engine.adjustment import adjust
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import Sequence

VOCABULARY = 60
WISHES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.25},
    {},
    {"repetition_penalty": 0.8, "frequency_penalty": -1.5, "logit_bias": {3: 2.0}},
]


def sequence(prompt: list[int], wish: dict[str, Any]) -> Sequence:
    made = Sequence(
        request_id="r", index=0, prompt=tuple(prompt), params=SamplingParams(**wish).resolved({}), seed=1, priority=0,
        arrival=0, submitted=0.0, max_tokens=500, root=b"", eos_ids=frozenset(),
    )  # fmt: skip
    made.pending = 1
    return made


def counted_anew(logits: torch.Tensor, batch: list[Sequence]) -> torch.Tensor:
    bent = logits.double()
    for row, each in enumerate(batch):
        params = each.params
        for token, bias in (params.logit_bias or {}).items():
            bent[row, token] += bias
        for token in set(each.tokens):
            value, penalty = bent[row, token], params.repetition_penalty or 1.0
            bent[row, token] = value * penalty if value < 0 else value / penalty
        for token, count in Counter(each.output_ids).items():
            bent[row, token] -= params.presence_penalty + params.frequency_penalty * count
    return bent.float()


def test_what_is_counted_as_tokens_come_is_what_counting_anew_gives() -> None:
    """Rows come, change their places, rest for some steps, and get several tokens at once, as after a pause."""
    draw = random.Random(4)
    batch = [
        sequence(draw.choices(range(VOCABULARY), k=5 + 9 * i), wish) for i, wish in enumerate(WISHES * 2)
    ]
    for step in range(60):
        rows = draw.sample(batch, draw.randint(1, len(batch)))
        logits = torch.randn(len(rows) + 1, VOCABULARY, generator=torch.Generator().manual_seed(step)) * 4
        bent = logits.clone()
        adjust(bent, rows)
        assert torch.allclose(bent, counted_anew(logits, rows), atol=1e-5), step
        for each in batch:
            each.tokens += draw.choices(range(VOCABULARY), k=draw.choice([0, 1, 1, 3]))


def test_a_likeness_whose_tokens_come_later_than_its_prompts_length_counts_the_same() -> None:
    """As other ranks have them: nothing of a prompt is there before it is sent."""
    for wish in WISHES:
        whole = sequence([1, 2, 3, 4, 1], wish)
        likeness = sequence([1, 2, 3, 4, 1], wish)
        likeness.tokens = []
        logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
        adjust(logits.clone(), [likeness])
        likeness.tokens.extend([1, 2, 3])
        adjust(logits.clone(), [likeness])
        for token in (4, 1, 4, 4, 9):
            likeness.tokens.append(token)
        whole.tokens += [4, 4, 9]
        one, other = logits.clone(), logits.clone()
        adjust(one, [whole])
        adjust(other, [likeness])
        assert torch.equal(one, other)


class Watched(list[int]):
    """Tokens that tell how many of them were read."""

    read = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.read += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Any:
        self.read += len(self)
        return super().__iter__()


def test_a_step_reads_the_tokens_that_are_new_and_no_others() -> None:
    each = sequence([*range(50)] * 40, {"repetition_penalty": 1.3, "frequency_penalty": 0.5})
    each.tokens = Watched(each.tokens)
    logits = torch.zeros(1, VOCABULARY)
    adjust(logits, [each])
    for _ in range(10):
        each.tokens.append(7)
        each.tokens.read = 0
        adjust(logits, [each])
        assert 1 <= each.tokens.read <= 2

"""Tokens from divided logits are the tokens from whole ones."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat import SamplingParams
from nanochat.engine.parallel.divided_sampler import choose, offer
from nanochat.engine.parallel.shares import vocabulary_share
from nanochat.engine.sampler import Sampled, sample
from nanochat.engine.sequence import Sequence


def sequence(temperature: float, seed: int) -> Sequence:
    params = SamplingParams(temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
    made = Sequence(
        request_id="", index=0, prompt=(1,), params=params, seed=seed, priority=0, arrival=0, submitted=0.0,
        max_tokens=9, root=b"", eos_ids=frozenset(),
    )  # fmt: skip
    made.pending = 1
    return made


def divided(logits: torch.Tensor, sequences: list[Sequence], ranks: int) -> Sampled:
    shares = [vocabulary_share(logits.shape[1], rank, ranks) for rank in range(ranks)]
    return choose(torch.stack([offer(logits[:, s], sequences, s.start) for s in shares]))


@given(
    size=st.integers(1, 300),
    ranks=st.integers(1, 9),
    temperatures=st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5]), min_size=1, max_size=4),
    seed=st.integers(0, 2**64 - 1),
)
def test_divided_logits_give_the_tokens_of_whole_ones(size, ranks, temperatures, seed) -> None:
    sequences = [sequence(temperature, seed + row) for row, temperature in enumerate(temperatures)]
    generator = torch.Generator().manual_seed(seed % 2**63)
    # Few different values: most largest ones are there several times, on several ranks.
    logits = torch.randint(-3, 3, (len(sequences), size), generator=generator).float()
    found = divided(logits, sequences, ranks)
    assert found.ids.tolist() == sample(logits.clone(), sequences).ids.tolist()
    assert found.finite.all()


def test_a_number_that_is_none_is_seen_wherever_it_lies() -> None:
    sequences = [sequence(0.0, 1), sequence(1.0, 2), sequence(1.0, 3)]
    logits = torch.zeros(3, 7)
    logits[0, 6], logits[1, 0] = torch.nan, torch.inf
    assert divided(logits, sequences, 3).finite.tolist() == [False, False, True]

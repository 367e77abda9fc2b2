"""The sampler against Transformers' processors, and its promises about randomness."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nanochat.engine.sampler import gumbel_noise, keep, noise_word, reply_seed, sample, uniform
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import Sequence

VOCABULARY = 1000


def sequence(prompt=(1, 2, 3), output=(), seed: int = 1, **params) -> Sequence:
    made = Sequence(
        request_id="r", index=0, prompt=tuple(prompt), params=SamplingParams(**params).resolved({}), seed=seed,
        priority=0, arrival=0, submitted=0.0, max_tokens=100, root=b"", eos_ids=frozenset({7}),
    )  # fmt: skip
    made.tokens += output
    made.pending = 1
    return made


def logits(rows: int = 1, spread: float = 4.0, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


@settings(max_examples=80)
@given(
    temperature=st.floats(0.1, 3.0),
    top_k=st.one_of(st.just(0), st.integers(1, VOCABULARY + 5)),
    top_p=st.floats(0.01, 1.0),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
    spread=st.floats(0.1, 8.0),
    seed=st.integers(0, 1000),
)
def test_the_kept_tokens_are_those_of_transformers(temperature, top_k, top_p, min_p, spread, seed) -> None:
    row = logits(spread=spread, seed=seed)
    expected = TemperatureLogitsWarper(temperature)(None, row)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    values, ids = keep(row / temperature, [top_k], [top_p], [min_p])
    kept = set(ids[0, values[0] > -math.inf].tolist())
    wanted = set((expected[0] > -math.inf).nonzero()[:, 0].tolist())
    # Sums taken in another order may differ in the last bits, so the token on the nucleus' very edge may too, and of the
    # unlikeliest tokens, where a whole row of them weighs as much as those bits, some.
    edge = sorted(kept ^ wanted)
    weight = (row.double() / temperature).softmax(dim=-1)[0, edge].sum()
    assert not edge or top_p < 1.0
    assert len(edge) <= 1 or weight < 1e-5
    assert values[0, 0] == (row / temperature).max()


def test_greedy_is_the_likeliest_token() -> None:
    rows = logits(3)
    assert sample(rows.clone(), [sequence(temperature=0.0)] * 3).ids.tolist() == rows.argmax(-1).tolist()


@pytest.mark.parametrize("output", [[], [5, 5, 9]])
def test_penalties_are_those_of_transformers_and_openai(output: list[int]) -> None:
    row = logits()
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[1, 2, 3, *output]]), row.clone())
    for token in set(output):
        expected[0, token] -= 0.5 + 0.25 * output.count(token)
    seen = row.clone()
    params = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    sample(seen, [sequence(output=output, temperature=0.0, **params)])
    assert torch.allclose(seen, expected, atol=1e-6)


def test_logit_bias_forces_and_bans() -> None:
    row = logits()
    assert sample(row.clone(), [sequence(temperature=0.0, logit_bias={11: 100.0})]).ids.tolist() == [11]
    best = int(row.argmax())
    assert sample(row.clone(), [sequence(temperature=0.0, logit_bias={best: -100.0})]).ids.tolist() != [best]


def test_no_end_before_min_tokens() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 7], row[0, 8] = 50.0, 40.0
    params = {"temperature": 0.0, "min_tokens": 2, "max_tokens": 9, "stop_token_ids": (8,)}
    assert sample(row.clone(), [sequence(output=[1], **params)]).ids.item() not in (7, 8)
    assert sample(row.clone(), [sequence(output=[1, 1], **params)]).ids.item() == 7


def test_a_row_draws_the_same_token_alone_and_in_any_batch() -> None:
    rows = logits(6, spread=1.0)
    kinds = [
        {"temperature": 1.0}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 40}, {"temperature": 1.2, "top_p": 0.9},
        {"min_p": 0.1}, {"temperature": 2.0, "top_k": 300, "top_p": 0.99, "min_p": 0.01},
    ]  # fmt: skip
    batch = [sequence(seed=i, output=[1] * i, **kind) for i, kind in enumerate(kinds)]
    together = sample(rows.clone(), batch).ids.tolist()
    alone = [sample(rows[i : i + 1].clone(), [s]).ids.item() for i, s in enumerate(batch)]
    assert together == alone
    order = [3, 0, 5, 1, 4, 2]
    shuffled = sample(rows[order].clone(), [batch[i] for i in order]).ids.tolist()
    assert shuffled == [together[i] for i in order]


def test_draws_follow_the_distribution() -> None:
    row = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5, -40.0]])
    draws = 100_000
    words = torch.tensor([[w & 0xFFFFFFFF, w >> 32] for w in (noise_word(3, i) for i in range(draws))])
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    noise = gumbel_noise(words, torch.arange(6, dtype=torch.int32)[None])
    counts = torch.bincount((row + noise).argmax(-1), minlength=6).double()
    expected = torch.softmax(row[0].double(), -1) * draws
    chi_square = (((counts - expected) ** 2) / expected)[:5].sum()
    assert counts[5] == 0
    assert chi_square < 23.5, f"chi-square {chi_square:.1f} with 4 degrees of freedom: p < 1e-4"


def test_the_noise_is_what_the_kernels_are_told_it_is() -> None:
    def fmix32(h: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
        return h ^ (h >> 16)

    word = noise_word(42, 5)
    low, high = word & 0xFFFFFFFF, word >> 32
    for token in (0, 1, 77, 49151, 151935):
        h = fmix32((fmix32(token ^ low) + high) & 0xFFFFFFFF)
        drawn = ((h >> 9) + 0.5) * 2.0**-23
        signed = torch.tensor([[x - 2**32 if x >= 2**31 else x for x in (low, high)]], dtype=torch.int32)
        got = gumbel_noise(signed, torch.tensor([[token]], dtype=torch.int32)).item()
        assert got == pytest.approx(-math.log(-math.log(drawn)), rel=1e-4, abs=1e-5)


def test_no_noise_is_ever_infinite() -> None:
    """A uniform that rounds to 1 would make its token win whatever its logit: once in a hundred draws of 150,000 tokens."""
    extremes = uniform(torch.tensor([0, -1, 2**31 - 1, -(2**31)], dtype=torch.int32))
    assert ((extremes > 0) & (extremes < 1)).all()
    assert torch.log(-torch.log(extremes)).isfinite().all()


def test_replies_of_one_request_have_different_seeds_and_the_first_has_the_requests_own() -> None:
    seeds = [reply_seed(5, index) for index in range(128)]
    assert seeds[0] == 5 and len(set(seeds)) == 128


def test_logprobs_are_those_of_the_raw_logits() -> None:
    rows = logits(2)
    raw = torch.log_softmax(rows, -1)
    drawn = sample(
        rows.clone(), [sequence(logprobs=3, temperature=0.5, top_k=5), sequence(logprobs=0, seed=9)]
    )
    told = drawn.logprobs
    assert told is not None
    for row in range(2):
        token = drawn.ids[row]
        assert told.chosen[row] == raw[row, token]
        assert told.rank[row] == (raw[row] > raw[row, token]).sum() + 1
    assert told.top_ids[0].tolist() == raw[0].topk(3).indices.tolist()


def test_nan_and_inf_rows_are_flagged() -> None:
    rows = logits(3)
    rows[0, 5], rows[2, 6] = math.nan, math.inf
    assert sample(rows, [sequence(temperature=0.0)] * 3).finite.tolist() == [False, True, False]

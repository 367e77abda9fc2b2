"""Drawing for requests that want more than their seats' parameters say, in the interpreter: as the host's sampler does it, row by row."""

from __future__ import annotations

import math

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from torch import Tensor

from nanochat.engine.adjusted_sampler import sample_adjusted, sample_newcomers
from nanochat.engine.sampler import Sampled, sample
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import Sequence
from nanochat.kernels.triton_sampling import SamplingRows

VOCABULARY, END = 331, 7
WISHES = [
    {"temperature": 0.0}, {"temperature": 0.9, "logprobs": 4}, {"temperature": 0.0, "repetition_penalty": 1.8},
    {"temperature": 1.1, "presence_penalty": 1.5, "frequency_penalty": 0.5, "top_k": 20, "logprobs": 0},
    {"temperature": 0.7, "logit_bias": {3: 20.0, 5: -100.0, 9999: 5.0}, "top_p": 0.9}, {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.0, "min_tokens": 50, "max_tokens": 60, "stop_token_ids": (8, 9), "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 0.7, "presence_penalty": -2.0, "logit_bias": {END: 30.0}, "logprobs": 9},
]  # fmt: skip


def sequences() -> list[Sequence]:
    made: list[Sequence] = []
    for seed, wish in enumerate(WISHES):
        sequence = Sequence(
            request_id=str(seed), index=0, prompt=(1, 2, 3), params=SamplingParams(**wish).resolved({}), seed=2**62 + seed,
            priority=0, arrival=0, submitted=0.0, max_tokens=100, root=b"", eos_ids=frozenset({END, VOCABULARY + 4}),
        )  # fmt: skip
        sequence.tokens += [5, 5, 90 + seed]
        sequence.pending = 1
        made.append(sequence)
    return made


def rows_of(batch: list[Sequence], padding: int = 0) -> SamplingRows:
    params = [s.params for s in batch] + [SamplingParams(temperature=0.0)] * padding
    return SamplingRows(
        temperature=torch.tensor([p.temperature or 0.0 for p in params]),
        top_k=torch.tensor([p.top_k or 0 for p in params], dtype=torch.int32),
        top_p=torch.tensor([1.0 if p.top_p is None else p.top_p for p in params]),
        min_p=torch.tensor([p.min_p or 0.0 for p in params]),
        seed=torch.tensor([s.seed for s in batch] + [0] * padding),
        counter=torch.tensor([s.counter for s in batch] + [0] * padding),
    )


def draw(logits: Tensor, batch: list[Sequence], padding: int = 0, steady: bool = False) -> Sampled:
    return sample_adjusted(logits.clone(), rows_of(batch, padding), batch, steady=steady)


def drawn_logits(seed: int, rows: int = len(WISHES)) -> Tensor:
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, (5, END, 8)] = logits.max() + torch.tensor(
        [0.25, 0.5, 0.75]
    )  # what is banned, penalised and biased would be drawn
    return logits


def told(drawn: Sampled, row: int, wanted: int) -> tuple[float, int, list[float], list[int]]:
    found = drawn.logprobs
    assert found is not None
    top, ids = found.top[row, :wanted].tolist(), found.top_ids[row, :wanted].tolist()
    return found.chosen[row].item(), int(found.rank[row]), top, ids


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_every_row_gets_what_the_hosts_sampler_gives_it_alone(padding: int, steady: bool) -> None:
    batch = sequences()
    for seed in range(4):
        logits = drawn_logits(seed, len(batch) + padding)
        together = draw(logits, batch, padding, steady)
        assert together.ids.shape == (len(batch) + padding,) and together.finite.all()
        for row, sequence in enumerate(batch):
            alone = sample(logits[row : row + 1].clone(), [sequence])
            assert together.ids[row] == alone.ids[0], (seed, row)
            wanted = sequence.params.logprobs
            if wanted is not None:
                for one, other in zip(told(together, row, wanted), told(alone, 0, wanted), strict=True):
                    assert one == pytest.approx(other)


@pytest.mark.parametrize("steady", [False, True])
def test_sequences_without_rows_on_the_device_are_drawn_as_those_with_rows(steady: bool) -> None:
    batch = sequences()
    batch[1].seed = 2**64 - 3
    for seed in range(4):
        logits = drawn_logits(seed)
        logits[4, ::5] = math.nan
        rows = rows_of(batch[:1] + batch[2:])
        first = sample_newcomers(logits.clone(), batch, steady=steady)
        others = [row for row in range(len(batch)) if row != 1]
        second = sample_adjusted(logits[others], rows, [batch[row] for row in others], steady=steady)
        assert torch.equal(first.ids[others], second.ids) and torch.equal(first.finite[others], second.finite)
        assert first.ids[1] == sample(logits[1:2].clone(), batch[1:2]).ids[0]
        for row, sequence in enumerate(batch):
            wanted = sequence.params.logprobs
            if wanted is not None and row != 1:
                theirs = told(second, others.index(row), wanted)
                for one, other in zip(told(first, row, wanted), theirs, strict=True):
                    assert one == pytest.approx(other)


def test_a_request_that_wants_nothing_leaves_its_logits_alone() -> None:
    logits, batch = drawn_logits(0), sequences()
    bent = logits.clone()
    sample_adjusted(bent, rows_of(batch), batch, steady=False)
    assert [torch.equal(a, b) for a, b in zip(logits, bent, strict=True)] == [
        True, True, False, False, False, True, False, False,
    ]  # fmt: skip


def test_where_nobody_asks_for_log_probabilities_none_are_computed() -> None:
    batch = [sequence for sequence in sequences() if sequence.params.logprobs is None]
    assert draw(drawn_logits(0, len(batch)), batch).logprobs is None


def test_bits_of_log_probabilities_are_those_of_a_row_alone() -> None:
    """In the deterministic mode; in batches where the row stands elsewhere, and among rows that ask for more."""
    batch, logits = sequences(), drawn_logits(1)
    together = draw(logits, batch, steady=True)
    for row, sequence in enumerate(batch):
        wanted = sequence.params.logprobs
        if wanted is not None:
            alone = draw(logits[row : row + 1], [sequence], steady=True)
            assert told(together, row, wanted) == told(alone, 0, wanted), row


@pytest.mark.parametrize("place", [0, END, VOCABULARY - 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_damaged_rows_are_flagged_though_an_end_is_forbidden_and_others_are_not(
    place: int, value: float
) -> None:
    logits, batch = drawn_logits(2), sequences()
    logits[6, place] = value
    assert draw(logits, batch).finite.tolist() == [row != 6 for row in range(len(batch))]


@pytest.mark.parametrize("penalty", [1e-46, 1e-38, 1e-31, 1e-9])
def test_a_penalty_near_zero_breaks_no_row_and_lets_no_end_come_early(penalty: float) -> None:
    """Logits over it would be infinite, or NaN where they are 0: the model's weights were said to be damaged."""
    wishes = [
        {"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 1.0, "logit_bias": {1: -100.0}, "presence_penalty": 2.0},
    ]  # fmt: skip
    batch = sequences()[: len(wishes)]
    for sequence, wish in zip(batch, wishes, strict=True):
        params = {"repetition_penalty": penalty, "min_tokens": 50, "max_tokens": 60, "stop_token_ids": (8,)}
        sequence.params = SamplingParams(**params, **wish).resolved({})
        sequence.tokens.append(8)
    logits = drawn_logits(3, len(batch))
    logits[:, 2] = 0.0
    on_host = sample(logits.clone(), batch)
    drawn = draw(logits, batch)
    assert drawn.finite.all() and on_host.finite.all()
    assert torch.equal(drawn.ids, on_host.ids)
    for row, sequence in enumerate(batch):
        said = int(drawn.ids[row])
        assert said in sequence.tokens and said not in (8, END), "what was said before is far likelier"
    logits[0, 5] = math.inf
    assert draw(logits, batch).finite.tolist() == [False, True, True, True]

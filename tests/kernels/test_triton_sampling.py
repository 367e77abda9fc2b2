"""Sampling in the interpreter against sorting in float64, and the hand-over to the next step."""

from __future__ import annotations

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
import triton
import triton.language as tl
from sampling_cases import Rows, make_rows

from nanochat.engine.sampler import gumbel_noise
from nanochat.engine.sampler import noise_word as host_noise_word
from nanochat.kernels.triton_noise import gumbel, noise_word
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows
from nanochat.kernels.triton_step import DecodeRows, Told, advance, embed

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # integer hashes wrap, -inf minus -inf is masked
]


def on_device(rows: Rows) -> SamplingRows:
    return SamplingRows(
        torch.tensor(rows.temperature), torch.tensor(rows.top_k, dtype=torch.int32), torch.tensor(rows.top_p),
        torch.tensor(rows.min_p), torch.tensor(rows.seed), torch.tensor(rows.counter),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("vocab", "count", "spread", "steps"),
    [(50, 16, 3.0, 0), (1000, 12, 3.0, 0), (700, 24, 1.0, 1), (5000, 8, 0.5, 4)],
)
def test_the_drawn_token_is_the_one_that_sorting_finds(
    vocab: int, count: int, spread: float, steps: int
) -> None:
    rows = make_rows(count, vocab, seed=vocab, spread=spread, steps=steps)
    ids, finite = sample_rows(rows.logits, on_device(rows))
    assert finite.all()
    assert [row for row, token in enumerate(ids.tolist()) if not rows.accepts(row, token)] == []


def test_top_k_one_and_temperature_zero_take_the_first_of_the_largest() -> None:
    logits = torch.zeros(2, 100)
    logits[:, [40, 70]] = 5.0
    rows = Rows(logits, [0.0, 1.0], [0, 1], [1.0, 1.0], [0.0, 0.0], [1, 2], [3, 4])
    assert sample_rows(logits, on_device(rows))[0].tolist() == [40, 40]


def test_without_filters_the_best_noisy_token_of_all_is_drawn() -> None:
    rows = make_rows(6, 1000, seed=9)
    rows.top_k, rows.top_p, rows.min_p = [0] * 6, [1.0] * 6, [0.0] * 6
    ids, _ = sample_rows(rows.logits, on_device(rows))
    assert all(rows.accepts(row, token) for row, token in enumerate(ids.tolist()))


@triton.jit
def _noise(seed, counter, out_ptr, N: tl.constexpr):
    token = tl.arange(0, N)
    low, high = noise_word(tl.load(seed), tl.load(counter))
    tl.store(out_ptr + token, gumbel(token, low, high))


def test_the_noise_is_the_host_samplers() -> None:
    seed, counter = 2**62 + 12345, 77
    out = torch.empty(65536)
    _noise[(1,)](torch.tensor([seed]), torch.tensor([counter]), out, N=65536)
    word = host_noise_word(seed, counter)
    halves = torch.tensor([[word & 0xFFFFFFFF, word >> 32]])
    words = torch.where(halves >= 2**31, halves - 2**32, halves).to(torch.int32)
    # The largest values tell how many bits the uniform number has: they come from its ends.
    assert torch.allclose(
        out, gumbel_noise(words, torch.arange(65536, dtype=torch.int32)[None])[0], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_row_with_nan_or_inf_is_flagged_and_no_other(poison: float) -> None:
    rows = make_rows(4, 300, seed=6)
    rows.logits[1, 0] = rows.logits[3, 299] = poison
    ids, finite = sample_rows(rows.logits, on_device(rows))
    assert finite.tolist() == [True, False, True, False]
    assert ids[1] == ids[3] == 0


def test_a_step_begins_with_embedded_rows_and_their_angles() -> None:
    table, frequencies = torch.randn(20, 30), torch.rand(2, 6)
    ids, positions = torch.tensor([3, 19, 0]), torch.tensor([0, 7, 100])
    x, cos, sin = embed(ids, positions, table, frequencies, scale=2.0, factor=0.5)
    assert torch.equal(x, table[ids] * 2.0)
    angle = positions.float()[None, :, None] * frequencies[:, None]
    assert torch.allclose(cos, angle.cos() * 0.5, atol=1e-6) and torch.allclose(
        sin, angle.sin() * 0.5, atol=1e-6
    )


def test_a_row_moves_on_until_a_stop_or_nan() -> None:
    tables = torch.arange(5 * 4, dtype=torch.int32).view(5, 4)
    rows = DecodeRows(
        ids=torch.zeros(5, dtype=torch.int64), positions=torch.tensor([15, 3, 7, 5, 0]),
        context_lens=torch.tensor([16, 4, 8, 6, 0], dtype=torch.int32), slots=torch.tensor([15, 67, 135, 197, -1]),
        block_tables=tables, counter=torch.tensor([1, 2, 3, 4, 5]),
        stop_ids=torch.tensor([[9, -1], [9, 8], [11, -1], [-1, -1], [-1, -1]], dtype=torch.int32),
    )  # fmt: skip
    told = Told(torch.zeros(3, 6, dtype=torch.int64), torch.tensor([7]))
    advance(rows, torch.tensor([11, 8, 11, 0, 11]), torch.tensor([True, True, True, False, True]), told)
    assert told.ring.tolist() == [[0] * 6, [7, 11, 8, 11, -1, 11], [0] * 6] and told.turn == 8
    assert rows.context_lens.tolist() == [17, 0, 0, 0, 0]
    assert rows.slots.tolist() == [1 * 16, -1, -1, -1, -1]
    assert rows.ids.tolist() == [11, 0, 0, 0, 0] and rows.positions.tolist() == [16, 3, 7, 5, 0]
    assert rows.counter.tolist() == [2, 3, 4, 5, 5]

"""Sampling on a GPU against sorting in float64, and the hand-over to the next step."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from sampling_cases import Rows, make_rows

from nanochat.kernels.triton_sampling import SamplingRows, _choose, _scan, sample_rows

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


def on_device(rows: Rows) -> SamplingRows:
    def tensor(values: list[float] | list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device="cuda")

    return SamplingRows(
        tensor(rows.temperature, torch.float32), tensor(rows.top_k, torch.int32), tensor(rows.top_p, torch.float32),
        tensor(rows.min_p, torch.float32), tensor(rows.seed, torch.int64), tensor(rows.counter, torch.int64),
    )  # fmt: skip


@pytest.mark.parametrize("vocab", [50, 1000, 32000, 151936, 262144])
@pytest.mark.parametrize(
    ("count", "spread", "steps"), [(24, 3.0, 0.0), (3, 3.0, 0.0), (24, 2.0, 8.0), (12, 0.3, 0.0)]
)
def test_the_drawn_token_is_the_one_that_sorting_finds(
    vocab: int, count: int, spread: float, steps: float
) -> None:
    rows = make_rows(count, vocab, seed=vocab + count, spread=spread, steps=steps, device="cuda")
    ids, finite = sample_rows(rows.logits, on_device(rows))
    assert finite.all()
    wrong = [row for row, token in enumerate(ids.tolist()) if not rows.accepts(row, token, 1e-5)]
    assert not wrong, [(r, rows.temperature[r], rows.top_k[r], rows.top_p[r], rows.min_p[r]) for r in wrong]


def test_a_row_draws_the_same_token_whatever_is_beside_it() -> None:
    rows = make_rows(32, 151936, seed=5, device="cuda")
    ids, _ = sample_rows(rows.logits, on_device(rows))
    for row in range(0, 32, 5):
        alone = Rows(rows.logits[row : row + 1], *([field[row]] for field in (
            rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.counter)))  # fmt: skip
        assert sample_rows(alone.logits, on_device(alone))[0].tolist() == [int(ids[row])]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_row_with_nan_or_inf_is_flagged_and_no_other(poison: float) -> None:
    rows = make_rows(6, 151936, seed=6, device="cuda")
    clean, _ = sample_rows(rows.logits, on_device(rows))
    rows.logits[1, 0] = rows.logits[4, 151935] = rows.logits[5, 70000] = poison
    ids, finite = sample_rows(rows.logits, on_device(rows))
    assert finite.tolist() == [True, False, True, True, False, False]
    assert ids[[0, 2, 3]].tolist() == clean[[0, 2, 3]].tolist()
    assert all(0 <= token < 151936 for token in ids.tolist())


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    draws = 40000
    logits = probabilities.log().cuda().repeat(draws, 1)
    rows = SamplingRows(
        torch.ones(draws, device="cuda"), torch.zeros(draws, dtype=torch.int32, device="cuda"),
        torch.ones(draws, device="cuda"), torch.zeros(draws, device="cuda"),
        torch.full((draws,), 7, device="cuda"), torch.arange(draws, device="cuda"),
    )  # fmt: skip
    ids, _ = sample_rows(logits, rows)
    share = torch.bincount(ids.cpu(), minlength=4) / draws
    assert (share - probabilities).abs().max() < 0.01


def test_what_one_newcomer_brings_needs_no_kernel_of_its_own() -> None:
    """Its numbers are views of one message, which begin anywhere: else a first token waits seconds for the compiler."""

    def compiled() -> int:
        return sum(len(kinds) for kernel in (_scan, _choose) for kinds, *_ in kernel.device_caches.values())

    def draw(first: int) -> None:
        whole = torch.zeros(3, 2 + first, dtype=torch.int64, device="cuda")[:, first : first + 1]
        real = torch.ones(3, 2 + first, device="cuda")[:, first : first + 1]
        sample_rows(logits, SamplingRows(real[0], whole[0].int(), real[1], 0 * real[2], whole[1], whole[2]))

    logits = torch.randn(1, 1000, device="cuda")
    draw(0)
    before = compiled()
    for first in range(1, 4):
        draw(first)
    assert compiled() == before

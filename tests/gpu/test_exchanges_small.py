"""Each kernel between ranks once in its smallest shape, for compute-sanitizer, as `test_kernels_small` has all others.

All ranks are in this process, over one device: everybody sends before one receives. Where there is no GPU they run in
Triton's interpreter.
"""

from __future__ import annotations

import pytest
import torch
from attention_cases import relative_error
from chip import DEVICE, DTYPE, MARKS, PDL, TOLERANCE
from sampling_cases import make_rows

from nanochat.kernels.gemv_config import GemvConfig
from nanochat.kernels.triton_divided import choose_rows, offer_rows
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_one_shot import OneShot, inbox_bytes
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows
from nanochat.kernels.triton_wide_sum import WideSum, wide_bytes

pytestmark = MARKS
RANKS, ROWS, WIDTH, LOOKS = 3, 5, 96, 3


class Ranks:
    """The ends of all ranks, and an inbox each: wide sums behind those in one shot."""

    def __init__(self) -> None:
        begin, size = inbox_bytes(RANKS, ROWS, WIDTH), wide_bytes(RANKS, ROWS, 2 * WIDTH)
        self._memory = [torch.zeros(begin + size, dtype=torch.int8, device=DEVICE) for _ in range(RANKS)]
        inboxes = [memory.data_ptr() for memory in self._memory]
        self.small = [OneShot(inboxes, rank, ROWS, WIDTH, DEVICE, LOOKS) for rank in range(RANKS)]
        self.wide = [
            WideSum([inbox + begin for inbox in inboxes], ROWS, 2 * WIDTH, end) for end in self.small
        ]


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DTYPE)


def normed(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x.double(), (WIDTH,), eps=1e-5)


@pytest.mark.parametrize("way", ["one shot", "wide", "without flags", "two shots"])
def test_sums_with_residual_and_norm(way: str, ranks: Ranks) -> None:
    for rows in (ROWS, 2, ROWS):
        deltas, x = numbers(RANKS, rows, WIDTH), numbers(rows, WIDTH)
        there, residual = deltas.to(DEVICE), x.to(DEVICE)
        weight = torch.ones(WIDTH, dtype=DTYPE, device=DEVICE)
        ends = ranks.small if way == "one shot" else ranks.wide
        for end in ranks.wide:
            end.flagless, end.two_shots = ROWS * (way == "without flags"), int(way == "two shots")
        first = {"own": False} if way == "two shots" else {}
        for end, delta in zip(ends, there, strict=True):
            end._launch(delta, None, None, 0.0, receive=False, **first)
        later = {"receive": False} if way == "two shots" else {}
        found = [
            end._launch(delta, residual, weight, 1e-5, send=False, **later)
            for end, delta in zip(ends, there, strict=True)
        ]
        expected = x.double() + deltas.double().sum(0)
        for end, delta, (norm, total) in zip(ends, there, found, strict=True):
            if way == "two shots":
                others = torch.arange(rows, device=DEVICE) % RANKS != end.rank
                rest = end._launch(delta, residual, weight, 1e-5, send=False, own=False)
                norm[others], total[others] = rest[0][others], rest[1][others]
            assert relative_error(total.cpu(), expected) <= TOLERANCE
            assert relative_error(norm.cpu(), normed(expected)) <= TOLERANCE
    assert not any(end.failed.item() for end in ranks.small)


def test_gathered_words(ranks: Ranks) -> None:
    parts = torch.arange(RANKS * 6, dtype=torch.int32).view(RANKS, 2, 3)
    for end, part in zip(ranks.small, parts.to(DEVICE), strict=True):
        end._launch_gather(part, receive=False)
    for end, part in zip(ranks.small, parts.to(DEVICE), strict=True):
        assert torch.equal(end._launch_gather(part, send=False).cpu(), parts)


def test_products_that_send_their_results(ranks: Ranks) -> None:
    inputs, weights, x = numbers(RANKS, 1, 64), numbers(RANKS, WIDTH, 64), numbers(1, WIDTH)
    residual, config = x.to(DEVICE), GemvConfig(4, 64)
    for end, row, weight in zip(ranks.small, inputs.to(DEVICE), weights.to(DEVICE), strict=True):
        gemv(row, weight, config=config, pdl=PDL, late=True, to=end.outlet(residual))
    expected = x.double() + sum(
        row.double() @ weight.double().T for row, weight in zip(inputs, weights, strict=True)
    )
    for end in ranks.small:
        assert relative_error(end.collect(residual, pdl=False).cpu(), expected) <= TOLERANCE


def test_the_clock_of_exchanges(ranks: Ranks) -> None:
    delta = numbers(ROWS, WIDTH).to(DEVICE)
    clock = ranks.small[0].clock
    with clock.timed():
        ranks.small[0]._launch(delta, None, None, 0.0, receive=False)
    assert int(clock.nanoseconds.abs().max()) < 10**10


def test_divided_drawing() -> None:
    rows = make_rows(3, 90, seed=7)
    logits = rows.logits.to(DEVICE)
    temperature, seed, counter = (
        torch.tensor(values, dtype=dtype, device=DEVICE)
        for values, dtype in (
            (rows.temperature, torch.float32), (rows.seed, torch.int64), (rows.counter, torch.int64))
    )  # fmt: skip
    none = torch.zeros(3, device=DEVICE)
    unfiltered = SamplingRows(temperature, none.int(), none + 1, none, seed, counter)
    offers = [
        offer_rows(logits[:, first : first + 30], unfiltered, first, pdl=PDL) for first in range(0, 90, 30)
    ]
    ids, finite = choose_rows(torch.stack(offers), pdl=PDL)
    whole, _ = sample_rows(logits, unfiltered, pdl=PDL)
    assert finite.all() and ids.tolist() == whole.tolist()

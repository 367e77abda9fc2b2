"""Wide sums, in the interpreter: all ranks send before one receives, since no two run at once here."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
import triton.language as tl
from rank_ends import CPU, ROWS, UNWRITTEN, WideRanks, numbers

from nanochat.engine.parallel.one_shot import Sums
from nanochat.engine.parallel.trial import Limits
from nanochat.kernels import triton_inbox
from nanochat.kernels.cuda import CudaKernels, Weight
from nanochat.kernels.triton_norm import add_rms_norm
from nanochat.kernels.triton_row_inbox import LINE
from nanochat.kernels.triton_wide_sum import WideSum, wide_bytes, wide_rows


@pytest.mark.parametrize(
    ("ranks", "dtype"),
    [(2, torch.bfloat16), (2, torch.float16), (2, torch.float32), (3, torch.bfloat16), (4, torch.float32)],
)
def test_every_rank_gets_the_sum_with_residual_and_norm(ranks: int, dtype: torch.dtype) -> None:
    """Round after round, of more and of fewer rows, wider and narrower: what an earlier round left is never taken for this one's."""
    group = WideRanks(ranks)
    for seed, (rows, size) in enumerate(((1, 288), (5, 400), (2, 256), (5, 288), (5, 400), (1, 288))):
        width = size // dtype.itemsize
        *deltas, x = numbers(seed, ranks + 1, rows, width, dtype)
        weight = torch.rand(width, generator=torch.Generator().manual_seed(seed)).to(dtype)
        whole = sum(delta.float() for delta in deltas)
        expected = add_rms_norm(whole, x, weight, 1e-5)
        for normed, total in group.add_norm(deltas, x, weight):
            assert torch.equal(total, expected[1])
            assert torch.equal(normed, expected[0])
        sums = group.sum(deltas)
        assert torch.allclose(
            sums[0].float(), whole, rtol=2**-7, atol=0
        )  # the interpreter cuts off to 16 bits
        assert all(torch.equal(total, sums[0]) for total in sums)
    assert not any(end.failed.item() for end in group.ends)


@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.float32), (3, torch.bfloat16), (4, torch.float16)])
def test_in_two_shots_every_rank_gets_the_bits_of_a_wide_sum(ranks: int, dtype: torch.dtype) -> None:
    """Whichever kind the rounds before were, which left their numbers and flags in the same inboxes."""
    group, other = WideRanks(ranks), WideRanks(ranks)
    for seed, (rows, shots) in enumerate(
        ((5, 2), (1, 2), (5, 1), (5, 1), (3, 2), (5, 2), (4, 1), (5, 2), (5, 1))
    ):
        *deltas, x = numbers(seed, ranks + 1, rows, 96, dtype)
        weight = torch.rand(96, generator=torch.Generator().manual_seed(seed)).to(dtype)
        group.take(shots)
        for found, expected in zip(
            group.add_norm(deltas, x, weight), other.add_norm(deltas, x, weight), strict=True
        ):
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        for total, expected in zip(group.sum(deltas), other.sum(deltas), strict=True):
            assert torch.equal(total, expected)
    assert not any(end.failed.item() for end in group.ends)


def test_in_two_shots_a_row_travels_to_its_owner_and_back_alone() -> None:
    group = WideRanks(3)
    group.take(2)
    deltas = numbers(1, 3, 5, 64, torch.float32)
    group.send(deltas)
    for rank, area in enumerate(group.wide):
        written = (area[1, :, :, : -LINE // 4] != UNWRITTEN).any(-1)
        assert written.tolist() == [
            [sender != rank and row % 3 == rank for row in range(5)] for sender in range(3)
        ]
    group.receive(deltas)
    for rank, area in enumerate(group.wide):
        written = (area[1, :, :, : -LINE // 4] != UNWRITTEN).any(-1)
        assert written.tolist() == [
            [sender != rank and row % 3 in (rank, sender) for row in range(5)] for sender in range(3)
        ]
        assert (area[0, ..., : -LINE // 4] == UNWRITTEN).all()


def test_in_two_shots_an_owner_that_misses_a_summand_ends_in_nan_and_tells_the_others_so() -> None:
    group = WideRanks(3)
    group.take(2)
    deltas = numbers(1, 3, 3, 64, torch.bfloat16)
    assert torch.isfinite(group.sum(deltas)[0]).all()
    for end in group.ends[:2]:  # rank 2 is lost
        end._launch(deltas[0], None, None, 0.0, own=False, receive=False)
    for end in group.ends[:2]:
        end._launch(deltas[0], deltas[1], deltas[2][0], 1e-5, send=False, receive=False)
    normed, total = group.ends[0]._launch(deltas[0], deltas[1], deltas[2][0], 1e-5, send=False, own=False)
    assert normed[1].isnan().all() and total[1].isnan().all(), "its owner said so"
    assert normed[2].isnan().all() and total[2].isnan().all(), "its owner is lost"
    assert [end.failed.item() for end in group.ends] == [1, 1, 0]


@pytest.mark.parametrize(
    ("ranks", "dtype"), [(2, torch.bfloat16), (2, torch.float32), (3, torch.float32), (4, torch.float16)]
)
def test_without_flags_every_rank_gets_the_bits_of_a_wide_sum(ranks: int, dtype: torch.dtype) -> None:
    """Zeros of either sign too, which stand for what has not come; and whichever kind the rounds before were."""
    group, other = WideRanks(ranks), WideRanks(ranks)
    for seed, rows in enumerate((1, 5, 5, 3, 5, 1, 2, 5)):
        *deltas, x = numbers(seed, ranks + 1, rows, 96, dtype)
        deltas[0][:, :9], deltas[1][:, 5:14], deltas[1][0] = 0.0, -0.0, 0.0
        weight = torch.rand(96, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for end in group.ends:
            end.flagless = 0 if seed == 3 else ROWS
        for found, expected in zip(
            group.add_norm(deltas, x, weight), other.add_norm(deltas, x, weight), strict=True
        ):
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        for total, expected in zip(group.sum(deltas), other.sum(deltas), strict=True):
            assert torch.equal(total, expected) and torch.equal(total.signbit(), expected.signbit())
        assert not any(area.any() for area in group.flagless), "whoever reads a row empties its place"
    assert not any(end.failed.item() for end in group.ends)
    assert group.ends[0]._flagless_rounds.any() and group.ends[0]._rounds.tolist() == [2, 2, 2, 0, 0]


def test_without_flags_a_row_of_which_one_number_is_missing_ends_in_nan() -> None:
    group = WideRanks(3)
    for end in group.ends:
        end.flagless = ROWS
    deltas = numbers(1, 3, 2, 64, torch.bfloat16)
    assert torch.isfinite(group.sum(deltas)[0]).all()
    group.send(deltas)
    words = group.flagless[0].view(torch.int16)
    (written,) = words.nonzero(as_tuple=True)
    words[written[70]] = 0  # of the second row that came
    normed, total = group.ends[0]._launch(deltas[0], deltas[1], deltas[2][0], 1e-5, send=False)
    assert total.isnan().all(dim=1).tolist() == normed.isnan().all(dim=1).tolist() == [False, True]
    assert group.ends[0].failed.item() == 1 and group.ends[1].failed.item() == 0
    assert group.ends[0].sum(deltas[0]).isnan().all(), "nobody is waited for again"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_has_the_bits_of_a_sum_in_one_shot_and_leaves_its_inbox_alone(dtype: torch.dtype) -> None:
    group = WideRanks(3)
    for seed in range(4):
        *deltas, x = numbers(seed, 4, ROWS, 96, dtype)
        for end, delta in zip(group.small, deltas, strict=True):
            end._launch(delta, None, None, 0.0, receive=False)
        wide = group.add_norm([-delta for delta in deltas], -x, x[0])  # between sending and receiving
        for end, delta, pair in zip(group.small, deltas, wide, strict=True):
            normed, total = end._launch(delta, x, x[0], 1e-5, send=False)
            assert torch.equal(-total, pair[1]) and torch.equal(-normed, pair[0])


@pytest.mark.parametrize(("rows", "shots"), [(4, 1), (5, 1), (6, 1), (13, 1), (13, 2)])
def test_what_an_inbox_has_no_room_for_goes_in_several_launches(rows: int, shots: int) -> None:
    """Of one rank, which waits for nobody: no two run at once here."""
    group = WideRanks(1)
    group.take(shots)
    delta, x = numbers(rows, 2, rows, 96, torch.float32)
    weight = torch.rand(96, generator=torch.Generator().manual_seed(rows))
    end = group.ends[0]
    normed, total = end.add_norm(delta, x, weight, 1e-5)
    expected = add_rms_norm(delta, x, weight, 1e-5)
    assert torch.equal(total, expected[1]) and torch.equal(normed, expected[0])
    assert torch.equal(end.sum(delta.view(1, rows, 96)), delta.view(1, rows, 96))
    launches = [2 * sum(row + first < rows for first in range(0, rows, ROWS)) for row in range(ROWS)]
    assert end._rounds.tolist() == launches


def test_an_inbox_of_wide_rows_or_many_ranks_is_made_for_fewer() -> None:
    assert wide_rows(2, 8192) == wide_rows(4, 8192) == 2048
    assert wide_rows(8, 8192) == wide_rows(4, 16384) == 1024
    assert wide_rows(8, 65536) == 512, "at least"
    assert all(wide_bytes(ranks, wide_rows(ranks, 8192), 8192) <= 240 << 20 for ranks in range(2, 9))


@pytest.mark.parametrize("shots", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 3, 13])
def test_an_exchange_is_timed_from_its_first_row_to_its_last(
    rows: int, shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock tells how many rows are through: rows do not run all at once, as those of a prompt."""
    group = WideRanks(1)
    group.take(shots)
    end = group.ends[0]
    monkeypatch.setattr(triton_inbox, "clock", lambda compiled: tl.full([], int(end._rounds.sum()), tl.int64))
    for turn in (1, 2):
        end.sum(torch.ones(rows, 64))
        assert group.small[0].clock.nanoseconds.item() == turn * rows


def test_who_asks_in_the_middle_of_an_exchange_is_told_what_was_found_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = WideRanks(1).small[0].clock
    found = iter([5 * 10**9, -(2**60), -(2**60), 7 * 10**9, *[-1] * 1000])
    monkeypatch.setattr(clock, "_ask", lambda: next(found))
    assert [clock.seconds() for _ in range(3)] == [5.0, 7.0, 7.0]


def test_nothing_is_written_beside_a_row_and_its_flag() -> None:
    group = WideRanks(2)
    group.send(numbers(1, 2, 2, 72, torch.bfloat16))
    for rank, area in enumerate(group.wide):
        theirs = area[1, 1 - rank, :2]  # the first round is an odd one
        assert (theirs[:, -LINE // 4] == 1).all() and (theirs[:, : 72 * 2 // 4] != UNWRITTEN).all()
        area[1, 1 - rank, :2, : 72 * 2 // 4] = UNWRITTEN
        area[1, 1 - rank, :2, -LINE // 4] = 0
        assert (area[..., : -LINE // 4] == UNWRITTEN).all() and (area[..., -LINE // 4 :] == 0).all()


def test_a_peer_that_sends_nothing_ends_in_nan_and_is_not_waited_for_again() -> None:
    group = WideRanks(3)
    deltas = numbers(1, 3, 2, 64, torch.bfloat16)
    for _ in range(3):  # so that flags were raised in both halves
        assert torch.isfinite(group.sum(deltas)[0]).all()
    for end in group.ends[:2]:  # rank 2 is lost
        end._launch(deltas[0], None, None, 0.0, receive=False)
    first = group.ends[0]
    normed, total = first._launch(deltas[0], deltas[1], deltas[2][0], 1e-5, send=False)
    assert normed.isnan().all() and total.isnan().all()
    assert first.failed.item() == 1 and group.ends[1].failed.item() == 0
    first.looks = 1 << 40
    assert first.sum(deltas[0]).isnan().all()
    assert group.small[0].sum(deltas[0]).isnan().all(), "whoever sums in one shot knows too"


def test_who_was_told_that_a_peer_is_lost_does_not_sum_even_what_is_there() -> None:
    group = WideRanks(2)
    deltas = numbers(1, 2, 2, 64, torch.float32)
    group.send(deltas)
    group.ends[0].failed.fill_(1)
    assert group.ends[0]._launch(deltas[0], None, None, 0.0, send=False)[0].isnan().all()
    assert torch.equal(
        group.ends[1]._launch(deltas[1], None, None, 0.0, send=False)[0], deltas[0] + deltas[1]
    )


def test_what_does_not_fit_into_an_inbox_is_not_taken() -> None:
    end = WideRanks(2).ends[0]
    assert end.takes(torch.empty(5, 100)) and end.takes(torch.empty(5, 200, dtype=torch.bfloat16))
    assert end.takes(torch.empty(1, 5, 64))
    assert end.takes(torch.empty(6, 96)), "it goes in two launches"
    assert not end.takes(torch.empty(5, 104)) and not end.takes(torch.empty(0, 96))
    assert not end.takes(torch.empty(5, 98)) and not end.takes(torch.empty(5, 4, dtype=torch.bfloat16))
    assert not end.takes(torch.empty(96, 4).T) and not end.takes(torch.empty(0, 96))
    assert not end.takes(torch.empty(5, 48, dtype=torch.float64))


def test_the_row_parallel_end_of_half_a_layer_goes_the_wide_way_with_more_rows_than_one_shot_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chip = SimpleNamespace(
        name="none", major=9, minor=0, multi_processor_count=4, shared_memory_per_block_optin=1
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    monkeypatch.setattr(WideSum, "sum", None)  # the norm is no launch of its own
    kernels, group = CudaKernels(CPU), WideRanks(2)
    *y, x = numbers(1, 3, 5, 64, torch.float32)
    *shares, (norm, *_) = numbers(2, 3, 64, 64, torch.float32)
    group.ends[1]._launch(y[1] @ shares[1].T, None, None, 0.0, receive=False)
    collectives = SimpleNamespace(counted=nullcontext)  # with no way to NCCL
    sums = Sums(collectives, group.small[0], group.ends[0], None, Limits(4, 5, 4))  # type: ignore[arg-type]
    normed, total = kernels.project_add_norm(y[0], Weight(shares[0], None), x, norm, 1e-5, sums)
    expected = x + y[0] @ shares[0].T + y[1] @ shares[1].T
    assert torch.allclose(total, expected, atol=1e-4)
    assert torch.allclose(normed, torch.nn.functional.rms_norm(expected, (64,), norm, 1e-5), atol=1e-4)

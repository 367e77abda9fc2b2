"""Sums in one shot, in the interpreter: all ranks send before one receives, since no two run at once here."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from rank_ends import CPU, ROWS, WORDS, OneShotRanks, numbers

from nanochat.engine.parallel.one_shot import Sums
from nanochat.engine.parallel.trial import Limits
from nanochat.kernels.cuda import CudaKernels, Weight
from nanochat.kernels.gemv_config import GemvConfig
from nanochat.kernels.triton_divided import choose_rows
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_norm import add_rms_norm
from nanochat.kernels.triton_one_shot import GATHERED, OneShot


@pytest.mark.parametrize(
    ("ranks", "dtype"),
    [(2, torch.bfloat16), (2, torch.float16), (2, torch.float32), (3, torch.bfloat16), (4, torch.float32)],
)
def test_every_rank_gets_the_sum_with_residual_and_norm(ranks: int, dtype: torch.dtype) -> None:
    """Round after round, of more and of fewer rows: what an earlier round left is never taken for this one's."""
    group = OneShotRanks(ranks)
    for seed, rows in enumerate((1, 5, 2, 5, 5, 1)):
        *deltas, x = numbers(seed, ranks + 1, rows, 90, dtype)
        weight = torch.rand(90, generator=torch.Generator().manual_seed(seed)).to(dtype)
        whole = sum(delta.float() for delta in deltas)
        expected = add_rms_norm(whole, x, weight, 1e-5)
        found = group.add_norm(deltas, x, weight)
        for normed, total in found:
            assert torch.equal(total, expected[1])
            assert torch.equal(normed, expected[0])
        sums = group.sum(deltas)
        assert torch.allclose(
            sums[0].float(), whole, rtol=2**-7, atol=0
        )  # the interpreter cuts off to 16 bits
        assert all(torch.equal(total, sums[0]) for total in sums)
    assert not any(end.failed.item() for end in group.ends)


def products(ranks: int, dtype: torch.dtype, seed: int) -> tuple[list, list, torch.Tensor, torch.Tensor]:
    """(each rank's inputs, each rank's weights, a residual, what comes out of all)."""
    draw = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(1, 64, generator=draw).to(dtype) for _ in range(ranks)]
    weights = [torch.randn(90, 64, generator=draw).to(dtype) for _ in range(ranks)]
    x = torch.randn(1, 90, generator=draw).to(dtype)
    return (
        inputs,
        weights,
        x,
        x.double() + sum(a.double() @ w.double().T for a, w in zip(inputs, weights, strict=True)),
    )


CONFIG = GemvConfig(32, 32, 4, prefetch=1)


@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.float16), (3, torch.float32)])
def test_products_send_and_every_rank_collects_the_same(ranks: int, dtype: torch.dtype) -> None:
    """Between other exchanges, of more rows and of whole rows; what is sent is rounded once, after the residual."""
    group = OneShotRanks(ranks)
    for seed in range(5):
        inputs, weights, x, expected = products(ranks, dtype, seed)
        for end, a, w in zip(group.ends, inputs, weights, strict=True):
            outlet = end.outlet(x)
            assert outlet is not None
            gemv(a, w, config=CONFIG, to=outlet)
        found = [end.collect(x) for end in group.ends]
        assert (found[0].double() - expected).abs().max() < 2 * torch.finfo(dtype).eps * expected.abs().max()
        assert all(torch.equal(each, found[0]) for each in found)
        deltas = numbers(seed, ranks, 2, 64, torch.float32)
        assert torch.equal(group.sum(deltas)[0], sum(deltas[1:], deltas[0]))
        group.add_norm(deltas, deltas[0], torch.ones(64))
    assert not any(end.failed.item() for end in group.ends)


def test_a_product_of_a_rank_that_is_ahead_overwrites_nothing_that_is_still_needed() -> None:
    group = OneShotRanks(2)
    ahead, behind = group.ends
    rounds = [products(2, torch.float32, seed) for seed in range(4)]

    def send(end: OneShot, rank: int, seed: int) -> None:
        inputs, weights, x, _ = rounds[seed]
        gemv(inputs[rank], weights[rank], config=CONFIG, to=end.outlet(x))

    send(behind, 1, 0)
    for seed in range(3):
        if seed == 0:
            send(ahead, 0, seed)
        ahead.collect(rounds[seed][2])
        send(ahead, 0, seed + 1)
        *_, x, expected = rounds[seed]
        assert (behind.collect(x).double() - expected).abs().max() < 1e-3
        send(behind, 1, seed + 1)


def test_a_product_that_did_not_send_ends_in_nan() -> None:
    group = OneShotRanks(2)
    inputs, weights, x, _ = products(2, torch.float32, 0)
    gemv(inputs[0], weights[0], to=group.ends[0].outlet(x))
    assert group.ends[0].collect(x).isnan().all() and group.ends[0].failed.item() == 1
    assert (
        group.ends[0].outlet(torch.zeros(1, WORDS + 1)) is None
        and group.ends[0].outlet(torch.zeros(2, 8)) is None
    )


def test_a_peer_that_sends_nothing_ends_in_nan_and_is_not_waited_for_again() -> None:
    group = OneShotRanks(3)
    deltas = numbers(1, 3, 2, 64, torch.bfloat16)
    assert torch.isfinite(group.sum(deltas)[0]).all()
    for end in group.ends[:2]:  # rank 2 is lost
        end._launch(deltas[0], None, None, 0.0, receive=False)
    normed, total = group.ends[0]._launch(deltas[0], deltas[1], deltas[2][0], 1e-5, send=False)
    assert normed.isnan().all() and total.isnan().all()
    assert group.ends[0].failed.item() == 1 and group.ends[1].failed.item() == 0


@pytest.mark.parametrize(
    "made",
    [
        lambda rank: torch.arange(6, dtype=torch.int32).view(2, 3) + 100 * rank,
        lambda rank: torch.tensor([[rank + 0.5, -torch.inf, 1e300]], dtype=torch.float64),
        lambda rank: torch.full((GATHERED,), -rank, dtype=torch.int32),
    ],
)
def test_few_words_of_every_rank_are_put_side_by_side(made) -> None:
    """Sums of a full inbox before and after: they do not meet."""
    group = OneShotRanks(3)
    deltas = [torch.full((ROWS, WORDS), 1.0 + rank) for rank in range(3)]
    for turn in range(3):
        assert all(torch.equal(total, sum(deltas)) for total in group.sum(deltas))
        mine = [made(rank + turn) for rank in range(3)]
        assert all(end.gathers(x) for end, x in zip(group.ends, mine, strict=True))
        for end, x in zip(group.ends, mine, strict=True):
            end._launch_gather(x, receive=False)
        for end, x in zip(group.ends, mine, strict=True):
            assert torch.equal(end._launch_gather(x, send=False), torch.stack(mine))
    assert not group.ends[0].gathers(torch.zeros(GATHERED + 1, dtype=torch.int32))
    assert not group.ends[0].gathers(torch.zeros(2, dtype=torch.bfloat16))


def test_words_of_a_rank_that_is_lost_say_so() -> None:
    group, offers = OneShotRanks(2), torch.zeros(2, 3, dtype=torch.int32)
    found = group.ends[0].gather(offers)
    assert group.ends[0].failed.item() == 1
    assert found[0].tolist() == offers.tolist() and (found[1] == 1).all()
    _, finite = choose_rows(found)
    assert not finite.any()


def test_what_does_not_fit_into_an_inbox_is_not_taken() -> None:
    end = OneShotRanks(2).ends[0]
    assert end.takes(torch.empty(5, 96)) and end.takes(torch.empty(5, 192, dtype=torch.bfloat16))
    assert end.takes(torch.empty(1, 5, 64))
    assert not end.takes(torch.empty(6, 96)) and not end.takes(torch.empty(5, 97))
    assert not end.takes(torch.empty(5, 95, dtype=torch.bfloat16))  # half a word
    assert not end.takes(torch.empty(96, 4).T) and not end.takes(torch.empty(0, 96))
    assert not end.takes(torch.empty(5, 48, dtype=torch.float64))


@pytest.mark.parametrize("rows", [3, 16])
def test_the_row_parallel_end_of_half_a_layer_is_one_exchange(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Product, sum over the ranks, residual and norm; more rows than go in one shot are summed the old way."""
    chip = SimpleNamespace(
        name="none", major=9, minor=0, multi_processor_count=4, shared_memory_per_block_optin=1
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    kernels, group, said = CudaKernels(CPU), OneShotRanks(2), []
    draw = torch.Generator().manual_seed(rows)
    y, weight, x = (torch.randn(size, generator=draw) for size in ((rows, 32), (64, 32), (rows, 64)))
    norm = torch.rand(64, generator=draw)

    def reduce(delta: torch.Tensor) -> torch.Tensor:
        said.append("NCCL")
        return delta + y[:, 16:] @ weight[:, 16:].T

    collectives = SimpleNamespace(reduce=reduce, counted=lambda: nullcontext(said.append("one shot")))
    wide = SimpleNamespace(takes=lambda x: False)
    sums = Sums(collectives, group.ends[0], wide, None, Limits(8, 8, 8))  # type: ignore[arg-type]
    if rows <= ROWS:
        group.ends[1]._launch(y[:, 16:] @ weight[:, 16:].T, None, None, 0.0, receive=False)
    share = Weight(weight[:, :16].contiguous(), None)
    normed, total = kernels.project_add_norm(y[:, :16].contiguous(), share, x, norm, 1e-5, sums)
    expected = x + y @ weight.T
    assert said == (["one shot"] if rows <= ROWS else ["NCCL"])
    assert torch.allclose(total, expected, atol=1e-4)
    assert torch.allclose(normed, torch.nn.functional.rms_norm(expected, (64,), norm, 1e-5), atol=1e-4)

"""Attention kernels in the interpreter, on tiny shapes, against dense attention in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
import triton
import triton.language as tl
from attention_cases import Batch, angles, expect_written, make_batch, project, relative_error, rotated
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.kernels.decode_plan import DecodePlan, decode_plan, invariant_plan
from nanochat.kernels.sizes import next_power_of_2, room_for
from nanochat.kernels.triton_attention import split_bounds
from nanochat.kernels.triton_decode import decode_attention
from nanochat.kernels.triton_prefill import PrefillPlan, prefill_attention, prefill_plan
from nanochat.kernels.triton_rope import Rope, rope_and_write, write_kv

pytestmark = pytest.mark.usefixtures("poisoned_memory")
COUNTERS = torch.zeros(256, dtype=torch.int32)


def decode(batch: Batch, plan: DecodePlan, **options: object) -> torch.Tensor:
    q = options.pop("q", batch.q)
    out = torch.full((batch.q.shape[0], batch.q.shape[1]), float("nan"), dtype=batch.q.dtype)
    decode_attention(
        q, batch.k_cache, batch.v_cache, out, block_tables=batch.block_tables, query_start=batch.query_start,
        context_lens=batch.context_lens, counters=COUNTERS, plan=plan, num_heads=batch.num_heads, scale=batch.scale,
        **options,
    )  # type: ignore[arg-type]  # fmt: skip
    assert not COUNTERS.any()
    return out


def prefill(batch: Batch, plan: PrefillPlan, **options: object) -> torch.Tensor:
    out = torch.full_like(batch.q, float("nan"))
    prefill_attention(
        batch.q, batch.k_cache, batch.v_cache, out, block_tables=batch.block_tables, query_start=batch.query_start,
        context_lens=batch.context_lens, counters=COUNTERS, plan=plan, num_heads=batch.num_heads, scale=batch.scale,
        **options,
    )  # type: ignore[arg-type]  # fmt: skip
    assert not COUNTERS.any()
    return out


def small_plan(batch: Batch, splits: int = 4) -> DecodePlan:
    return DecodePlan(
        block_q=max(batch.query_lens), tile_heads=batch.num_heads // batch.k_cache.shape[2], block_n=16,
        splits=splits, min_split=16,
    )  # fmt: skip


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (3, 1, 80), (8, 1, 16)])
def test_decode_agrees_with_dense_attention_at_block_edges(
    heads: int, kv_heads: int, head_dim: int, splits: int
) -> None:
    contexts = [1, 15, 16, 17, 32, 70]
    batch = make_batch([1] * 6, contexts, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    assert relative_error(decode(batch, small_plan(batch, splits)), batch.expected()) <= 1e-5


@pytest.mark.parametrize(("splits", "min_split"), [(2, 32), (4, 32), (4, 48), (8, 64)])
@pytest.mark.parametrize("window", [None, 40])
def test_decode_agrees_where_only_long_contexts_are_cut(
    splits: int, min_split: int, window: int | None
) -> None:
    contexts = [1, 31, 32, 33, 48, 49, 95, 100, 200]
    batch = make_batch([1] * len(contexts), contexts, heads=4, kv_heads=2, head_dim=16)
    plan = replace(small_plan(batch, splits), min_split=min_split)
    assert relative_error(decode(batch, plan, window=window), batch.expected(window=window)) <= 1e-5


@triton.jit
def _bounds(to_ptr, first, end, SPLITS: tl.constexpr, MIN_SPLIT: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    for share in range(SPLITS):
        begin, stop, used = split_bounds(first, end, share, SPLITS, 0, MIN_SPLIT, BLOCK_N)
        tl.store(to_ptr + 3 * share, begin)
        tl.store(to_ptr + 3 * share + 1, stop)
        tl.store(to_ptr + 3 * share + 2, used)


@given(
    end=st.integers(1, 500), window=st.integers(1, 500), splits=st.sampled_from([1, 2, 8]), least=st.sampled_from([16, 48, 64])
)  # fmt: skip
@settings(max_examples=60)
def test_a_context_is_cut_evenly_and_into_no_more_parts_than_the_shortest_allow(
    end: int, window: int, splits: int, least: int
) -> None:
    first = max(end - window, 0)
    found = torch.full((splits, 3), -1, dtype=torch.int32)
    _bounds[(1,)](found, first, end, SPLITS=splits, MIN_SPLIT=least, BLOCK_N=16)
    used, origin = int(found[0, 2]), first // 16 * 16
    parts = [(begin, stop) for begin, stop, _ in found.tolist()[:used]]
    assert parts[0][0] == origin and parts[-1][1] == end
    assert all(stop == begin for (_, stop), (begin, _) in pairwise(parts)), "nothing twice, nothing missed"
    assert all(begin % 16 == 0 and begin < stop for begin, stop in parts)
    assert used <= min(splits, -(-(end - origin) // least))
    lengths = [stop - begin for begin, stop in parts]
    assert len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
    assert lengths[0] < (end - origin) / min(splits, -(-(end - origin) // least)) + 16, (
        "as even as tiles allow"
    )


def test_the_more_sequences_there_are_the_longer_are_those_that_are_cut() -> None:
    def plan(seqs: int, kv_heads: int, *, fused: bool = False) -> DecodePlan:
        return decode_plan(
            seqs=seqs, queries=1, heads=4 * kv_heads, kv_heads=kv_heads, head_dim=128, element=2, multiprocessors=132, fused=fused
        )  # fmt: skip

    assert [plan(seqs, 8).min_split for seqs in (1, 4, 8, 16, 250)] == [256, 256, 512, 1024, 1024]
    assert [plan(seqs, 4).min_split for seqs in (1, 8, 16, 32)] == [256, 256, 512, 1024]
    assert plan(250, 8, fused=True).min_split == 128


def test_decode_in_float16_agrees() -> None:
    batch = make_batch([1, 1], [17, 40], heads=4, kv_heads=2, head_dim=32, dtype=torch.float16)
    assert relative_error(decode(batch, small_plan(batch)), batch.expected()) <= 1e-3


def test_decode_of_several_queries_is_causal_with_window_and_soft_cap() -> None:
    batch = make_batch([3, 1, 8, 2], [3, 17, 70, 33], heads=4, kv_heads=2, head_dim=16)
    out = decode(batch, small_plan(batch), window=20, soft_cap=5.0)
    assert relative_error(out, batch.expected(window=20, soft_cap=5.0)) <= 1e-5


def test_heads_of_a_wide_group_are_shared_out_over_programs() -> None:
    batch = make_batch([2, 1], [20, 33], heads=12, kv_heads=1, head_dim=16)
    plan = DecodePlan(block_q=2, tile_heads=5, block_n=16, splits=2, min_split=16)
    assert relative_error(decode(batch, plan), batch.expected()) <= 1e-5


def test_a_padded_sequence_reads_nothing_and_comes_out_as_zeros() -> None:
    batch = make_batch([1, 1, 1], [40, 0, 17], heads=4, kv_heads=2, head_dim=16)
    out = decode(batch, small_plan(batch))
    assert relative_error(out, batch.expected()) <= 1e-5
    assert not out[1].any()


@pytest.mark.parametrize(
    ("head_dim", "rotary", "norm"),
    [(32, 32, True), (24, 16, True), (16, 8, False), (16, 0, True)],
)
@pytest.mark.parametrize("way", ["fused", "early", "apart"])
def test_norm_rotation_and_write_come_with_attention(
    head_dim: int, rotary: int, norm: bool, way: str
) -> None:
    heads, kv_heads = 4, 2
    lens = [1, 2, 1, 8] if way == "apart" else [1] * 4
    tokens, contexts = sum(lens), [33, 2, 0, 24]
    batch = make_batch(lens, contexts, heads=heads, kv_heads=kv_heads, head_dim=head_dim, new_keys=False)
    qkv = project(batch)
    cos, sin = angles(tokens, rotary) if rotary else (torch.ones(tokens, 1), torch.zeros(tokens, 1))
    weight = torch.rand(head_dim) + 0.5 if norm else None
    rope = Rope(cos, sin, rotary, weight, weight)
    split = qkv.view(tokens, -1, head_dim)
    turned = rotated(split[:, : heads + kv_heads], cos, sin, weight)
    before = batch.k_cache.clone(), batch.v_cache.clone()
    if way != "apart":
        out = decode(batch, small_plan(batch), q=qkv, rope=rope, slots=batch.slots, early=way == "early")
    else:
        q = rope_and_write(qkv, heads, rope, batch.k_cache, batch.v_cache, batch.slots)
        out = decode(batch, small_plan(batch), q=q)
    expect_written(batch, before, turned[:, heads:], split[:, heads + kv_heads :], 1e-6)
    assert relative_error(out, batch.expected(q=turned[:, :heads].flatten(1))) <= 1e-5


@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_keys_read_before_the_wait_count_once_in_every_piece(
    soft_cap: float | None, splits: int, window: int | None
) -> None:
    batch = make_batch([1, 1, 1], [97, 20, 69], heads=2, kv_heads=1, head_dim=16, new_keys=False)
    qkv, (cos, sin) = project(batch), angles(3, 16)
    turned = rotated(qkv.view(3, -1, 16)[:, :3], cos, sin)
    plan = DecodePlan(block_q=1, tile_heads=2, block_n=16, splits=splits, min_split=16)
    limits = {"window": window, "soft_cap": soft_cap}
    out = decode(batch, plan, q=qkv, rope=Rope(cos, sin, 16), slots=batch.slots, early=True, **limits)
    assert relative_error(out, batch.expected(q=turned[:, :2].flatten(1), **limits)) <= 1e-5


def test_a_negative_slot_takes_nothing() -> None:
    batch = make_batch([1, 1], [0, 17], heads=2, kv_heads=2, head_dim=16, new_keys=False)
    k, v = torch.randn(2, 2, 16), torch.randn(2, 2, 16)
    before = batch.k_cache.clone(), batch.v_cache.clone()
    write_kv(k, v, batch.k_cache, batch.v_cache, batch.slots)
    expect_written(batch, before, k, v, 0.0)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("window", [None, 20])
def test_prefill_agrees_with_dense_attention_over_prefix_and_chunk(splits: int, window: int | None) -> None:
    batch = make_batch([20, 17, 1, 9], [30, 97, 60, 9], heads=3, kv_heads=1, head_dim=20)
    plan = PrefillPlan(block_q=5, tile_heads=3, block_n=16, splits=splits, warps=4, stages=2)
    assert relative_error(prefill(batch, plan, window=window), batch.expected(window=window)) <= 1e-5


def test_a_launch_may_take_the_later_sequences_of_a_step_alone() -> None:
    batch = make_batch([1, 3, 20, 17], [70, 3, 20, 40], heads=2, kv_heads=1, head_dim=16)
    out = torch.full_like(batch.q, 7.0)
    plan = PrefillPlan(block_q=8, tile_heads=2, block_n=16, splits=1, warps=4, stages=2)
    prefill_attention(
        batch.q, batch.k_cache, batch.v_cache, out, block_tables=batch.block_tables[2:],
        query_start=batch.query_start[2:], context_lens=batch.context_lens[2:], counters=COUNTERS, plan=plan,
        num_heads=2, scale=batch.scale,
    )  # fmt: skip
    assert relative_error(out[4:], batch.expected()[4:]) <= 1e-5
    assert (out[:4] == 7.0).all()


def test_invariant_rows_have_the_same_bits_alone_and_with_splits_one_after_the_other() -> None:
    batch = make_batch([9, 1, 1], [600, 40, 1100], heads=2, kv_heads=1, head_dim=16)

    def plan(tiles: int) -> DecodePlan:
        return invariant_plan(
            tiles=tiles, heads=2, kv_heads=1, head_dim=16, element=4, max_context=1100, multiprocessors=1
        )

    side_by_side = decode(batch, plan(1), tiled=True)
    assert relative_error(side_by_side, batch.expected()) <= 1e-5
    assert torch.equal(decode(batch, plan(1000), tiled=True), side_by_side)
    alone = Batch(
        batch.q[8:9], batch.k_cache, batch.v_cache, batch.block_tables[:1], batch.query_start[:2].clamp(max=1),
        batch.context_lens[:1], batch.slots[8:9], batch.positions[8:9], [1], [600], 2,
    )  # fmt: skip
    assert torch.equal(decode(alone, plan(1), tiled=True), side_by_side[8:9])


@pytest.mark.parametrize("heads", [1, 8, 14, 71])
@pytest.mark.parametrize("head_dim", [64, 80, 256])
@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_plans_cover_every_head_and_stay_in_bounds(
    heads: int, head_dim: int, element: int, fused: bool
) -> None:
    for seqs in (1, 3, 64, 500):
        for queries in (1, 8):
            plan = decode_plan(
                seqs=seqs,
                queries=queries,
                heads=heads,
                kv_heads=1,
                head_dim=head_dim,
                element=element,
                multiprocessors=132,
                fused=fused,
                early=fused,
            )
            assert plan.block_q == queries and 1 <= plan.tile_heads <= heads
            assert plan.min_split % plan.block_n == 0
            assert plan.block_n * next_power_of_2(head_dim) * element <= 32768, (
                "K and V of a tile, twice, fit in 100 KB"
            )
            assert plan.tile_heads * plan.block_q <= 64 and 1 <= plan.splits <= 32
        for tokens in (seqs, 50 * seqs, 4096):
            chunk = prefill_plan(
                tokens=tokens, seqs=seqs, heads=heads, kv_heads=1, head_dim=head_dim, element=element,
                max_context=20000, multiprocessors=132, shared_memory=232448,
            )  # fmt: skip
            assert chunk.block_q >= 1 and chunk.block_q * chunk.tile_heads <= 128 and chunk.splits >= 1


def test_launches_of_many_numbers_of_sequences_share_few_kernels() -> None:
    rooms = [room_for(count) for count in range(1, 1025)]
    assert all(room >= count and room & (room - 1) == 0 for count, room in enumerate(rooms, 1))
    assert sorted(set(rooms)) == [1, 64, 512, 1024]

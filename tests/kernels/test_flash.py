"""When flash-attn computes fresh prompts, and what it is given; the package itself is stood in for."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import make_batch, relative_error
from torch import Tensor

from nanochat.kernels import flash
from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.flash import FlashAttention, fresh_prompts


def varlen(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, longest_q: int, longest_k: int, *,
    softmax_scale: float, causal: bool, window_size: tuple[int, int], softcap: float,
) -> Tensor:  # fmt: skip
    """flash_attn_varlen_func as its documentation has it, sequence by sequence."""
    assert causal and not softcap and q_starts.tolist() == k_starts.tolist()
    parts: list[Tensor] = []
    for first, last in zip(q_starts.tolist(), q_starts.tolist()[1:], strict=False):
        assert 0 < last - first <= longest_q == longest_k
        row, column = torch.arange(last - first)[:, None], torch.arange(last - first)[None]
        seen = column <= row
        if window_size[0] >= 0:
            seen &= column >= row - window_size[0]
        rows = [x[first:last].transpose(0, 1)[None] for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*rows, seen, scale=softmax_scale, enable_gqa=True)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [0, 100])
def test_fresh_prompts_behind_decoding_rows_are_computed_from_the_cache(window: int) -> None:
    batch = make_batch([1, 1, 700, 400], [33, 500, 700, 400], heads=6, kv_heads=2, head_dim=64)
    spec = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=64, scale=batch.scale, window=window)
    fresh = fresh_prompts(batch.layout, 2)
    assert fresh is not None and fresh.row == 2
    out = FlashAttention(varlen, "flash-attn").attend(
        batch.q, spec, (batch.k_cache, batch.v_cache), batch.slots, fresh
    )
    assert relative_error(out, batch.expected(window=window or None)[2:]) <= 1e-5


def test_a_cached_prefix_or_a_short_prompt_stays_with_our_kernel() -> None:
    cached = make_batch([1100, 1100], [1100, 1116], heads=2, kv_heads=1, head_dim=16)
    assert fresh_prompts(cached.layout, 0) is None
    short = make_batch([1, 500], [9, 500], heads=2, kv_heads=1, head_dim=16)
    assert fresh_prompts(short.layout, 1) is None


def test_a_captured_prompt_of_the_whole_context_is_not_taken_for_a_fresh_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is replayed for other prompts, and what is faster cannot be measured while it is captured."""
    pytest.importorskip("triton", reason="Triton runs on Linux only")
    from nanochat.kernels.cuda import CudaKernels

    chip = SimpleNamespace(
        multi_processor_count=4, shared_memory_per_block_optin=100_000, major=8, minor=0, name=""
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    kernels = CudaKernels(torch.device("cpu"))
    kernels.flash = FlashAttention(varlen, "flash-attn 2.8.3")
    batch = make_batch([1024], [1024], heads=2, kv_heads=1, head_dim=16)
    assert kernels.plan(batch.layout).fresh is not None
    assert kernels.plan(replace(batch.layout, captured=True)).fresh is None


def test_only_what_it_can_compute_is_given_to_it() -> None:
    def spec(head_dim: int) -> AttentionSpec:
        return AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=head_dim, scale=1.0)

    half, whole = torch.empty(1, dtype=torch.bfloat16), torch.empty(1)
    installed, absent = FlashAttention(varlen, "flash-attn 2.8.3"), FlashAttention(None, "no flash-attn")
    assert installed.takes(half, spec(128)) and not installed.takes(whole, spec(128))
    assert not installed.takes(half, spec(512)) and not installed.takes(half, spec(100))
    assert not absent.takes(half, spec(128)) and not absent.installed


def test_the_faster_one_is_chosen_once_for_each_shape_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"theirs": 1e-3, "ours": 2e-3}
    timed: list[str] = []

    def seconds(work) -> float:
        timed.append(work())
        return times[timed[-1]]

    monkeypatch.setattr(flash, "_seconds", seconds)
    attention = FlashAttention(varlen, "flash-attn 2.8.3")
    spec = AttentionSpec(num_heads=16, num_kv_heads=8, head_dim=128, scale=1.0)
    for _ in range(3):
        assert attention.faster(spec, lambda: "theirs", lambda: "ours")
    assert timed == ["theirs", "ours"]
    assert attention.why == "flash-attn 2.8.3, for fresh prompts: 1.00 ms a layer, our kernel 2.00"
    for window, slow in ((512, 3e-3), (256, 1.98e-3)):
        times["theirs"] = slow
        other = AttentionSpec(num_heads=16, num_kv_heads=8, head_dim=128, scale=1.0, window=window)
        assert not attention.faster(other, lambda: "theirs", lambda: "ours")
        assert "not used" in attention.why


def test_what_is_installed_is_found_and_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert FlashAttention.find().why == "this flash-attn has no flash_attn_varlen_func"
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert not FlashAttention.find().installed

"""What the GPU's kernels are given and how they describe themselves; the chip is made up and nothing is launched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton runs on Linux only")

from nanochat.kernels import cuda, flash
from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.layout import AttentionLayout

CPU = torch.device("cpu")


def kernels(monkeypatch: pytest.MonkeyPatch, major: int = 8, **options: Any) -> CudaKernels:
    chip = SimpleNamespace(
        multi_processor_count=108, shared_memory_per_block_optin=100_000, major=major, minor=0, name="a chip"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    return CudaKernels(CPU, **options)


def layout_of(query_lens: list[int], context: int, max_context: int = 64) -> AttentionLayout:
    seqs, tokens = len(query_lens), sum(query_lens)
    return AttentionLayout(
        slots=torch.zeros(tokens, dtype=torch.int64), block_tables=torch.zeros(seqs, 4, dtype=torch.int32),
        query_start=torch.zeros(seqs + 1, dtype=torch.int32), context_lens=torch.full((seqs,), context),
        query_lens=query_lens, contexts=[context] * seqs, tables=[], max_context=max_context,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "query_lens", "options"),
    [
        ("decode_attention", [1] * 4097, {}), ("decode_attention", [1] * 4097, {"deterministic": True}),
        ("decode_attention", [1] * 100, {}), ("prefill_attention", [9] * 4097, {}),
    ],
    ids=["decode", "invariant", "few", "prefill"],
)  # fmt: skip
def test_every_program_of_a_step_has_a_counter_of_its_own(
    kind: str, query_lens: list[int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def launched(
        q: torch.Tensor, k: torch.Tensor, *_: Any, counters: torch.Tensor, plan: Any, **given: Any
    ) -> None:
        tiled = given.get("tiled") or kind == "prefill_attention"
        tiles = (q.shape[0] // plan.block_q if tiled else 0) + given["context_lens"].shape[0]
        group = given["num_heads"] // k.shape[2]
        assert counters.shape[0] >= tiles * k.shape[2] * -(-group // plan.tile_heads)
        assert counters.dtype == torch.int32 and not counters.any()
        seen.append(counters.data_ptr())

    monkeypatch.setattr(cuda, kind, launched)
    ours = kernels(monkeypatch, **options)
    former = ours.counters
    spec = AttentionSpec(num_heads=32, num_kv_heads=32, head_dim=1, scale=1.0)
    layout, cache = layout_of(query_lens, 40), torch.zeros(4, 16, 32, 1)
    for _ in range(2):
        ours.attend(torch.zeros(sum(query_lens), 32, 1), spec, (cache, cache), ours.plan(layout))
    assert len(set(seen)) == 1, "they are made once"
    kept = [ours.counters, *ours._former]
    assert any(each is former for each in kept), "a captured graph has its address"


def test_what_computes_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def described(**options: Any) -> str:
        return kernels(monkeypatch, 9, **options).describe(torch.bfloat16)

    there = flash.importlib.util.find_spec
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: None)
    assert described() == "Triton for sm_90, bfloat16 matrices, matrix-vector up to 8 rows; no flash-attn"
    assert (
        described(deterministic=True) == "Triton for sm_90, bfloat16 matrices, batch-invariant; no flash-attn"
    )
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: there("torch"))
    assert described(deterministic=True).endswith("batch-invariant; flash-attn is not used in this mode")
    assert not kernels(monkeypatch, deterministic=True).flash.installed


@pytest.mark.parametrize(
    ("query_lens", "decode", "prefill"),
    [
        ([1, 1, 1], (3, 1), 0), ([1, 3, 1], (3, 8), 0), ([1, 1, 500], (2, 1), 1),
        ([1, 1, 3, 500], (2, 1), 2), ([3, 500, 1], (0, 1), 3),
    ],
)  # fmt: skip
def test_the_last_tokens_of_a_prompt_need_no_kernel_of_their_own(
    query_lens: list[int], decode: tuple[int, int], prefill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single queries decode beside prompts, up to eight where there are none: each number is a kernel that is compiled."""
    plan = kernels(monkeypatch).plan(layout_of(query_lens, 600))
    assert (plan.decode.count, plan.decode.queries) == decode
    assert (plan.prefill.first, plan.prefill.count) == (decode[0], prefill)

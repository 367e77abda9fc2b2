"""The real flash-attn on a GPU, where it is installed: fresh prompts against dense attention, and a whole engine with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("flash_attn", reason="needs flash-attn", exc_type=ImportError)

from attention_cases import make_batch, relative_error
from small_engines import draw_prompts, load, write_model

from nanochat.engine.sampling_params import SamplingParams
from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.flash import FlashAttention

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


@pytest.mark.parametrize("window, soft_cap", [(0, 0.0), (100, 0.0), (0, 30.0)])
@pytest.mark.parametrize("shape", [(8, 2, 64), (8, 2, 96), (16, 8, 128), (32, 8, 128), (8, 1, 256)], ids=str)
def test_fresh_prompts_behind_decoding_rows(
    shape: tuple[int, int, int], window: int, soft_cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, kv_heads, head_dim = shape
    kernels = CudaKernels(torch.device("cuda"))
    monkeypatch.setattr(kernels.flash, "faster", lambda *_: True)  # whichever is: here it computes
    lens, contexts = [1, 1, 700, 17, 1333], [33, 500, 700, 17, 1333]
    batch = make_batch(
        lens, contexts, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=torch.bfloat16, device="cuda"
    )
    spec = AttentionSpec(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=batch.scale, window=window, soft_cap=soft_cap,
    )  # fmt: skip
    plan = kernels.plan(batch.layout)
    assert plan.fresh is not None and plan.fresh.row == 2
    took: list[bool] = []
    attend = FlashAttention.attend
    monkeypatch.setattr(FlashAttention, "attend", lambda *args: (took.append(True), attend(*args))[1])
    q = batch.q.view(sum(lens), heads, head_dim)
    out = kernels.attend(q, spec, (batch.k_cache, batch.v_cache), plan).flatten(1)
    assert took
    assert relative_error(out, batch.expected(window=window or None, soft_cap=soft_cap or None)) <= 5e-3


def test_an_engine_measures_it_once_and_says_so(tmp_path: Path) -> None:
    llm = load(write_model("qwen3", tmp_path), max_num_batched_tokens=4096, seed=0)
    prompts = draw_prompts(4, 0, longest=1500, shortest=1100)
    outputs = llm.generate(prompts, SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True))
    assert all(len(output.token_ids) == 8 for output in outputs)
    words = llm.core._runner.describe(torch.bfloat16)
    assert "flash-attn 2" in words and "our kernel" in words, words
    llm.close()

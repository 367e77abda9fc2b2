"""A mixture of experts through the graphs of decode and of short prompts, on the kernels that a GPU has: the ids of the CPU's own.

Kernels run in Triton's interpreter, and what is captured is the step itself, see `graphed`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from drawn_replies import replies
from graphed import CPU, Driver, install
from models.tiny_models import save_tiny
from transformers import Qwen3MoeConfig

from nanochat.engine import cuda_graphs, models, prefill_graphs
from nanochat.engine.captures import Captures
from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.llm import LLM
from nanochat.engine.runner import _capturable
from nanochat.engine.sampling_params import SamplingParams
from nanochat.kernels.cuda import CudaKernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's integers wrap
CONTEXT = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
BATCHES = [[[5, 9, 2, 37, 31]], [[*range(3, 10)], [40]]]  # the first prompt is alone in its step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 48, "max_position_embeddings": 256, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "moe_intermediate_size": 12,
        "num_experts": 6, "num_experts_per_tok": 2, "mlp_only_layers": [1],
    }  # fmt: skip
    save_tiny(lambda: Qwen3MoeConfig(**shape), path)
    return path


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return install(monkeypatch)


def load(folder: Path) -> LLM:
    return LLM(
        folder, dtype="float32", device="cpu", skip_tokenizer=True, num_blocks=40, max_model_len=CONTEXT, max_num_seqs=4
    )  # fmt: skip


def graphed(folder: Path, monkeypatch: pytest.MonkeyPatch, *, deterministic: bool) -> LLM:
    """An engine with the kernels and the graphs that it would have on a GPU."""
    chip = SimpleNamespace(
        multi_processor_count=4, shared_memory_per_block_optin=100_000, major=8, minor=0, name="a chip"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    kernels = CudaKernels(CPU, deterministic=deterministic, dtype=torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(models, "pick", lambda *_, **__: kernels)
        llm = load(folder)
    runner = llm.core._runner
    assert _capturable(runner.model)
    blocks = CONTEXT // BLOCK_SIZE
    model, kv, captures = runner.model, runner.kv_cache, Captures(alone=True)
    runner._graphs = cuda_graphs.DecodeGraphs(model, kv, runner._last_ids, 4, blocks, captures)
    runner._prefills = prefill_graphs.PrefillGraphs(model, kv, blocks, CPU, captures, CONTEXT)
    llm.core.scheduler.lookahead = BLOCK_SIZE
    return llm


@pytest.mark.parametrize("deterministic", [False, True], ids=["usual", "deterministic"])
def test_replies_of_a_mixture_in_graphs_are_those_of_the_cpu(
    folder: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    plain = load(folder)
    expected = [reply.token_ids for batch in BATCHES for reply in replies(plain, batch, GREEDY)]
    plain.close()
    llm = graphed(folder, monkeypatch, deterministic=deterministic)
    assert [reply.token_ids for batch in BATCHES for reply in replies(llm, batch, GREEDY)] == expected
    runner = llm.core._runner
    assert {size for size, _ in runner._graphs._captured} == {1, 2} and set(runner._prefills._captured) == {
        16
    }
    llm.close()

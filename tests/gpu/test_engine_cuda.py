"""The engine on CUDA: graphs, chunks, preemption and company change nothing in float32; Transformers agrees."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from triton.runtime.cache import triton_key

from nanochat.engine.llm import LLM
from nanochat.engine.request import Request, Update
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import PendingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

VOCABULARY = 1031
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 100, 129, 300, 511]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(
    temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, max_tokens=40, ignore_eos=True, seed=5
)


@pytest.fixture(scope="module", params=["llama", "qwen3", "qwen3_moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048,
        "initializer_range": 0.1, "tie_word_embeddings": request.param == "qwen3",
    }  # fmt: skip
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(path)
    elif request.param == "qwen3_moe":
        mixture = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128}
        Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**shape, **mixture, norm_topk_prob=True, mlp_only_layers=[1])
        ).save_pretrained(path)
    else:
        Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(path)
    return path


def prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(VOCABULARY) for _ in range(length)] for length in LENGTHS]


def load(folder: Path, **options) -> LLM:
    return LLM(folder, dtype="float32", device="cuda", skip_tokenizer=True, **{"num_blocks": 2048, **options})


def ids_of(llm: LLM, batch: list[list[int]], params: SamplingParams) -> list[tuple[int, ...]]:
    return [output.token_ids for output in llm.generate(batch, params, use_tqdm=False)]


def test_triton_hashes_its_compiler_once(folder: Path) -> None:
    load(folder)
    assert triton_key.cache_info().misses == 1


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_nothing_around_a_reply_changes_it(folder: Path, params: SamplingParams) -> None:
    plain = load(folder, enforce_eager=True, enable_prefix_caching=False)
    alone = [ids_of(plain, [prompt], params)[0] for prompt in prompts()]
    plain.close()
    for options in (
        {"enforce_eager": True}, {}, {"num_blocks": 100}, {"max_num_batched_tokens": 48}, {"max_num_seqs": 5},
    ):  # fmt: skip
        llm = load(folder, **options)
        assert ids_of(llm, prompts(), params) == alone, options
        assert ids_of(llm, prompts(), params) == alone, f"{options}, cached"
        assert "num_blocks" not in options or llm.core.scheduler.preemptions > 0
        llm.close()


def test_greedy_ids_are_those_of_transformers(folder: Path) -> None:
    llm = load(folder)
    outputs = ids_of(llm, prompts(), GREEDY)
    llm.close()
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda().eval()
    for prompt, ids in zip(prompts(), outputs, strict=True):
        with torch.inference_mode():
            logits = oracle(torch.tensor([[*prompt, *ids]], device="cuda")).logits[0, len(prompt) - 1 : -1]
        assert tuple(logits.argmax(dim=-1).tolist()) == ids


def test_a_prompt_beside_replies_is_replayed_and_changes_nothing(folder: Path) -> None:
    """Decodes and a prompt's chunk in one step: two graphs, the same ids as alone."""
    llm = load(folder, enable_prefix_caching=False)
    core, batch = llm.core, prompts()
    alone = [ids_of(llm, [prompt], DRAWN)[0] for prompt in batch]
    seen: list[str] = []
    dispatch = core._runner.dispatch

    def watched(chunks: list[Chunk]) -> PendingStep:
        step = dispatch(chunks)
        seen.append(type(step).__name__)
        return step

    core._runner.dispatch = watched  # type: ignore[method-assign]
    replies: dict[str, list[int]] = {}
    requests = [Request(prompt, DRAWN) for prompt in batch]
    for request in requests:  # each comes when the ones before it are under way
        core.add(request)
        for _ in range(3):
            note(core.step(), replies)
    while core.has_work:
        note(core.step(), replies)
    assert "StepInParts" in seen and "GraphStep" in seen
    assert [tuple(replies[request.request_id]) for request in requests] == alone
    llm.close()


def test_a_cancelled_reply_frees_its_blocks_and_leaves_the_others_alone(folder: Path) -> None:
    llm = load(folder)
    core, batch = llm.core, prompts()
    alone = [ids_of(llm, [prompt], GREEDY)[0] for prompt in batch]
    replies: dict[str, list[int]] = {}
    requests = [Request(prompt, GREEDY) for prompt in batch]
    for request in requests:
        core.add(request)
    for steps, request in enumerate(requests[::3]):
        for _ in range(2 + steps):
            note(core.step(), replies)
        core.abort(request.request_id)
    while core.has_work:
        note(core.step(), replies)
    assert core.cache.num_used == 0
    for place, (request, whole) in enumerate(zip(requests, alone, strict=True)):
        got = tuple(replies.get(request.request_id, ()))
        assert got == (whole[: len(got)] if place % 3 == 0 else whole)
    llm.close()


def note(updates: list[Update], replies: dict[str, list[int]]) -> None:
    for update in updates:
        replies.setdefault(update.request_id, []).extend(update.token_ids)


def test_replies_that_end_early_leave_the_others_alone(folder: Path) -> None:
    """Rows meet their stops on the device at different steps; the batch closes up under those that go on."""
    llm = load(folder)
    free = ids_of(llm, prompts(), GREEDY)
    stops = [
        SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop_token_ids=[r[3 * i % 37]])
        for i, r in enumerate(free)
    ]
    stopped = [output.token_ids for output in llm.generate(prompts(), stops, use_tqdm=False)]
    for whole, cut, params in zip(free, stopped, stops, strict=True):
        assert cut == whole[: whole.index(params.stop_token_ids[0]) + 1]
    llm.close()


def test_what_a_prompts_graph_leaves_outlives_replays_of_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All graphs share memory: one captured later has its results where one captured before has its intermediates."""
    llm = load(folder, max_num_batched_tokens=64)
    ids_of(llm, [prompts()[0]], GREEDY)  # a decode step is captured first
    left: list[tuple[torch.Tensor, torch.Tensor]] = []
    prefills = llm.core._runner._prefills
    run = type(prefills).run

    def remembered(chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        made = run(prefills, chunk)
        left.extend((tensor, tensor.clone()) for tensor in made)
        return made

    monkeypatch.setattr(prefills, "run", remembered)
    ids_of(llm, [prompts()[3]], GREEDY)
    torch.cuda.synchronize()
    assert len(left) == 2 and all(torch.equal(now, then) for now, then in left)
    llm.close()

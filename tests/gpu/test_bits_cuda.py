"""Bits on CUDA: graphs against eager at every captured size, and the deterministic mode in company and over a cached prefix.

In bfloat16, where rounding shows every other order of adding up. What is compared is the whole KV cache, and
log-probabilities.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from nanochat.engine.llm import LLM
from nanochat.engine.outputs import RequestOutput
from nanochat.engine.sampling_params import SamplingParams

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from nanochat.engine.cuda_graphs import batch_sizes

pytestmark = pytest.mark.gpu
VOCABULARY, LARGEST, NEIGHBOURS, TRIALS = 4099, 256, 64, 50
DRAWN = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, max_tokens=8, ignore_eos=True, seed=3)
LOGPROBS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2 if request.param == "llama" else 4, "head_dim": 64,
        "max_position_embeddings": 4096, "initializer_range": 0.08, "tie_word_embeddings": request.param == "qwen3",
    }  # fmt: skip
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(path)
    else:
        Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(path)
    return path


def load(folder: Path, **options) -> LLM:
    llm = LLM(
        folder, dtype="bfloat16", device="cuda", skip_tokenizer=True,
        **{"num_blocks": 4096, "max_num_seqs": LARGEST, **options},
    )  # fmt: skip
    for pair in llm.core._runner.kv_cache:
        for tensor in pair:
            tensor.zero_()
    return llm


def draw_prompts(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def replies(llm: LLM, batch: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
    return llm.generate(batch, params, use_tqdm=False)


def bits(output: RequestOutput) -> tuple[tuple[int, ...], list[dict[int, float]]]:
    reply = output.outputs[0]
    assert reply.logprobs is not None
    return reply.token_ids, [{i: entry.logprob for i, entry in table.items()} for table in reply.logprobs]


def near_sizes() -> list[int]:
    """Every captured size and its neighbours."""
    near = {size + d for size in batch_sizes(LARGEST) for d in (-1, 0, 1)}
    return sorted(count for count in near if 1 <= count <= LARGEST)


@pytest.mark.parametrize("deterministic", [False, True], ids=["usual", "deterministic"])
def test_graphs_give_the_bits_of_eager_steps_at_every_size(folder: Path, deterministic: bool) -> None:
    options = {"enable_prefix_caching": False, "deterministic": deterministic}
    graphs, eager = load(folder, **options), load(folder, enforce_eager=True, **options)
    for count in near_sizes():
        batch = draw_prompts(count, count)
        captured, launched = ([r.token_ids for r in replies(llm, batch, DRAWN)] for llm in (graphs, eager))
        assert captured == launched, count
        for ours, theirs in zip(graphs.core._runner.kv_cache, eager.core._runner.kv_cache, strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]), count
    graphs.close()
    eager.close()


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_a_needle_has_the_same_bits_among_64_neighbours(folder: Path, eager: bool) -> None:
    llm = load(folder, deterministic=True, enable_prefix_caching=False, enforce_eager=eager)
    wrong: list[int] = []
    for trial in range(TRIALS):
        (needle,) = draw_prompts(1, trial, 1500)
        params = LOGPROBS if trial % 2 else DRAWN
        (alone,) = replies(llm, [needle], params)
        company = draw_prompts(NEIGHBOURS, 1000 + trial, 700)
        place = trial * NEIGHBOURS // TRIALS
        among = replies(llm, [*company[:place], needle, *company[place:]], params)[place]
        same = bits(among) == bits(alone) if params is LOGPROBS else among.token_ids == alone.token_ids
        wrong += [] if same else [trial]
    llm.close()
    assert not wrong


def test_graphs_and_eager_steps_draw_the_same_in_the_deterministic_mode(folder: Path) -> None:
    """A prompt is read beside the replies, so that some of their tokens come from steps without a graph."""
    batch = draw_prompts(12, 5, 900)
    params = [SamplingParams(**{**_fields(DRAWN), "seed": i, "max_tokens": 40}) for i in range(12)]
    options = {"deterministic": True, "enable_prefix_caching": False, "max_num_batched_tokens": 256}
    graphs, eager = load(folder, **options), load(folder, enforce_eager=True, **options)
    alone = [replies(graphs, [prompt], own)[0].token_ids for prompt, own in zip(batch, params, strict=True)]
    for llm in (graphs, eager):
        assert [r.token_ids for r in llm.generate(batch, params, use_tqdm=False)] == alone
        llm.close()


def _fields(params: SamplingParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "ignore_eos")}


def test_a_cached_prefix_gives_the_bits_of_a_computed_one(folder: Path) -> None:
    batch = draw_prompts(8, 2, 1500)
    plain = load(folder, deterministic=True, enable_prefix_caching=False)
    computed = [bits(replies(plain, [prompt], LOGPROBS)[0]) for prompt in batch]
    plain.close()
    llm = load(folder, deterministic=True)
    assert [bits(r) for r in replies(llm, batch, LOGPROBS)] == computed
    again = replies(llm, batch, LOGPROBS)
    assert any(reply.num_cached_tokens > 0 for reply in again)
    assert [bits(r) for r in again] == computed
    llm.close()
    chunked = load(folder, deterministic=True, max_num_batched_tokens=100)
    assert [bits(r) for r in replies(chunked, batch, LOGPROBS)] == computed
    chunked.close()


def test_without_the_mode_company_changes_bits(folder: Path) -> None:
    llm = load(folder, enable_prefix_caching=False)
    needle, *company = draw_prompts(NEIGHBOURS + 1, 9, 700)
    (alone,) = replies(llm, [needle], LOGPROBS)
    assert bits(replies(llm, [*company, needle], LOGPROBS)[-1]) != bits(alone)
    llm.close()

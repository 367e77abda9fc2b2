"""What must not change a reply: caching, chunking, preemption, company, order. All in float32, ids compared exactly.

The model is a small random Llama, sharpened so that greedy replies do not fall into a loop.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from lagging_device import lag
from transformers import LlamaConfig, LlamaForCausalLM

from nanochat.engine.llm import LLM
from nanochat.engine.outputs import RequestOutput
from nanochat.engine.sampling_params import SamplingParams

VOCABULARY = 211
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 64, 65, 90, 100, 127, 128, 129]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=0)
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=24, ignore_eos=True, seed=11, logprobs=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def prompts(seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(length)] for length in LENGTHS]


def load(folder: Path, **options) -> LLM:
    options.setdefault("num_blocks", 512)
    return LLM(folder, dtype="float32", device="cpu", skip_tokenizer=True, **options)


def generate(llm: LLM, batch: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
    return llm.generate(batch, params, use_tqdm=False)


def assert_same(ours: list[RequestOutput], theirs: list[RequestOutput]) -> None:
    assert [output.token_ids for output in ours] == [output.token_ids for output in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.outputs[0].cumulative_logprob == pytest.approx(b.outputs[0].cumulative_logprob, abs=1e-3)


@pytest.fixture(scope="module", params=[GREEDY, DRAWN], ids=["greedy", "drawn"])
def params(request: pytest.FixtureRequest) -> SamplingParams:
    return request.param


@pytest.fixture(scope="module")
def alone(folder: Path, params: SamplingParams) -> list[RequestOutput]:
    """Each prompt by itself, whole, nothing cached: what all others are compared with."""
    llm = load(folder, enable_prefix_caching=False)
    return [generate(llm, [prompt], params)[0] for prompt in prompts()]


def test_replies_are_not_loops(alone: list[RequestOutput]) -> None:
    assert sum(len(set(output.token_ids)) > 8 for output in alone) > len(alone) // 2


def test_a_batch_of_17_is_as_17_alone(
    folder: Path, params: SamplingParams, alone: list[RequestOutput]
) -> None:
    assert_same(generate(load(folder), prompts(), params), alone)


@pytest.mark.parametrize("budget", [1, 5, 16, 48])
def test_chunked_prefill_is_as_whole(
    folder: Path, params: SamplingParams, alone: list[RequestOutput], budget: int
) -> None:
    llm = load(folder, max_num_batched_tokens=budget)
    assert_same(generate(llm, prompts(), params), alone)


def test_a_cached_prefix_is_as_a_computed_one_and_counted_exactly(
    folder: Path, params: SamplingParams, alone: list[RequestOutput]
) -> None:
    llm = load(folder)
    first, second = (generate(llm, prompts(), params) for _ in range(2))
    assert_same(first, alone)
    assert_same(second, alone)
    assert [output.num_cached_tokens for output in first] == [0] * len(LENGTHS)
    assert [output.num_cached_tokens for output in second] == [(length - 1) // 16 * 16 for length in LENGTHS]
    llm.core.reset_prefix_cache()
    assert [o.num_cached_tokens for o in generate(llm, prompts(), params)] == [0] * len(LENGTHS)


def test_a_conversation_of_many_turns_is_as_each_turn_computed_anew(
    folder: Path, params: SamplingParams
) -> None:
    warm, cold = load(folder), load(folder, enable_prefix_caching=False)
    draw, tokens, computed = random.Random(3), [1], 0
    for _ in range(10):
        tokens += [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 20))]
        (hot,), (fresh,) = (generate(llm, [tokens], params) for llm in (warm, cold))
        assert_same([hot], [fresh])
        assert hot.num_cached_tokens == min(computed, len(tokens) - 1) // 16 * 16
        computed = len(tokens) + len(hot.token_ids) - 1
        tokens = [*tokens, *hot.token_ids]


def test_preempted_replies_are_as_undisturbed_ones(
    folder: Path, params: SamplingParams, alone: list[RequestOutput]
) -> None:
    llm = load(folder, num_blocks=20)
    outputs = generate(llm, prompts(), params)
    assert_same(outputs, alone)
    assert llm.core.scheduler.preemptions > 0
    assert sum(output.metrics.preemptions for output in outputs) == llm.core.scheduler.preemptions


def test_an_evicted_prefix_is_computed_again(
    folder: Path, params: SamplingParams, alone: list[RequestOutput]
) -> None:
    llm = load(folder, num_blocks=16)
    for output, prompt in zip(alone, prompts(), strict=True):
        assert_same(generate(llm, [prompt], params), [output])
    (again,) = generate(llm, [prompts()[-1]], params)
    assert again.num_cached_tokens == 128 and again.token_ids == alone[-1].token_ids
    generate(llm, prompts(9)[-3:], params)
    (after,) = generate(llm, [prompts()[-1]], params)
    assert after.num_cached_tokens < 128 and after.token_ids == alone[-1].token_ids


@pytest.mark.parametrize("ahead", [1, 4])
def test_steps_dispatched_ahead_change_nothing(
    folder: Path, params: SamplingParams, alone: list[RequestOutput], ahead: int
) -> None:
    llm = load(folder)
    lag(llm.core, ahead)
    assert_same(generate(llm, prompts(), params), alone)


def test_the_same_seed_gives_the_same_replies_and_another_one_others(folder: Path) -> None:
    llm = load(folder)
    batch = prompts()[:4]
    texts = {}
    for seed in (1, 1, 2):
        params = SamplingParams(temperature=1.0, n=3, seed=seed, max_tokens=12, ignore_eos=True)
        replies = [o.token_ids for output in generate(llm, batch, params) for o in output.outputs]
        assert texts.setdefault(seed, replies) == replies
        assert len(set(replies)) == len(replies), "replies of one request must differ"
    assert texts[1] != texts[2]


def test_requests_without_a_seed_differ_unless_the_engine_has_one(folder: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    batch = [prompts()[5]] * 2
    loose = [o.token_ids for o in generate(load(folder), batch, params)]
    assert loose[0] != loose[1]
    tied = [[o.token_ids for o in generate(load(folder, seed=7), batch, params)] for _ in range(2)]
    assert tied[0] == tied[1] and tied[0][0] != tied[0][1]

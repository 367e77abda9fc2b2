"""The deterministic mode: a reply is the same bits alone or in company, cached or computed, whole or in chunks.

In bfloat16, where rounding shows every other order of adding up. Bits are compared by log-probabilities, exactly.
"""

from __future__ import annotations

from pathlib import Path

import drawn_replies
import pytest
import torch
from drawn_replies import bits, replies
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from nanochat.engine.llm import LLM
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import UnsupportedModel, UsageError

VOCABULARY = 211
NEIGHBOURS = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, logprobs=1)
DRAWN = SamplingParams(
    temperature=0.8, top_p=0.9, min_p=0.01, max_tokens=10, ignore_eos=True, seed=7, logprobs=0
)
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "initializer_range": 0.15,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=2, attention_bias=True)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("experts")
    Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SHAPE, num_hidden_layers=2, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64,
            norm_topk_prob=True,
        )
    ).save_pretrained(path)  # fmt: skip
    return path


def load(folder: Path, *, deterministic: bool = True, dtype: str = "bfloat16", **options) -> LLM:
    return LLM(
        folder, dtype=dtype, device="cpu", skip_tokenizer=True, deterministic=deterministic,
        **{"num_blocks": 1024, "max_num_seqs": 80, **options},
    )  # fmt: skip


def draw_prompts(count: int, seed: int, shortest: int = 1, longest: int = 40) -> list[list[int]]:
    return drawn_replies.draw_prompts(count, seed, VOCABULARY, longest=longest, shortest=shortest)


@pytest.mark.parametrize(
    ("params", "dtype"),
    [(GREEDY, "bfloat16"), (DRAWN, "bfloat16"), (DRAWN, "float32")],
    ids=["greedy", "drawn", "drawn in float32"],
)
def test_a_needle_has_the_same_bits_among_64_neighbours(
    llama: Path, params: SamplingParams, dtype: str
) -> None:
    llm = load(llama, enable_prefix_caching=False, dtype=dtype)
    for trial in range(2):
        (needle,) = draw_prompts(1, trial, 5, 60)
        (alone,) = replies(llm, [needle], params)
        company = draw_prompts(NEIGHBOURS, 100 + trial)
        place = 50 * trial
        among = replies(llm, [*company[:place], needle, *company[place:]], params)[place]
        assert bits(among) == bits(alone), trial


def test_a_cached_prefix_and_chunks_give_the_bits_of_a_whole_prompt(llama: Path) -> None:
    batch = draw_prompts(4, 1, 70, 150)
    whole = [bits(r) for r in replies(load(llama, enable_prefix_caching=False, max_num_seqs=1), batch, DRAWN)]
    llm = load(llama)
    assert [bits(r) for r in replies(llm, batch, DRAWN)] == whole
    again = replies(llm, batch, DRAWN)
    assert all(reply.num_cached_tokens > 0 for reply in again)
    assert [bits(r) for r in again] == whole
    chunked = load(llama, max_num_batched_tokens=23)
    assert [bits(r) for r in replies(chunked, batch, DRAWN)] == whole
    preempted = load(llama, num_blocks=16)
    assert [bits(r) for r in replies(preempted, batch, DRAWN)] == whole
    assert preempted.core.scheduler.preemptions > 0


def test_experts_are_summed_alike_whoever_else_chose_them(experts: Path) -> None:
    llm = load(experts, enable_prefix_caching=False)
    needle, *company = draw_prompts(17, 3)
    (alone,) = replies(llm, [needle], GREEDY)
    assert bits(replies(llm, [*company, needle], GREEDY)[-1]) == bits(alone)


def test_without_the_mode_company_changes_bits(llama: Path) -> None:
    llm = load(llama, deterministic=False, enable_prefix_caching=False)
    needle, *company = draw_prompts(NEIGHBOURS + 1, 5, 20, 60)
    (alone,) = replies(llm, [needle], GREEDY)
    assert bits(replies(llm, [*company, needle], GREEDY)[-1]) != bits(alone)


def test_replies_are_those_of_the_usual_mode_but_for_rounding(llama: Path) -> None:
    batch = draw_prompts(6, 8, 10, 60)
    steady = replies(load(llama, dtype="float32"), batch, GREEDY)
    usual = replies(load(llama, deterministic=False, dtype="float32"), batch, GREEDY)
    assert [r.token_ids for r in steady] == [r.token_ids for r in usual]


def test_what_cannot_be_deterministic_is_refused(llama: Path, tmp_path: Path) -> None:
    from nanochat.engine.models import load_model
    from nanochat.engine.models.config import ModelConfig

    config = ModelConfig.from_folder(llama)
    with pytest.raises(UsageError, match="tensor_parallel_size 1 or 2"):
        load_model(
            llama, config, dtype=torch.float32, device=torch.device("cpu"), world_size=4, deterministic=True
        )
    (tmp_path / "config.json").write_text(
        (llama / "config.json").read_text().replace("LlamaForCausalLM", "GPTNeoXForCausalLM")
        .replace('"llama"', '"gpt_neox"')
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="leave deterministic off"):
        load_model(
            tmp_path, ModelConfig.from_folder(tmp_path), dtype=torch.float32, device=torch.device("cpu"),
            deterministic=True,
        )  # fmt: skip

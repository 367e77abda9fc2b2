"""One model on 1, 2 and 4 ranks over gloo: the same token ids, whatever the requests ask for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from thread_ranks import ThreadWorkers

from nanochat import SamplingParams
from nanochat.engine import llm as engine
from nanochat.engine.parallel import group

LENGTH = 128
SHARED = list(range(3, 43))  # two full blocks and a half
PROMPTS = [[5, 9, 2, 77, 31], [*SHARED, 7], [*SHARED, 8, 9], [100], [*range(20, 90)]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, top_k=20, top_p=0.95, seed=7, n=2, max_tokens=LENGTH, ignore_eos=True)
BENT = SamplingParams(
    temperature=1.0, repetition_penalty=1.2, presence_penalty=0.3, logit_bias={17: 3.0}, min_p=0.05, seed=2**63 + 5,
    logprobs=2, max_tokens=40, min_tokens=10, ignore_eos=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def ranks_are_threads(monkeypatch):
    monkeypatch.setattr(group, "Workers", ThreadWorkers)
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # threads hand each other the interpreter at every collective
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


def replies(folder: Path, ranks: int, **options):
    """Everything that a run says: ids of each reply, log-probabilities, and what was cached and preempted."""
    llm = engine.LLM(
        folder, dtype="float32", device="cpu", tensor_parallel_size=ranks, skip_tokenizer=True, **options
    )
    try:
        params = [GREEDY, GREEDY, GREEDY, DRAWN, BENT]
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        again = llm.generate([[*SHARED, 9]], replace(GREEDY, max_tokens=9), use_tqdm=False)
        return (
            [reply.token_ids for output in [*outputs, *again] for reply in output.outputs],
            outputs[4].outputs[0].logprobs,
            (again[0].num_cached_tokens, llm.core.scheduler.preemptions),
        )
    finally:
        llm.close()


FAMILIES = [
    "llama_biases",
    "smollm2",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mistral_window",
    "phi3",
    "gemma3_capped",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_say_what_one_says(name: str, tiny_folder) -> None:
    same(tiny_folder(name), 2)


@pytest.mark.parametrize("name", ["llama_gqa_128_tied", "qwen3_moe_raw", "smollm2"])
def test_four_ranks_say_what_one_says_although_there_are_fewer_key_value_heads(
    name: str, tiny_folder
) -> None:
    same(tiny_folder(name), 4)


def test_preempted_replies_go_on_as_on_one_rank(tiny_folder) -> None:
    found = same(tiny_folder("qwen3"), 2, num_blocks=24)
    assert found[2][1] > 0


def same(folder: Path, ranks: int, **options):
    alone, split = replies(folder, 1, **options), replies(folder, ranks, **options)
    assert all(len(ids) == LENGTH for ids in split[0][:3])
    assert split[0] == alone[0]
    assert split[2] == alone[2] and split[2][0] == 32
    for one, other in zip(alone[1], split[1], strict=True):
        assert one.keys() == other.keys()
        assert all(abs(one[token].logprob - other[token].logprob) < 1e-3 for token in one)
    return split

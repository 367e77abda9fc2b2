"""One model over all GPUs that are there, NCCL and sums in one shot included: the ids of one GPU, and an end in seconds."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA devices", allow_module_level=True)

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from nanochat.engine.llm import LLM
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import EngineDead

pytestmark = pytest.mark.gpu

VOCABULARY, LENGTH = 1031, 64
PROMPTS = [[5, 9, 2, 77, 31], [*range(3, 43)], [100], [*range(20, 320)], [*range(3, 43), 7]]
RANKS = [count for count in (2, 4) if count <= torch.cuda.device_count()]
WISHES = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True),
    "drawn": SamplingParams(temperature=1.1, seed=11, max_tokens=LENGTH, ignore_eos=True),
    "filtered": SamplingParams(
        temperature=0.8, top_k=20, top_p=0.95, seed=7, max_tokens=LENGTH, ignore_eos=True
    ),
    "adjusted": SamplingParams(
        temperature=0.8,
        top_k=20,
        seed=7,
        max_tokens=LENGTH,
        ignore_eos=True,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        logit_bias={9: 2.0},
        logprobs=2,
        min_tokens=LENGTH,
        stop_token_ids=[4],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ranks")
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=4, head_dim=64, max_position_embeddings=1024, initializer_range=0.1,
        )
    ).save_pretrained(path)  # fmt: skip
    return path


def load(folder: Path, ranks: int, **options) -> LLM:
    return LLM(
        folder, dtype="float32", device="cuda:0", tensor_parallel_size=ranks, skip_tokenizer=True,
        **{"num_blocks": 512, **options},
    )  # fmt: skip


def replies(llm: LLM) -> dict[str, list[tuple[int, ...]]]:
    return {
        name: [output.token_ids for output in llm.generate(PROMPTS, wish, use_tqdm=False)]
        for name, wish in WISHES.items()
    }


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[tuple[int, ...]]]:
    llm = load(folder, 1)
    found = replies(llm)
    llm.close()
    return found


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"num_blocks": 24}], ids=str)
def test_ranks_say_what_one_says(folder: Path, alone, ranks: int, options: dict[str, object]) -> None:
    llm = load(folder, ranks, **options)
    print(llm.core.describe(), llm.core.group.collectives.measured)
    found = replies(llm)
    forms = {form for _, form in llm.core._runner._runner._graphs._captured}
    began = time.perf_counter()
    llm.close()
    assert time.perf_counter() - began < 2, "NCCL did not let go"
    wrong = [
        (name, row, next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), "length"))
        for name in WISHES
        for row, (one, other) in enumerate(zip(alone[name], found[name], strict=True))
        if one != other
    ]
    assert not wrong, f"(wish, prompt, first token that differs): {wrong}"
    assert forms == (set() if "enforce_eager" in options else {"divided", "whole", "logits"})


def test_ranks_of_a_mixture_say_what_one_says(tmp_path: Path) -> None:
    """Each rank has columns of every expert, and all choose the same ones; their shares are ragged."""
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=8,
            num_key_value_heads=4, head_dim=64, max_position_embeddings=1024, initializer_range=0.1, num_experts=16,
            num_experts_per_tok=4, moe_intermediate_size=100, norm_topk_prob=True, mlp_only_layers=[1],
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    found = []
    for ranks in (1, *RANKS):
        llm = load(tmp_path, ranks)
        found.append(replies(llm))
        core = llm.core
        assert (core._runner if ranks == 1 else core._runner._runner)._graphs._captured
        llm.close()
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("ranks", RANKS)
def test_replies_that_take_over_seats_beside_others_are_those_of_one(folder: Path, alone, ranks: int) -> None:
    """Prompts are read beside replies that go on, by new graphs: all rows are handed back between them."""
    llm = load(folder, ranks, max_num_seqs=2)
    core, lengths = llm.core, (20, 64, 12, 40, 30)
    requests = [
        Request(prompt, SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, **wish))
        for prompt, length, wish in zip(PROMPTS, lengths, ({}, {}, {"logprobs": 1}, {}, {}), strict=True)
    ]
    said: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    while core.has_work:
        for update in core.step():
            said[update.request_id].extend(update.token_ids)
    llm.close()
    wanted = [list(reply[:length]) for reply, length in zip(alone["greedy"], lengths, strict=True)]
    assert list(said.values()) == wanted


def test_the_first_tokens_survive_a_second_load(folder: Path, alone) -> None:
    """What the first engine shared is gone, and the next one shares anew."""
    free = []
    for _ in range(3):
        llm = load(folder, 2)
        wish = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        assert llm.generate([PROMPTS[0]], wish, use_tqdm=False)[0].token_ids == alone["greedy"][0][:8]
        llm.close()
        del llm
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info(0)[0])
    assert free[2] > free[1] - 2**24, f"memory is lost with every load: {free}"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_ends_the_engine_in_seconds(folder: Path, sent: signal.Signals) -> None:
    """In the middle of replies whose graphs are there.

    A rank that stands still while rank 0 compiles, measures or captures is given up later, after the longer time that such
    work is given by name (`headway.MEASURING`, a minute); one that dies is seen at once there too.
    """
    llm = load(folder, 2)
    llm.generate(PROMPTS, WISHES["greedy"], use_tqdm=False)  # captures what is needed
    endless = SamplingParams(temperature=0.0, max_tokens=600, ignore_eos=True)
    for prompt in PROMPTS:
        llm.core.add(Request(prompt, endless))
    said = 0
    while said < 20 * len(PROMPTS):
        said += sum(len(update.token_ids) for update in llm.core.step())
    os.kill(llm.core.group.pids[0], sent)
    began = time.perf_counter()
    with pytest.raises(EngineDead) as told:
        while llm.core.has_work:
            llm.core.step()
    took = time.perf_counter() - began
    print(f"{took:.1f} s: {told.value}")
    assert took < 12
    llm.close()
    assert time.perf_counter() - began < 20

"""One model on 1, 2 and 4 ranks, over gloo and without its sockets: the same token ids, whatever the requests ask for."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat import SamplingParams
from nanochat.engine import llm as engine
from nanochat.engine import loading
from nanochat.engine.parallel import group
from nanochat.engine.parallel.collectives import Collectives
from nanochat.engine.parallel.messages import StepReader
from nanochat.engine.request import Request
from nanochat.errors import EngineDead, OutOfMemory, UnsupportedModel, UsageError

pytestmark = pytest.mark.usefixtures("rank_threads")

LENGTH = 128
SHARED = list(range(3, 43))  # two full blocks and a half
PROMPTS = [[5, 9, 2, 77, 31], [*SHARED, 7], [*SHARED, 8, 9], [100], [*range(20, 90)]]


def wishes(length: int) -> list[SamplingParams]:
    """One for each prompt: greedy, drawn with filters and n > 1, and everything that bends logits."""
    greedy = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
    drawn = SamplingParams(
        temperature=0.8, top_k=20, top_p=0.95, seed=7, n=2, max_tokens=length, ignore_eos=True
    )
    free = SamplingParams(temperature=1.1, seed=11, max_tokens=length, ignore_eos=True)
    bent = SamplingParams(
        temperature=1.0, repetition_penalty=1.2, presence_penalty=0.3, logit_bias={17: 3.0}, min_p=0.05,
        seed=2**63 + 5, logprobs=2, max_tokens=min(length, 40), min_tokens=min(length, 10), ignore_eos=True,
    )  # fmt: skip
    return [greedy, greedy, free, drawn, bent]


def replies(folder: Path, ranks: int, length: int, **options):
    """Everything that a run says: ids of each reply, log-probabilities, and what was cached and preempted."""
    torch.set_num_threads(1)
    llm = engine.LLM(
        folder, dtype="float32", device="cpu", tensor_parallel_size=ranks, skip_tokenizer=True, **options
    )
    try:
        outputs = llm.generate(PROMPTS, wishes(length), use_tqdm=False)
        again = llm.generate([[*SHARED, 9]], wishes(9)[0], use_tqdm=False)
        return (
            [reply.token_ids for output in [*outputs, *again] for reply in output.outputs]
            + beside_a_cancelled_one(llm.core, min(length, 24)),
            outputs[4].outputs[0].logprobs,
            (again[0].num_cached_tokens, llm.core.scheduler.preemptions),
        )
    finally:
        llm.close()


def beside_a_cancelled_one(core, length: int):
    """Ids of two replies, of which the first is cancelled in the middle."""
    cancelled, other = Request(PROMPTS[0], wishes(length)[2]), Request(PROMPTS[1], wishes(length)[2])
    ids = {cancelled.request_id: (), other.request_id: ()}
    for request in (cancelled, other):
        core.add(request)
    while core.has_work:
        for update in core.step():
            ids[update.request_id] += tuple(update.token_ids)
        if len(ids[cancelled.request_id]) == length // 2:
            core.abort(cancelled.request_id)
    assert len(ids[cancelled.request_id]) < length == len(ids[other.request_id])
    return list(ids.values())


def same(alone, split, cached: int = 32) -> None:
    assert split[0] == alone[0]
    assert split[2] == alone[2] and split[2][0] == cached
    for one, other in zip(alone[1], split[1], strict=True):
        assert one.keys() == other.keys()
        assert all(abs(one[token].logprob - other[token].logprob) < 1e-3 for token in one)


FAMILIES = [
    "smollm2", "llama_biases", "qwen2", "qwen3", "qwen3_moe", "mistral_window", "smollm3", "phi3", "gemma3_capped",
]  # fmt: skip
THROUGH_TRANSFORMERS = ["gemma2", "olmo2", "starcoder2", "mixtral"]


@pytest.mark.usefixtures("sums_here")
@pytest.mark.parametrize("name", FAMILIES)
def test_two_and_four_ranks_say_what_one_says(name: str, tiny_folder) -> None:
    """Three key-value heads over two and four ranks, two of them over four, and nine query heads are among these."""
    alone = replies(tiny_folder(name), 1, LENGTH)
    for ranks in (2, 4):
        same(alone, replies(tiny_folder(name), ranks, LENGTH))


def test_over_gloo_as_well(tiny_folder) -> None:
    alone = replies(tiny_folder("smollm2"), 1, LENGTH)
    for ranks in (2, 4):
        same(alone, replies(tiny_folder("smollm2"), ranks, LENGTH))


@pytest.mark.usefixtures("sums_here")
@pytest.mark.parametrize(("ranks", "length"), [(2, LENGTH), (4, 24)])
@pytest.mark.parametrize("name", THROUGH_TRANSFORMERS)
def test_what_transformers_runs_is_divided_by_its_plan(
    name: str, ranks: int, length: int, tiny_folder
) -> None:
    same(replies(tiny_folder(name), 1, length), replies(tiny_folder(name), ranks, length))


@pytest.mark.usefixtures("sums_here")
@pytest.mark.parametrize("name", ["smollm2", "qwen3_moe_raw"])
def test_any_number_of_ranks_shares_out_what_does_not_divide(name: str, tiny_folder) -> None:
    alone = replies(tiny_folder(name), 1, 16)
    for ranks in (3, 4):
        same(alone, replies(tiny_folder(name), ranks, 16))


# OLMo 2's plan gathers queries, keys and values for the norms over whole queries and keys. Values have no norm: a
# rank's part of the output takes its own heads' columns again, and those read this rank's values alone.
OLMO2_VALUES = {3, 8, 13}  # of each layer: queries, keys, values, output, feed-forward; the embedding is 0


@pytest.mark.parametrize(
    ("name", "in_a_step", "needless"), [("smollm2", 8, set()), ("mixtral", 8, set()), ("olmo2", 17, OLMO2_VALUES)]
)  # fmt: skip
def test_every_collective_of_a_step_counts(name, in_a_step, needless, tiny_folder, monkeypatch) -> None:
    """Log-probabilities tell when one is left out, on all ranks alike: embedding, halves of layers, head."""
    folder, do, done = tiny_folder(name), Collectives._do, Counter()
    wish = SamplingParams(temperature=0.0, max_tokens=3, logprobs=20, ignore_eos=True)

    def run(ranks: int):
        llm = engine.LLM(
            folder, dtype="float32", device="cpu", tensor_parallel_size=ranks, skip_tokenizer=True
        )
        outputs = llm.generate([PROMPTS[0], PROMPTS[4]], wish, use_tqdm=False)
        llm.close()
        return [token for output in outputs for token in output.outputs[0].logprobs]

    def leaves_out(dropped: int | None):
        def maybe(self, operation):
            place, done[self] = done[self] % in_a_step, done[self] + 1
            if place != dropped:
                do(self, operation)

        return maybe

    def same_when_left_out(dropped: int | None) -> bool:
        monkeypatch.setattr(Collectives, "_do", leaves_out(dropped))
        found = run(2)
        return len(found) == len(alone) and all(
            one.keys() == other.keys() and all(abs(one[t].logprob - other[t].logprob) < 1e-3 for t in one)
            for one, other in zip(alone, found, strict=True)
        )

    alone = run(1)
    assert {place for place in range(in_a_step) if same_when_left_out(place)} == needless
    assert same_when_left_out(None)
    assert {count % in_a_step for count in done.values()} == {0}


def test_tokens_that_need_no_whole_logits_are_drawn_without_gathering_them(tiny_folder, monkeypatch) -> None:
    """131 tokens over two ranks: greedy and drawn with a temperature alone, then beside a request with a filter."""
    folder, gathers, gather = tiny_folder("gemma3_capped"), Counter(), Collectives.gather
    plain, mixed = [wishes(24)[0], wishes(24)[2]], [wishes(24)[0], wishes(24)[3]]

    def counting(self, share, vocabulary):
        gathers[self.rank] += 1
        return gather(self, share, vocabulary)

    monkeypatch.setattr(Collectives, "gather", counting)
    found = []
    for ranks in (1, 2):
        llm = engine.LLM(
            folder, dtype="float32", device="cpu", tensor_parallel_size=ranks, skip_tokenizer=True
        )
        for wish in (plain, mixed):
            outputs = llm.generate(PROMPTS[:2], wish, use_tqdm=False)
            found.append([reply.token_ids for output in outputs for reply in output.outputs])
            assert bool(gathers) == (wish is mixed and ranks == 2)
        llm.close()
    assert found[:2] == found[2:]


def test_of_equal_tokens_on_two_ranks_the_first_is_taken_as_on_one(tiny_folder, tmp_path) -> None:
    folder = shutil.copytree(tiny_folder("llama_mha_64"), tmp_path / "even")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros_like(weights["lm_head.weight"])},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    for ranks in (1, 2):
        llm = engine.LLM(folder, device="cpu", tensor_parallel_size=ranks, skip_tokenizer=True)
        assert llm.generate([PROMPTS[0]], wishes(3)[0], use_tqdm=False)[0].outputs[0].token_ids == (0, 0, 0)
        llm.close()


@pytest.mark.usefixtures("sums_here")
def test_preempted_replies_go_on_as_on_one_rank(tiny_folder) -> None:
    alone = replies(tiny_folder("qwen3"), 1, 100, num_blocks=24)
    assert alone[2][1] > 0
    for ranks in (2, 4):
        same(alone, replies(tiny_folder("qwen3"), ranks, 100, num_blocks=24))


def test_engines_in_one_process_do_not_collide(tiny_folder) -> None:
    folder, wish = tiny_folder("qwen3"), wishes(12)[0]
    made = [
        engine.LLM(folder, dtype="float32", device="cpu", tensor_parallel_size=ranks, skip_tokenizer=True)
        for ranks in (2, 3)
    ]
    found = [llm.generate([PROMPTS[0]], wish, use_tqdm=False)[0].token_ids for _ in range(2) for llm in made]
    for llm in made:
        llm.close()
    assert len(set(found)) == 1


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, OutOfMemory])
def test_a_rank_that_runs_out_of_memory_while_it_loads_says_so(kind, tiny_folder, monkeypatch) -> None:
    whole = loading.load_share

    def fails_on_rank_1(config, model_config, device, dtype, collectives, progress=None):
        if collectives.rank == 1:
            raise kind("tried to allocate 40 GiB")
        return whole(config, model_config, device, dtype, collectives, progress)

    monkeypatch.setattr(loading, "load_share", fails_on_rank_1)
    with pytest.raises(OutOfMemory, match=r"rank 1: .*40 GiB"):
        replies(tiny_folder("qwen3"), 2, 4)


def test_a_rank_that_runs_out_of_memory_in_a_step_ends_the_engine(tiny_folder, monkeypatch) -> None:
    def fails(self, message):
        raise torch.OutOfMemoryError("tried to allocate 40 GiB")

    monkeypatch.setattr(StepReader, "read", fails)
    with pytest.raises(EngineDead, match=r"rank 1: it ran out of memory .*40 GiB"):
        replies(tiny_folder("qwen3"), 2, 4)


def test_a_step_that_is_interrupted_ends_the_engine_with_a_reason(tiny_folder, monkeypatch) -> None:
    llm = engine.LLM(tiny_folder("qwen3"), device="cpu", tensor_parallel_size=2, skip_tokenizer=True)

    def interrupted(chunks):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(llm.core._runner._runner, "dispatch", interrupted)
        llm.generate([PROMPTS[0]], wishes(4)[0], use_tqdm=False)
    with pytest.raises(EngineDead, match="interrupted"):
        llm.generate([PROMPTS[0]], wishes(4)[0], use_tqdm=False)
    llm.close()


@pytest.mark.parametrize(
    ("name", "ranks", "why"),
    [
        ("qwen3", 5, "4 attention heads over 2 key-value heads"),
        ("gpt2", 2, "GPT2.* no tensor-parallel plan"),
        ("mixtral_narrow", 4, r"Mixtral.* cannot follow over 4 .*experts.gate_up_proj: 24 columns"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_starts(
    name, ranks, why, tiny_folder, monkeypatch
) -> None:
    monkeypatch.setattr(group, "Workers", None)
    with pytest.raises((UsageError, UnsupportedModel), match=why):
        replies(tiny_folder(name), ranks, 4)

"""The Python API on the starter model: shapes of prompts and results, stops, counts, errors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat import LLM, SamplingParams
from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Request
from nanochat.errors import (
    ContextOverflow,
    EmptyPrompt,
    EngineDead,
    InvalidSampling,
    ModelNotFound,
    NanochatError,
    OutOfMemory,
    UsageError,
)

GREEDY = {"temperature": 0.0}
COUNT = "1, 2, 3, 4, 5, 6, 7,"


@pytest.fixture(scope="module")
def llm(starter_model: Path) -> LLM:
    return LLM(str(starter_model), max_model_len=1024, dtype="float32")


def test_every_shape_of_prompts_gives_results_in_order(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, **GREEDY)
    ids = llm.tokenizer.encode(COUNT, special=True)
    one = llm.generate(COUNT, params, use_tqdm=False)
    assert len(one) == 1 and one[0].text == one[0]["text"] == one[0].outputs[0].text
    assert one[0].prompt == COUNT and one[0].prompt_token_ids == tuple(ids)
    (from_ids,) = llm.generate(ids, params, use_tqdm=False)
    assert from_ids.token_ids == one[0].token_ids and from_ids.prompt is None
    mixed = llm.generate([COUNT, ids, {"prompt": "Hello"}, {"prompt_token_ids": ids}], params, use_tqdm=False)
    assert [o.token_ids == one[0].token_ids for o in mixed] == [True, True, False, True]
    each = llm.generate([COUNT] * 2, [params, SamplingParams(max_tokens=1, **GREEDY)], use_tqdm=False)
    assert [len(o.token_ids) for o in each] == [3, 1]
    with pytest.raises(InvalidSampling, match="2 prompts and 1"):
        llm.generate([COUNT] * 2, [params], use_tqdm=False)


def test_pieces_and_whole_are_one_text(llm: LLM) -> None:
    (output,) = llm.generate("Once upon a time", SamplingParams(max_tokens=40, **GREEDY), use_tqdm=False)
    assert output.text == llm.tokenizer.decode(list(output.token_ids))
    assert output.finish_reason is FinishReason.LENGTH and output["finish_reason"] == "length"


def test_a_stop_string_ends_the_reply_and_does_not_leak(llm: LLM) -> None:
    (free,) = llm.generate(COUNT, SamplingParams(max_tokens=20, **GREEDY), use_tqdm=False)
    stop = free.text[8:11]
    (stopped,) = llm.generate(COUNT, SamplingParams(max_tokens=20, stop=stop, **GREEDY), use_tqdm=False)
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason is FinishReason.STOP and stopped.outputs[0].stop_reason == stop
    kept = SamplingParams(max_tokens=20, stop=stop, include_stop_str_in_output=True, **GREEDY)
    assert llm.generate(COUNT, kept, use_tqdm=False)[0].text == free.text[: free.text.index(stop)] + stop


def test_stop_ids_eos_and_min_tokens(llm: LLM) -> None:
    chat = [{"role": "user", "content": "Say only: hi"}]
    (natural,) = llm.chat(chat, SamplingParams(max_tokens=60, **GREEDY), use_tqdm=False)
    assert (
        natural.finish_reason is FinishReason.STOP
        and natural.token_ids[-1] in llm.core.model_config.eos_token_ids
    )
    assert "<|im_end|>" not in natural.text
    least = len(natural.token_ids) + 8
    longer = SamplingParams(max_tokens=least + 2, min_tokens=least, **GREEDY)
    assert len(llm.chat(chat, longer, use_tqdm=False)[0].token_ids) > least
    through = SamplingParams(max_tokens=least, ignore_eos=True, **GREEDY)
    assert len(llm.chat(chat, through, use_tqdm=False)[0].token_ids) == least
    first = natural.token_ids[0]
    (stopped,) = llm.chat(chat, SamplingParams(stop_token_ids=[first], **GREEDY), use_tqdm=False)
    assert stopped.token_ids == (first,) and stopped.outputs[0].stop_reason == first


def test_bad_words_do_not_come_and_others_do(llm: LLM) -> None:
    prompt = "The capital of France is"
    params = SamplingParams(max_tokens=12, **GREEDY)
    (free,) = llm.generate(prompt, params, use_tqdm=False)
    assert free.text.startswith(" Paris")
    banned = (["Paris"], ["Paris", free.text.split()[1]], [free.text[:12]])
    each = [params.clone(bad_words=words) for words in banned]
    *kept, beside = llm.generate([prompt] * 4, [*each, params], use_tqdm=False)
    assert beside.token_ids == free.token_ids
    for words, output in zip(banned, kept, strict=True):
        assert len(output.token_ids) == 12
        assert not any(word in output.text for word in words), output.text


def test_logprobs_hold_the_sampled_and_the_likeliest_tokens(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, temperature=1.0, seed=3, logprobs=4)
    (output,) = llm.generate(COUNT, params, use_tqdm=False)
    tables = output.outputs[0].logprobs
    assert tables is not None and len(tables) == 5
    for token, table in zip(output.token_ids, tables, strict=True):
        assert token in table and 4 <= len(table) <= 5
        assert sorted(entry.rank for entry in table.values())[:4] == [1, 2, 3, 4]
    total = sum(table[token].logprob for token, table in zip(output.token_ids, tables, strict=True))
    assert output.outputs[0].cumulative_logprob == pytest.approx(total)


def test_a_chat_reuses_the_turn_before(llm: LLM) -> None:
    from nanochat.prompt import Message

    llm.core.reset_prefix_cache()
    question = Message("user", "Tell me about the river Rhine, its cities and its length, in a few words.")
    params = SamplingParams(max_tokens=20, **GREEDY)
    (first,) = llm.chat([question], params, use_tqdm=False)
    reply = Message("assistant", first.text, token_ids=first.token_ids)
    (second,) = llm.chat([question, reply, Message("user", "And the Danube?")], params, use_tqdm=False)
    read = len(first.prompt_token_ids) + len(first.token_ids) - 1
    assert second.num_cached_tokens == read // 16 * 16 > len(first.prompt_token_ids)


def test_the_collector_leaves_the_libraries_alone_while_replies_are_made(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.unfreeze()  # what another test's application has frozen in this process
    frozen: list[int] = []
    step = llm.core.step
    monkeypatch.setattr(llm.core, "step", lambda: (frozen.append(gc.get_freeze_count()), step())[1])
    llm.generate("One", SamplingParams(max_tokens=2), use_tqdm=False)
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0

    gc.freeze()
    llm.generate("One", SamplingParams(max_tokens=2), use_tqdm=False)
    assert gc.get_freeze_count() > 10_000  # it was not this that froze it
    gc.unfreeze()


def test_what_cannot_run_is_refused_and_nothing_was_started(llm: LLM) -> None:
    for prompts, error in (
        ([COUNT, ""], EmptyPrompt),
        ([COUNT, [5] * 1024], ContextOverflow),
        ([COUNT, [49152]], InvalidSampling),
    ):
        with pytest.raises(error):
            llm.generate(prompts, use_tqdm=False)
        assert not llm.core.has_work
    with pytest.raises(ModelNotFound):
        LLM("no-such/model")


@pytest.mark.parametrize(
    "prompts",
    [
        None, 5, b"Hello", bytearray(b"Hello"), [b"Hello"], [None], [1.5, 2.0], [[1.5]], [True, False], [[5], [True]],
        "caf\udce9", {}, {"text": "x"}, {"prompt": None}, {"prompt": ["a", "b"]}, {"prompt_token_ids": "123"},
        {"prompt_token_ids": [1.5]}, {"input_ids": [5, 6], "attention_mask": [1, 1]}, [COUNT, {"prompt": b"x"}],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_prompt_is_refused(prompts: object, llm: LLM) -> None:
    """A script for another library meets an error, not a reply to something else."""
    with pytest.raises(UsageError, match=r"prompt|token ids"):
        llm.generate(prompts, use_tqdm=False)  # type: ignore[arg-type]
    assert not llm.core.has_work


@pytest.mark.parametrize(
    "more", [{"multi_modal_data": {"image": object()}}, {"cache_salt": "x"}, {"nonsense": 1}]
)
def test_a_prompt_with_more_than_text_is_not_answered_without_it(more: dict[str, object], llm: LLM) -> None:
    with pytest.raises(UsageError, match=next(iter(more))):
        llm.generate({"prompt": COUNT, **more}, use_tqdm=False)
    empty = {"prompt": COUNT, "multi_modal_data": None, "mm_processor_kwargs": {}}
    assert llm.generate(empty, SamplingParams(max_tokens=1, **GREEDY), use_tqdm=False)[0].token_ids


def test_arguments_of_vllms_that_ask_for_nothing_are_taken_and_others_refused_by_name(llm: LLM) -> None:
    params = SamplingParams(max_tokens=2, **GREEDY)
    expected = llm.generate(COUNT, params, use_tqdm=False)[0].token_ids
    taken = llm.generate(
        [COUNT, COUNT], params, use_tqdm=False, lora_request=None, tokenization_kwargs=None, priority=[1, 0]
    )
    assert [output.token_ids for output in taken] == [expected] * 2
    for refused in (
        {"lora_request": object()},
        {"priority": [1]},
        {"priority": 1},
        {"priority": ["first", "last"]},
    ):
        with pytest.raises(NanochatError, match=next(iter(refused))):
            llm.generate([COUNT, COUNT], params, use_tqdm=False, **refused)
    assert not llm.core.has_work


def test_arrays_and_what_is_made_on_demand_are_prompts(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, **GREEDY)
    ids = llm.tokenizer.encode(COUNT, special=True)
    expected = llm.generate(COUNT, params, use_tqdm=False)[0].token_ids
    for prompts in (
        np.array(ids),
        np.array([ids, ids]),
        torch.tensor(ids),
        [np.array(ids)],
        {"prompt": COUNT},
    ):
        assert llm.generate(prompts, params, use_tqdm=False)[0].token_ids == expected  # type: ignore[arg-type]
    both = {"prompt": "as the caller wrote it", "prompt_token_ids": ids}
    (output,) = llm.generate(both, params, use_tqdm=False)
    assert output.prompt == "as the caller wrote it" and output.token_ids == expected
    asking = (llm.generate(text, params, use_tqdm=False)[0].text for text in (COUNT, "Hello"))
    assert len(llm.generate(asking, params, use_tqdm=False)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [{"temperature": 0}, [{"temperature": 0}], "greedy", [None]], ids=repr)
def test_what_is_no_sampling_params_is_refused(params: object, llm: LLM) -> None:
    with pytest.raises(InvalidSampling, match="a SamplingParams, or a list of them"):
        llm.generate([COUNT], params, use_tqdm=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chat", ["Hi", {"role": "user", "content": "Hi"}, 5, ["Hi"], [["Hi"]], [5]], ids=repr
)
def test_what_is_no_chat_is_refused(chat: object, llm: LLM) -> None:
    with pytest.raises(UsageError, match=r"a chat is a list of messages|a message needs"):
        llm.chat(chat, use_tqdm=False)  # type: ignore[arg-type]


def test_a_chat_tells_its_prompt_as_it_was_rendered(llm: LLM) -> None:
    chat = [{"role": "user", "content": "Name a colour."}]
    (output,) = llm.chat((turn for turn in chat), SamplingParams(max_tokens=2), use_tqdm=False)  # type: ignore[arg-type]
    assert output.prompt is not None and "Name a colour." in output.prompt
    assert output.prompt.startswith("<|im_start|>") and len(output.prompt_token_ids) < len(output.prompt)


def test_an_interrupt_while_requests_are_queued_leaves_a_model_that_answers(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, added = llm.core.add, 0

    def interrupted(*arguments: object) -> None:
        nonlocal added
        added += 1
        if added == 3:
            raise KeyboardInterrupt
        add(*arguments)  # type: ignore[arg-type]

    params = SamplingParams(max_tokens=2, **GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(llm.core, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([COUNT] * 5, params, use_tqdm=False)
    assert not llm.core.has_work
    assert len(llm.generate(COUNT, params, use_tqdm=False)[0].token_ids) == 2


def test_what_an_interrupted_clean_up_left_is_ended_by_the_next_call(llm: LLM) -> None:
    ids = llm.tokenizer.encode(COUNT, special=True)
    llm.core.add(Request(ids, SamplingParams(max_tokens=500, ignore_eos=True)))
    (output,) = llm.generate(COUNT, SamplingParams(max_tokens=3, **GREEDY), use_tqdm=False)
    assert len(output.token_ids) == 3 and not llm.core.has_work


def test_an_option_that_there_is_not_is_named_with_what_comes_near() -> None:
    with pytest.raises(UsageError, match="LLM has no option max_num_seq: did you mean max_num_seqs"):
        LLM("starter", max_num_seq=4)
    with pytest.raises(UsageError, match="not an empty text"):
        LLM("")


def test_threads_may_share_a_model(llm: LLM) -> None:
    prompts = [f"{COUNT} {number}," for number in range(4)]
    params = SamplingParams(max_tokens=12, **GREEDY)
    alone = [llm.generate(prompt, params, use_tqdm=False)[0].token_ids for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: llm.generate(prompt, params, use_tqdm=False)[0], prompts))
    assert [output.token_ids for output in together] == alone


def test_a_closed_model_says_so_and_may_be_closed_again(tiny_folder) -> None:
    with LLM(tiny_folder("qwen3"), skip_tokenizer=True, num_blocks=16) as llm:
        assert len(llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2), use_tqdm=False)[0].token_ids) == 2
        with pytest.raises(InvalidSampling, match="stop strings need a tokenizer"):
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, stop="x"), use_tqdm=False)
        with pytest.raises(InvalidSampling, match="bad_words need a tokenizer"):
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, bad_words=["x"]), use_tqdm=False)
    llm.close()
    with pytest.raises(EngineDead, match="was closed"):
        llm.generate([[1, 2, 3]], use_tqdm=False)
    assert not llm.core.has_work


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("max_num_seqs", 0, "max_num_seqs must be at least 1, not 0"),
        ("max_num_batched_tokens", -5, "max_num_batched_tokens must be at least 1, not -5"),
        ("max_num_batched_tokens", "8", "max_num_batched_tokens must be a whole number, not '8'"),
        ("max_model_len", 0, "max_model_len must be at least 1"),
        ("max_model_len", 1.5, "a whole number, not 1.5"),
        ("tensor_parallel_size", "2", "tensor_parallel_size must be a whole number"),
        ("num_blocks", 0, "num_blocks must be at least 1"),
        ("kv_cache_bytes", -1, "kv_cache_bytes must be at least 1"),
        ("seed", "a", "seed must be a whole number"),
        ("gpu_memory_utilization", 0, "above 0 and at most 1, not 0"),
        ("gpu_memory_utilization", 2.0, "above 0 and at most 1, not 2.0"),
        ("gpu_memory_utilization", "all", "not 'all'"),
    ],
)
def test_an_option_outside_its_range_is_refused_before_anything_is_read(
    option: str, value: object, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        EngineConfig(model=Path("nowhere"), **{option: value})  # type: ignore[arg-type]


SWITCHES = [field.name for field in fields(EngineConfig) if isinstance(field.default, bool)]


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_true_or_false(switch: str) -> None:
    for value in ("no", 1, None, np.int64(0), np.array([True, False])):
        with pytest.raises(UsageError, match=f"{switch} must be True or False, not "):
            EngineConfig(model=Path("nowhere"), **{switch: value})  # type: ignore[arg-type]
    for value in (True, False):
        assert getattr(EngineConfig(model=Path("nowhere"), **{switch: np.bool_(value)}), switch) is value  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_numbers_too() -> None:
    config = EngineConfig(
        model=Path("nowhere"), max_model_len=np.int64(64), gpu_memory_utilization=np.float32(0.5)
    )
    assert config.max_model_len == 64


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("half", "float16"), ("float", "float32"), (torch.float32, "float32"), (torch.bfloat16, "bfloat16"),
        (torch.half, "float16"), ("bfloat16", "bfloat16"), ("auto", "auto"),
    ],
)  # fmt: skip
def test_vllms_names_of_a_dtype_are_stored_as_the_plain_ones(given: object, stored: str) -> None:
    assert EngineConfig(model=Path("nowhere"), dtype=given).dtype == stored  # type: ignore[arg-type]


def test_a_context_that_does_not_fit_is_refused_with_the_arithmetic(starter_model: Path) -> None:
    said = r"8,192 tokens needs .* kv_cache_bytes \(engine.kv_cache_gib .* allows 10 MiB: 448 tokens fit. Allow more, or set"
    with pytest.raises(OutOfMemory, match=said):
        LLM(str(starter_model), max_model_len=8192, kv_cache_bytes=10 * 2**20)
    assert LLM(str(starter_model), kv_cache_bytes=10 * 2**20).core.max_model_len == 10 * 2**20 // 368640 * 16


NANO_VLLM_EXAMPLE = """
import os
from nanochat import LLM, SamplingParams

def main():
    path = os.path.expanduser({path!r})
    llm = LLM(path, enforce_eager=True, tensor_parallel_size=1)
    sampling_params = SamplingParams(temperature=0.6, max_tokens=8)
    prompts = ["introduce yourself", "list all prime numbers within 100"]
    outputs = llm.generate(prompts, sampling_params)
    for prompt, output in zip(prompts, outputs):
        print(f"Prompt: {{prompt!r}}")
        print(f"Completion: {{output['text']!r}}")
    print(f"Spins: {{os.environ.get('GOMP_SPINCOUNT')}}")

if __name__ == "__main__":
    main()
"""


def test_a_script_for_nano_vllm_runs_after_changing_the_import(starter_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(NANO_VLLM_EXAMPLE.format(path=str(starter_model)))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2],
        env={**{name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"},
             "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Spins: 1000" in done.stdout  # or waiting threads take the cores from whoever else needs them
    assert done.stdout.count("Completion: ") == 2
    assert "Prefill=" in done.stderr and "Decode=" in done.stderr

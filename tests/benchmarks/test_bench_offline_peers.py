"""Engines that are not installed here, as modules with the interface that they document: vLLM, Nano-vLLM, llama.cpp."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat.bench import Plan, Sizes, run_benchmark
from nanochat.benchmarks.case import Ask
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.benchmarks.peers import open_peer
from nanochat.benchmarks.report import header
from nanochat.benchmarks.result import Row, Run
from nanochat.errors import NanochatError

pytestmark = pytest.mark.usefixtures("known_ceilings")


@dataclass
class NanoConfig:
    """Nano-vLLM's Config, with its defaults and checks."""

    model: str
    max_num_batched_tokens: int = 16384
    max_num_seqs: int = 512
    max_model_len: int = 4096
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        assert os.path.isdir(self.model)
        assert 1 <= self.tensor_parallel_size <= 8
        assert self.max_num_batched_tokens >= self.max_model_len


@dataclass
class NanoSamplingParams:
    temperature: float = 1.0
    max_tokens: int = 64
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        assert self.temperature > 1e-10


class NanoLLM:
    """Ids or texts go in, dictionaries come out; other keywords than the config's are dropped."""

    made: list[NanoLLM]

    def __init__(self, model: str, **options: Any) -> None:
        names = {field.name for field in fields(NanoConfig)}
        self.config = NanoConfig(model, **{name: value for name, value in options.items() if name in names})
        self.asked: list[tuple[list[int], NanoSamplingParams]] = []
        self.model_runner: object = object()
        atexit.register(self.exit)
        self.made.append(self)

    def exit(self) -> None:
        del self.model_runner  # a second call fails, as it does there

    def generate(
        self, prompts: list[Any], sampling_params: Any, use_tqdm: bool = True
    ) -> list[dict[str, Any]]:
        assert not use_tqdm and all(isinstance(prompt, list) for prompt in prompts)
        self.asked += zip(prompts, sampling_params, strict=True)
        return [{"text": "x" * p.max_tokens, "token_ids": [7] * p.max_tokens} for p in sampling_params]


@dataclass
class VllmSamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    ignore_eos: bool = False
    detokenize: bool = True


class VllmLLM:
    """Keyword arguments only; without a tokenizer it takes ids and must not be asked for text."""

    made: list[VllmLLM]

    def __init__(
        self, model: str, *, dtype: str = "auto", skip_tokenizer_init: bool = False, load_format: str = "auto",
        tensor_parallel_size: int = 1, gpu_memory_utilization: float = 0.9, enforce_eager: bool = False,
        max_model_len: int | None = None, enable_prefix_caching: bool = True,
    ) -> None:  # fmt: skip
        assert dtype in ("auto", "half", "float16", "bfloat16", "float", "float32")
        self.without_tokenizer, self.load_format = skip_tokenizer_init, load_format
        self.resets = 0
        self.made.append(self)

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True

    def generate(
        self, prompts: list[Any], /, sampling_params: list[VllmSamplingParams], *, use_tqdm: bool = True
    ) -> list[SimpleNamespace]:
        for prompt, params in zip(prompts, sampling_params, strict=True):
            if self.without_tokenizer and (not isinstance(prompt, dict) or params.detokenize):
                raise ValueError("cannot pass text prompts when skip_tokenizer_init is True")
            assert prompt["prompt_token_ids"] and set(prompt) == {"prompt_token_ids"}
            if len(prompt["prompt_token_ids"]) == 13:
                raise RuntimeError("engine core died")
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7])]) for _ in prompts]


class Llama:
    """llama-cpp-python's class: one stream of ids; a prefix that it has computed is not computed again."""

    made: list[Llama]

    def __init__(self, *, model_path: str, n_ctx: int, **options: Any) -> None:
        if Path(model_path).read_bytes()[:4] != b"GGUF":
            raise ValueError(f"Failed to load model from file: {model_path}")
        self.model, self.n_ctx, self.options, self.resets = "pointer", n_ctx, options, 0
        self.made.append(self)

    def generate(self, tokens: list[int], **sampling: float) -> Iterator[int]:
        assert set(sampling) <= {"temp", "top_k", "top_p", "min_p", "repeat_penalty"}
        for _ in range(self.n_ctx - len(tokens)):
            yield 7

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    module.__spec__ = ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    for each in contents.values():
        if isinstance(each, type):
            each.made = []  # type: ignore[attr-defined]


def measured(folder: Path, against: str, names: tuple[str, ...] = ("quick",), **given: Any) -> Run:
    sizes = given.pop("sizes", Sizes(prompts=(12,), output=3, depths=(0,), batches=(2,)))
    plan = Plan(
        model=write_shape("tiny", folder), model_name="tiny", drawn=True, names=names, sizes=sizes, repeats=1,
        device="cpu", against=(against,), **given,
    )  # fmt: skip
    return run_benchmark(plan)


def theirs(run: Run) -> list[Row]:
    return [row for row in run.rows if row.engine != "nanochat"]


def test_vllm_is_asked_for_ids_without_a_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, "vllm", LLM=VllmLLM, SamplingParams=VllmSamplingParams, __version__="0.25.1")
    run = measured(tmp_path, "vllm", ("quick", "throughput"))
    assert [row.test for row in theirs(run)] == ["pp12", "tg3", "batch 2 x (12 + 3)"]
    assert all(len(row.samples) == 1 and row.error is None for row in theirs(run))
    (made,) = VllmLLM.made
    assert made.load_format == "dummy" and made.resets >= 6
    assert run.environment["engines"] == {"vllm": "version 0.25.1"}


def test_an_engine_that_dies_has_an_error_in_its_row_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, "vllm", LLM=VllmLLM, SamplingParams=VllmSamplingParams)
    run = measured(tmp_path, "vllm", sizes=Sizes(prompts=(13, 12), output=3, depths=(0,)))
    first, second, third = theirs(run)
    assert first.error == "vllm failed: RuntimeError: engine core died" and not first.samples
    assert second.samples and third.samples and not run.partial
    assert all(row.samples for row in run.rows if row.engine == "nanochat")


def test_nano_vllm_gets_steps_as_long_as_the_context_and_is_left_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, "nanovllm", LLM=NanoLLM, SamplingParams=NanoSamplingParams)
    plan = Plan(model=write_shape("tiny", tmp_path), model_name="tiny", against=("nano-vllm",))
    target = open_peer("nano-vllm", plan, torch.device("cpu"), torch.bfloat16, 20_000, lambda: False)
    (made,) = NanoLLM.made
    assert made.config.max_model_len == made.config.max_num_batched_tokens == 20_000
    target.forget()
    replies = target.run([Ask((1, 2, 3), 4), Ask((4, 5), 6)])
    assert [reply.tokens for reply in replies] == [4, 6] and [ids for ids, _ in made.asked] == [
        [1, 2, 3],
        [4, 5],
    ]
    assert all(params.ignore_eos and params.temperature == 0.6 for _, params in made.asked)
    leaving: list[object] = []
    monkeypatch.setattr(atexit, "unregister", leaving.append)
    target.close()
    assert leaving == [made.exit] and not hasattr(made, "model_runner")
    monkeypatch.undo()
    atexit.unregister(made.exit)


def test_nano_vllm_that_refuses_to_load_is_a_refusal_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, "nanovllm", LLM=NanoLLM, SamplingParams=NanoSamplingParams)
    plan = Plan(model=write_shape("tiny", tmp_path), model_name="tiny", tensor_parallel_size=16)
    with pytest.raises(NanochatError, match="nano-vllm failed: AssertionError"):
        open_peer("nano-vllm", plan, torch.device("cpu"), torch.bfloat16, 100, lambda: False)


def test_llama_cpp_has_all_threads_and_the_ceiling_of_its_own_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numbers = {"llama_model_size": lambda model: 5_000, "llama_model_n_params": lambda model: 10_000}
    install(monkeypatch, "llama_cpp", Llama=Llama, __version__="0.3.36", **numbers)
    gguf = tmp_path / "tiny.Q4_0.gguf"
    gguf.write_bytes(b"GGUF")
    run = measured(tmp_path, "llama.cpp", ("quick", "throughput"), gguf=gguf)
    (made,) = Llama.made
    assert made.options["n_threads"] == made.options["n_threads_batch"] == torch.get_num_threads()
    prefill, decode, batch = theirs(run)
    assert prefill.samples and decode.samples and made.resets >= 4
    assert batch.error is not None and "one request at a time" in batch.error
    own = next(row for row in run.rows if row.test == decode.test)
    assert own.ceiling is not None and decode.ceiling is not None
    assert 2 < decode.ceiling / own.ceiling < 4  # half a byte for each weight's two; the cache is the same
    assert "tiny.Q4_0.gguf, 4.00 bits a weight" in run.environment["engines"]["llama.cpp"]
    assert any(line.startswith("llama.cpp: llama-cpp-python 0.3.36") for line in header(run))


def test_a_file_that_llama_cpp_cannot_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, "llama_cpp", Llama=Llama)
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"nothing")
    with pytest.raises(NanochatError, match=r"llama\.cpp cannot load .*broken\.gguf"):
        measured(tmp_path, "llama.cpp", gguf=gguf)


def test_memory_is_told_of_one_engine_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, "vllm", LLM=VllmLLM, SamplingParams=VllmSamplingParams)
    assert all(row.peak_memory is None for row in measured(tmp_path, "vllm").rows)

"""LLM: blocking, offline generation in the shape of vLLM's and Nano-vLLM's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import torch

from nanochat.engine import garbage
from nanochat.engine.config import STEP_TOKENS, EngineConfig
from nanochat.engine.core import EngineCore
from nanochat.engine.loading import load
from nanochat.engine.outputs import CompletionOutput, FinishReason, RequestOutput
from nanochat.engine.prompts import Given, Prompt, Prompts, read_prompts
from nanochat.engine.request import Request, Update
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import EngineDead, InvalidModel, InvalidSampling, NanochatError, UsageError

_REFUSED = {
    "lora_request": "models run without LoRA adapters; merge the adapter into the model's weights",
    "tokenization_kwargs": "a prompt is tokenized as its model, a chat as its template says",
    "mm_processor_kwargs": "models here read nothing but text",
}


class LLM:
    """A model in memory, for scripts; `with LLM(...) as llm` gives its memory back at the end.

    Threads may share it: their calls follow each other. `EngineService` runs requests of many side by side.

    Args:
        model: a model's folder.
        enforce_eager: no CUDA graphs.
        tensor_parallel_size: over how many devices the model is split; by default as few as hold it.
        max_model_len: the longest prompt plus reply in tokens; by default the model's own context, or as
            much of it as fits.
        dtype: "auto", "bfloat16", "float16" or "float32", or one of torch.
        seed: where the seeds of requests without one are drawn from.
        options: more fields of `EngineConfig`, such as `deterministic=True`: the same bits whatever else runs.

    Raises:
        UsageError: an option that there is not, or a value outside its range.
        ModelNotFound, InvalidModel, UnsupportedModel, OutOfMemory: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        enforce_eager: bool = False,
        tensor_parallel_size: int | None = None,
        max_model_len: int | None = None,
        dtype: str = "auto",
        seed: int | None = None,
        **options: Any,
    ) -> None:
        _refuse_unknown(options)
        # Nobody watches single tokens here: prompts are read as fast as they can be.
        options.setdefault("prefill_beside_decodes", options.get("max_num_batched_tokens", STEP_TOKENS))
        self.config = EngineConfig(
            model=self._find(model),
            enforce_eager=enforce_eager,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
            dtype=dtype,
            seed=seed,
            **options,
        )
        self.core = EngineCore(self.config, load(self.config))
        self._lock, self._closed = threading.Lock(), False

    def _find(self, model: str | Path) -> Path:
        return Path(os.path.expanduser(model))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            InvalidModel: the engine was loaded without (`skip_tokenizer`).
        """
        if self.core.tokenizer is None:
            raise InvalidModel("this engine was loaded with skip_tokenizer: give prompts as token ids")
        return self.core.tokenizer

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer, as vLLM spells it."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends; `.clone(max_tokens=5)` makes another of it."""
        return SamplingParams().resolved(self.core.model_config.generation_defaults)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: object = None,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: object = None,
    ) -> list[RequestOutput]:
        """Complete prompts, all of them in one running batch; results come in the order of the prompts.

        Args:
            prompts: a text, a list of token ids, `{"prompt": text}`, `{"prompt_token_ids": ids}`, or a list of such.
            sampling_params: one for all, or one for each.
            use_tqdm: show a progress bar with prefill and decode rates on stderr.
            lora_request: refused, as is `tokenization_kwargs`.
            priority: a whole number for each prompt; lower ones go first.

        Raises:
            UsageError: what is no prompt, or no SamplingParams; an argument that means nothing here.
            EmptyPrompt, ContextOverflow, InvalidSampling: a prompt that can never run; none was started then.
            EngineDead: it was closed.
        """
        refuse({"lora_request": lora_request, "tokenization_kwargs": tokenization_kwargs})
        given = read_prompts(prompts)  # before the lock: what makes prompts on demand may ask this model
        params = self._one_each(sampling_params, len(given))
        order = _priorities(priority, len(given))
        with self._lock:
            if self._closed:
                raise EngineDead("this model was closed: load it again")
            with self._device():
                return self._generate(given, params, order, use_tqdm)

    def _generate(
        self, given: list[Given], params: list[SamplingParams], order: list[int], use_tqdm: bool
    ) -> list[RequestOutput]:
        requests = [
            Request(self._ids_of(prompt), each, priority)
            for prompt, each, priority in zip(given, params, order, strict=True)
        ]
        for request in requests:
            self.core.check(request)
        outputs = self._run(requests, use_tqdm)
        return [
            RequestOutput(
                request.request_id, prompt.text, tuple(request.prompt_ids), outputs[request.request_id]
            )
            for request, prompt in zip(requests, given, strict=True)
        ]

    def _one_each(
        self, params: SamplingParams | Sequence[SamplingParams] | None, number: int
    ) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * number
        if not _are_params(params):
            raise InvalidSampling(
                f"sampling_params is a SamplingParams, or a list of them, not {params!r:.60}"
            )
        if len(params) != number:
            raise InvalidSampling(
                f"{number} prompts and {len(params)} sampling_params: give one for all, or one for each"
            )
        return list(params)

    def _ids_of(self, prompt: Given) -> Sequence[int]:
        return self.tokenizer.encode(prompt.text or "", special=True) if prompt.ids is None else prompt.ids

    def _run(self, requests: list[Request], use_tqdm: bool) -> dict[str, tuple[CompletionOutput, ...]]:
        done: dict[str, list[CompletionOutput]] = {request.request_id: [] for request in requests}
        bar = _Bar(sum(request.params.n for request in requests), use_tqdm)
        try:
            for left in {sequence.request_id for sequence in self.core.sequences}:  # by a second Ctrl-C below
                self.core.abort(left)
            for request in requests:
                self.core.add(request)
            with garbage.of_before_left_alone():
                while self.core.has_work:
                    for output in _finished(self.core.step(), done):
                        bar.count(output)
                    bar.rates(self.core)
        except BaseException:
            for request_id in done:
                self.core.abort(request_id)
            self.core.step()
            raise
        finally:
            bar.close()
        return {
            request_id: tuple(sorted(outputs, key=lambda o: o.index)) for request_id, outputs in done.items()
        }

    def close(self) -> None:
        """Give the memory back; the object is of no use after that. May be called twice."""
        with self._lock:
            closed, self._closed = self._closed, True
            if not closed:
                with self._device():
                    self.core.close()

    def _device(self) -> AbstractContextManager[object]:
        """Inside it the model's GPU is this thread's, which may be another one than loaded it."""
        device = self.core.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exit(self) -> None:
        """`close`, as Nano-vLLM spells it."""
        self.close()


def refuse(given: Mapping[str, object]) -> None:
    """Arguments of vLLM's that cannot be followed here; empty ones ask for nothing."""
    for name, value in given.items():
        if value:
            raise UsageError(f"{name} means nothing here: {_REFUSED[name]}")


def _priorities(given: Any, number: int) -> list[int]:
    if given is None:
        return [0] * number
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or len(given) != number:
        raise UsageError(
            f"priority is a list of {number} whole numbers, one for each prompt, not {given!r:.60}"
        )
    return list(given)


def _are_params(given: object) -> bool:
    return isinstance(given, (list, tuple)) and all(isinstance(each, SamplingParams) for each in given)


def _refuse_unknown(options: dict[str, Any]) -> None:
    known = [field.name for field in fields(EngineConfig)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=2)
            hint = f": did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known)}"
            raise UsageError(f"LLM has no option {name}{hint}")


def _finished(updates: list[Update], done: dict[str, list[CompletionOutput]]) -> list[CompletionOutput]:
    outputs: list[CompletionOutput] = []
    for update in updates:
        if update.finished is not None and update.request_id in done:
            done[update.request_id].append(update.finished)
            outputs.append(update.finished)
    return outputs


class _Bar:
    """Nano-vLLM's progress bar: replies done, with `Prefill=…tok/s, Decode=…tok/s`."""

    def __init__(self, total: int, shown: bool) -> None:
        self._next = 0.0
        self._bar = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc="Generating", dynamic_ncols=True)

    def count(self, output: CompletionOutput) -> None:
        if self._bar is not None:
            self._bar.update(1)
            if output.finish_reason is FinishReason.ERROR:
                self._bar.write(f"a reply failed: {output.error}")

    def rates(self, core: EngineCore) -> None:
        if self._bar is not None and (now := time.monotonic()) >= self._next:
            self._next = now + 0.1
            prefill, decode = core.statistics.rates()
            self._bar.set_postfix(Prefill=f"{prefill:.0f}tok/s", Decode=f"{decode:.0f}tok/s")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


__all__ = ["LLM", "NanochatError", "Prompt", "Prompts"]

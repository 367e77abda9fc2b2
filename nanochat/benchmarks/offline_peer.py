"""vLLM and Nano-vLLM under measurement, through the offline `LLM` class that both have."""

from __future__ import annotations

import atexit
import importlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanochat.benchmarks.case import Ask, Reply, Weights
from nanochat.benchmarks.peers import MODULES

if TYPE_CHECKING:
    from nanochat.benchmarks.plan import Plan


_LEAST_BATCH = 16_384  # Nano-vLLM's default for the tokens of one step; it refuses a context beyond that


class OfflineTarget:
    """An `LLM` whose `generate` returns when everything is done."""

    streams = False
    weights: Weights = "as planned"

    def __init__(self, name: str, plan: Plan, dtype: str, longest: int) -> None:
        self.name = name
        self._module: Any = importlib.import_module(MODULES[name])
        self.about = f"version {getattr(self._module, '__version__', 'unknown')}"
        options: dict[str, Any] = {
            "enforce_eager": plan.enforce_eager,
            "tensor_parallel_size": plan.tensor_parallel_size or 1,
            "max_model_len": longest,
            "gpu_memory_utilization": 0.9 / (1 + len(plan.against)),
        }
        if name == "vllm":
            options |= {"dtype": dtype, "skip_tokenizer_init": True, "enable_prefix_caching": True}
            options |= {"load_format": "dummy"} if plan.drawn else {}
        else:
            options["max_num_batched_tokens"] = max(_LEAST_BATCH, longest)
        self._llm: Any = self._module.LLM(str(plan.model), **options)

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """See `Target`."""
        extra = {"detokenize": False} if self.name == "vllm" else {}
        params = [
            self._module.SamplingParams(
                temperature=ask.temperature, max_tokens=ask.output, ignore_eos=True, **extra
            )
            for ask in asks
        ]
        prompts: list[Any] = [list(ask.prompt) for ask in asks]
        if self.name == "vllm":
            prompts = [{"prompt_token_ids": ids} for ids in prompts]
        start = time.perf_counter()
        self._llm.generate(prompts, params, use_tqdm=False)
        end = time.perf_counter()
        return [Reply(start, end, ask.output) for ask in asks]

    def forget(self) -> None:
        """vLLM drops its prefixes; Nano-vLLM has no way to, and gives each block up when it is needed."""
        reset = getattr(self._llm, "reset_prefix_cache", None)
        if reset is not None:
            reset()

    def close(self) -> None:
        """See `Target`."""
        leave = getattr(self._llm, "exit", None)
        if leave is not None:
            atexit.unregister(
                leave
            )  # it has itself called at the end of the process, and fails the second time
            leave()
        self._llm = None

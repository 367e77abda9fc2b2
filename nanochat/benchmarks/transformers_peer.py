"""Transformers under measurement: `generate` for one request; for several, continuous batching or one padded `generate`.

It keeps no prefix from one request to the next, so its second turns compute the whole prompt again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nanochat.benchmarks.case import Ask, Reply, Weights
from nanochat.errors import NanochatError

if TYPE_CHECKING:
    from nanochat.benchmarks.plan import Plan

_NO_TOKEN = -1  # an end-of-sequence id that never comes
_CPU_BATCH = 2048  # tokens in one step of its continuous batching on a CPU
_PATIENCE = 600.0  # seconds without any result


class TransformersTarget:
    """A causal language model of Transformers'.

    Args:
        padded: answer several requests with one padded `generate`, as long as the longest of them takes.
    """

    streams = False
    weights: Weights = "as planned"

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype, *, padded: bool = False) -> None:
        self.name = "transformers-padded" if padded else "transformers"
        self._padded = padded
        from transformers import AutoConfig, AutoModelForCausalLM

        maker: Any = AutoModelForCausalLM
        if plan.drawn:
            with torch.device(device):
                config = AutoConfig.from_pretrained(plan.model, local_files_only=True)
                self._model: Any = maker.from_config(config, dtype=dtype)
        else:
            self._model = maker.from_pretrained(
                plan.model, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        self._model = self._model.to(device).eval()
        several = "one padded generate" if padded else "continuous batching"
        attention = getattr(self._model.config, "_attn_implementation", "unknown")
        self.about = f"attention {attention}; generate for one request, {several} for several"
        self._device = device

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """See `Target`."""
        return self._generate(asks) if self._padded or len(asks) == 1 else self._together(asks)

    def _generate(self, asks: Sequence[Ask]) -> list[Reply]:
        """One call for all, prompts padded on the left. A reply's tokens beyond what was asked for do not count."""
        longest = max(asks, key=lambda ask: ask.output)
        start = time.perf_counter()
        width = max(len(ask.prompt) for ask in asks)
        padding = [width - len(ask.prompt) for ask in asks]
        ids = torch.tensor([[0] * pad + [*ask.prompt] for ask, pad in zip(asks, padding, strict=True)])
        mask = torch.arange(width) >= torch.tensor(padding)[:, None]
        with torch.inference_mode():
            found = self._model.generate(
                ids.to(self._device),
                attention_mask=mask.long().to(self._device),
                generation_config=self._generation(longest, eos_token_id=None),
            )
        tokens = int(found.shape[1]) - width
        found[0, -1].item()  # waits for the device
        end = time.perf_counter()
        return [Reply(start, end, min(tokens, ask.output)) for ask in asks]

    def _together(self, asks: Sequence[Ask]) -> list[Reply]:
        generation = self._generation(asks[0], eos_token_id=_NO_TOKEN)
        with self._model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=self._cache(asks)
        ) as manager:
            start = time.perf_counter()
            names: list[str] = [
                manager.add_request(list(ask.prompt), max_new_tokens=ask.output, eos_token_id=_NO_TOKEN)
                for ask in asks
            ]
            ended: dict[str, Reply] = {}
            while len(ended) < len(asks):
                result = manager.get_result(timeout=_PATIENCE)
                if result is None or result.error is not None:
                    why = "it gave no result" if result is None else result.error
                    raise NanochatError(f"Transformers' continuous batching failed: {why}")
                if result.is_finished():
                    now = time.perf_counter()
                    ended[result.request_id] = Reply(start, now, len(result.generated_tokens))
        return [ended[name] for name in names]

    def _cache(self, asks: Sequence[Ask]) -> Any:
        """On a GPU what it chooses itself; on a CPU as much as the requests need, not most of the machine's memory."""
        if self._device.type == "cuda":
            return None
        from transformers import ContinuousBatchingConfig

        config: Any = ContinuousBatchingConfig()
        config.num_blocks = (
            sum(-(-(len(ask.prompt) + ask.output) // config.page_size) + 1 for ask in asks) + 1
        )
        config.max_batch_tokens = max(_CPU_BATCH, len(asks))
        return config

    def _generation(self, ask: Ask, *, eos_token_id: int | None) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=True,
            temperature=ask.temperature,
            top_k=0,
            max_new_tokens=ask.output,
            eos_token_id=eos_token_id,
            pad_token_id=0,
        )

    def forget(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """See `Target`."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

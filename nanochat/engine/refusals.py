"""What to say of a model that does not fit: the arithmetic, and what would fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nanochat.engine.memory import LEAST_CONTEXT, gib
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.parallel.placement import divides
from nanochat.engine.reserve import SLACK, Reserve
from nanochat.errors import OutOfMemory

_MOST_DEVICES = 8  # of one machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a model wants of each device.

    Attributes:
        model, dtype: for people.
        element: bytes of a number in `dtype`.
        device: "cuda" or "cpu".
        ranks: over how many devices it is split.
        weights: bytes.
        token: bytes of keys and values that a token takes.
    """

    model: str
    dtype: str
    element: int
    device: str
    ranks: int
    weights: int
    token: int

    @classmethod
    def of(
        cls, config: ModelConfig, name: str, device: torch.device, dtype: torch.dtype, ranks: int
    ) -> Demand:
        """Of a model that is split over `ranks`, which on a CPU share its memory."""
        devices = ranks if device.type == "cuda" else 1
        return cls(
            model=name, dtype=str(dtype).removeprefix("torch."), element=dtype.itemsize, device=device.type, ranks=devices,
            weights=config.weight_bytes(dtype) // devices, token=-(-config.kv_bytes_per_token(dtype) // devices),
        )  # fmt: skip

    def weights_refused(self, free: int, config: ModelConfig) -> OutOfMemory:
        """There is no room for the weights of the model of `config`; `free` bytes were there before any were loaded."""
        cache, on_gpu = LEAST_CONTEXT * self.token, self.device == "cuda"
        besides = f"a step {gib(SLACK)} of reserve or more" if on_gpu else "as much is left to others"
        room = max(free - cache - (SLACK if on_gpu else cache), 0)
        return OutOfMemory(
            f"the weights of {self.model} take {gib(self.weights)} in {self.dtype}{self._each} and {gib(free)} of "
            f"{self.device} memory is free, of which {LEAST_CONTEXT:,} tokens of context take "
            f"{gib(cache)} of KV cache ({self.token:,} bytes a token) and {besides}. "
            f"{self._fitting(room)}{self._otherwise(room, config)}"
        )

    def step_refused(self, asked: int, rows: int, free: int, reserve: Reserve) -> OutOfMemory:
        """There is room for the weights, but not for the work of a step beside them.

        Args:
            asked: tokens of a step at most, and `rows` its sequences.
            free: bytes after the weights.
            reserve: of a step that found room, if one did.
        """
        context = max(free - reserve.size, 0) // self.token
        if reserve.tokens and context:
            fits = (
                f"A step of {reserve.tokens:,} tokens fits with a reserve of {gib(reserve.size)}, and beside it a "
                f"context of {context:,} tokens: set max_num_batched_tokens to that, or lower max_num_seqs ({rows})"
            )
        elif reserve.tokens:
            fits = (
                f"A step of {reserve.tokens:,} tokens has room, but with its reserve of {gib(reserve.size)} not for a "
                f"context: set max_num_batched_tokens below that, or lower max_num_seqs ({rows})"
            )
        elif self.ranks > 1:  # smaller ones were not tried
            fits = f"Lower max_num_batched_tokens or max_num_seqs ({rows})"
        else:
            fits = f"No step of a useful size fits: lower max_num_seqs ({rows})"
        return OutOfMemory(
            f"a step of {asked:,} tokens of {self.model} found no room: its weights take {gib(self.weights)} in "
            f"{self.dtype}{self._each}, {gib(free)} of {self.device} memory is left for the step's reserve and the KV "
            f"cache ({self.token:,} bytes a token), and the device said: {reserve.shortage.rstrip('.')}. {fits}, free memory, or take "
            "a smaller model."
        )

    @property
    def _each(self) -> str:
        return f" on each of {self.ranks} devices" if self.ranks > 1 else ""

    def _fitting(self, room: int) -> str:
        if not room:
            return "No model fits in that: free memory"
        numbers = self.ranks * room / self.element
        fitting = f"{numbers / 1e9:.1f} billion" if numbers >= 1e9 else f"{numbers / 1e6:.0f} million"
        return f"Up to {gib(room)} of weights fit{self._each}, {fitting} parameters: free memory, take a smaller model"

    def _otherwise(self, room: int, config: ModelConfig) -> str:
        if self.element == 4 and self.weights / 2 <= room:
            return f", or load it in bfloat16, in which it takes {gib(self.weights / 2)}"
        more = range(self.ranks + 1, _MOST_DEVICES + 1) if self.device == "cuda" else ()
        split = next((n for n in more if divides(config, n) and self.ranks * self.weights / n <= room), None)
        return (
            ""
            if split is None
            else f", or split it over {split} such devices (tensor_parallel_size={split}, --tp {split})"
        )

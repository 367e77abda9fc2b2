"""flash-attn for prompts that are read from their beginning, where it is installed and faster than our own kernel.

Its pages are 256 positions and ours 16, so what has a cached prefix, and every decoding row, stays with our kernels. Which
of the two is faster is measured once for each shape of attention, on the first such step. Loading runs one, with the longest
prompt that a step takes, where that has 1,024 tokens.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.layout import AttentionLayout

_LEAST_TOKENS = 1024  # below that a prompt is launches, not arithmetic, and most are captured
_REPEATS = 3
# Of our kernel's time: two kernels that are equally fast differ by a hundredth from run to run.
_CLEARLY = 0.97


@dataclass(frozen=True, slots=True)
class Fresh:
    """The prefilling sequences of a step, none of which has a cached prefix: rows from `row` on.

    Attributes:
        starts: int32 [count + 1], within those rows.
        longest: tokens of the longest.
    """

    row: int
    starts: Tensor
    longest: int


def fresh_prompts(layout: AttentionLayout, first: int) -> Fresh | None:
    """The sequences from `first` on, if all are read from their beginning and are worth it."""
    lens, contexts = layout.query_lens[first:], layout.contexts[first:]
    row = sum(layout.query_lens[:first])
    if lens != contexts or sum(lens) < _LEAST_TOKENS:
        return None
    return Fresh(row, layout.query_start[first:] - row, max(lens))


class FlashAttention:
    """The installed flash-attn. `function` is its `flash_attn_varlen_func`, and `why` says what became of it."""

    def __init__(self, function: Callable[..., Any] | None, why: str) -> None:
        self._function = function
        self._faster: dict[tuple[int, int, int, int, float], bool] = {}
        self.why = why

    @classmethod
    def find(cls, *, used: bool = True) -> FlashAttention:
        """What is installed; a package that cannot be imported counts as none, and its reason is kept.

        Args:
            used: whether it may compute anything; its bits depend on the batch.
        """
        if not used:
            there = importlib.util.find_spec("flash_attn") is not None
            return cls(None, "flash-attn is not used in this mode" if there else "no flash-attn")
        try:
            function = importlib.import_module("flash_attn").flash_attn_varlen_func
            return cls(function, f"flash-attn {importlib.metadata.version('flash-attn')}")
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"
            return cls(None, "no flash-attn" if missing else f"flash-attn cannot be imported ({error})")
        except AttributeError:
            return cls(None, "this flash-attn has no flash_attn_varlen_func")

    @property
    def installed(self) -> bool:
        """Whether there is anything to choose."""
        return self._function is not None

    def takes(self, q: Tensor, spec: AttentionSpec) -> bool:
        """Whether it can compute such a layer."""
        fits = spec.head_dim <= 256 and spec.head_dim % 8 == 0
        return self._function is not None and fits and q.dtype in (torch.bfloat16, torch.float16)

    def faster(self, spec: AttentionSpec, theirs: Callable[[], object], ours: Callable[[], object]) -> bool:
        """Whether `theirs` clearly beat `ours` when this shape was first met."""
        shape = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.window, spec.soft_cap)
        if shape not in self._faster:
            seconds, own = _seconds(theirs), _seconds(ours)
            self._faster[shape] = seconds < _CLEARLY * own
            word = "for fresh prompts" if self._faster[shape] else "not used"
            self.why = f"{self.why.split(',')[0]}, {word}: {1e3 * seconds:.2f} ms a layer, our kernel {1e3 * own:.2f}"
        return self._faster[shape]

    def attend(
        self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], slots: Tensor, fresh: Fresh
    ) -> Tensor:
        """Attention of the rows of `fresh` over their own keys, which were written already.

        q: [num_tokens, num_heads * head_dim] -> [num_tokens - fresh.row, num_heads * head_dim].
        """
        assert self._function is not None
        own = slots[fresh.row :]
        k, v = (half.view(-1, spec.num_kv_heads, spec.head_dim).index_select(0, own) for half in cache)
        rows = q[fresh.row :].view(-1, spec.num_heads, spec.head_dim)
        window = (spec.window - 1, 0) if spec.window else (-1, -1)
        out = self._function(
            rows, k, v, fresh.starts, fresh.starts, fresh.longest, fresh.longest, softmax_scale=spec.scale, causal=True,
            window_size=window, softcap=spec.soft_cap,
        )  # fmt: skip
        return out.reshape(rows.shape[0], -1)


def _seconds(work: Callable[[], object]) -> float:
    """The best of a few runs on the device, after one to warm up."""
    work()
    best = float("inf")
    for _ in range(_REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best

"""The decoder's operations in Triton: what a CUDA GPU (sm_80 and later) runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.bundle import AttentionSpec, DenseLayer, FusedReduce, Reduce, Stack
from nanochat.kernels.cuda_experts import CudaExperts
from nanochat.kernels.decode_plan import decode_plan, invariant_plan
from nanochat.kernels.flash import FlashAttention, Fresh, fresh_prompts
from nanochat.kernels.gemv_config import GemvShape
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.sizes import next_power_of_2
from nanochat.kernels.triton_activation import gate_mul
from nanochat.kernels.triton_decode import decode_attention
from nanochat.kernels.triton_gemv import MAX_ROWS, gemv
from nanochat.kernels.triton_matmul import invariant_linear
from nanochat.kernels.triton_norm import add_rms_norm, rms_norm
from nanochat.kernels.triton_prefill import prefill_attention, prefill_plan
from nanochat.kernels.triton_rope import Rope, rope_and_write, write_kv
from nanochat.kernels.tuning import TuningCache

MAX_DECODE_QUERIES = 8
_COUNTERS = 1 << 17  # to begin with: enough for 4,096 sequences of 32 key-value heads


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix [out, in] and its bias, as they are: every kernel here reads rows."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Span:
    """Sequences [first, first + count) of a step, of at most `queries` queries each."""

    first: int
    count: int
    queries: int


@dataclass(frozen=True, slots=True)
class CudaPlan:
    """A step's sequences: those in front that decode, and those behind them that prefill.

    `fresh` is there where all of the latter are read from their beginning and flash-attn is installed.
    """

    layout: AttentionLayout
    decode: Span
    prefill: Span
    fresh: Fresh | None = None


class CudaKernels:
    """See `Kernels`.

    Args:
        deterministic: a row's bits depend on nothing but its own sequence: not on the batch, not on what was cached.
        tuning: where measured configurations are kept; `None` keeps them in memory.
        dtype: of the matrices, for which they are measured.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        deterministic: bool = False,
        tuning: Path | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.device = device
        self.deterministic = deterministic
        properties = torch.cuda.get_device_properties(device)
        self.multiprocessors = int(properties.multi_processor_count)
        self.shared_memory = int(properties.shared_memory_per_block_optin)
        self.pdl = (properties.major, properties.minor) >= (9, 0)
        self.experts = CudaExperts(properties.major, deterministic=deterministic)
        self.tuning = TuningCache(tuning, properties.name, dtype)
        self.counters = torch.zeros(_COUNTERS, dtype=torch.int32, device=device)
        self._former: list[Tensor] = []  # captured graphs have their addresses
        self.flash = FlashAttention.find(used=not deterministic)

    def describe(self, dtype: torch.dtype) -> str:
        """See `Kernels`."""
        chip = "sm_{}{}".format(*torch.cuda.get_device_capability(self.device))
        kind = "batch-invariant" if self.deterministic else f"matrix-vector up to {MAX_ROWS} rows"
        return f"Triton for {chip}, {str(dtype).removeprefix('torch.')} matrices, {kind}; {self.flash.why}"

    def pack(self, weight: Tensor, bias: Tensor | None = None, *, kept: bool = False) -> Weight:
        """See `Kernels`."""
        return Weight(weight.contiguous(), bias)

    def plan(self, layout: AttentionLayout) -> CudaPlan:
        """See `Kernels`."""
        seqs, lens = layout.context_lens.shape[0], layout.query_lens
        if not lens:  # a captured graph: every sequence brings the same few queries
            return CudaPlan(layout, Span(0, seqs, layout.slots.shape[0] // seqs), Span(seqs, 0, 0))
        # A prompt's last few tokens are prefilled beside others, and several queries are as good as eight: each other number
        # of queries would be another kernel to compile in mid-reply.
        few = MAX_DECODE_QUERIES if max(lens) <= MAX_DECODE_QUERIES else 1
        decoding = next((i for i, n in enumerate(lens) if n > few), len(lens))
        several = any(n > 1 for n in lens[:decoding])
        return CudaPlan(
            layout,
            Span(0, decoding, MAX_DECODE_QUERIES if several else 1),
            Span(decoding, seqs - decoding, max(lens[decoding:], default=0)),
            fresh_prompts(layout, decoding) if self.flash.installed and not layout.captured else None,
        )

    def rotation(self, cos: Tensor, sin: Tensor, like: Tensor) -> Rope:
        """See `Kernels`."""
        return Rope(cos.float().contiguous(), sin.float().contiguous(), 2 * cos.shape[-1])

    def stack(
        self, layers: Sequence[DenseLayer], final_norm: Tensor, eps: float, activation: str
    ) -> Stack | None:
        """See `Kernels`; a graph holds a whole step already."""
        return None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        return add_rms_norm(delta, x, weight, eps)

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """See `Kernels`."""
        if self.deterministic:
            return invariant_linear(x, weight.weight, weight.bias)
        if 0 < x.shape[0] <= MAX_ROWS:
            return self._product(x, weight)
        return F.linear(x, weight.weight, weight.bias)

    def gated(self, x: Tensor, weight: Weight, activation: str) -> Tensor:
        """See `Kernels`."""
        if not self.deterministic and 0 < x.shape[0] <= MAX_ROWS:
            return self._product(x, weight, activation=activation)
        return gate_mul(self.linear(x, weight), activation)

    def project_add_norm(
        self, y: Tensor, weight: Weight, x: Tensor, norm: Tensor, eps: float, reduce: Reduce | None
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        if not self.deterministic and reduce is None and 0 < y.shape[0] <= MAX_ROWS:
            x = self._product(y, weight, residual=x)
            return rms_norm(x, norm, eps), x
        delta = self.linear(y, weight)
        if isinstance(reduce, FusedReduce) and reduce.norms(delta):
            return reduce.add_norm(delta, x, norm, eps)
        return add_rms_norm(delta if reduce is None else reduce(delta), x, norm, eps)

    def attention(
        self,
        qkv: Tensor,
        spec: AttentionSpec,
        rotation: Rope | None,
        cache: tuple[Tensor, Tensor],
        plan: CudaPlan,
    ) -> Tensor:
        """See `Kernels`."""
        rope = rope_of(spec, rotation, qkv)
        # Of few rows every launch counts; many gain more from the programs that fit where less is fused.
        single = plan.prefill.count == 0 and plan.decode.queries == 1
        if single and qkv.shape[0] <= MAX_ROWS and not self.deterministic:
            return self._decode(qkv, spec, cache, plan, rope)
        q = rope_and_write(qkv, spec.num_heads, rope, *cache, plan.layout.slots)
        return self._attend(q, spec, cache, plan)

    def write_kv(self, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], plan: CudaPlan) -> None:
        """See `Kernels`."""
        write_kv(k, v, *cache, plan.layout.slots)

    def attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: CudaPlan) -> Tensor:
        """See `Kernels`."""
        return self._attend(q.reshape(q.shape[0], -1), spec, cache, plan).view(q.shape)

    def _product(
        self, x: Tensor, weight: Weight, *, activation: str = "", residual: Tensor | None = None
    ) -> Tensor:
        out, k = weight.weight.shape
        shape = GemvShape.of(x.shape[0], out // 2 if activation else out, k, bool(activation), False)
        return gemv(
            x, weight.weight, config=self.tuning.config(shape), bias=weight.bias, activation=activation, residual=residual
        )  # fmt: skip

    def _attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: CudaPlan) -> Tensor:
        """Queries [T, num_heads * head_dim], normed and rotated, over the cache."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self.deterministic:
            self._invariant(q, out, spec, cache, plan.layout)
            return out
        if plan.decode.count:
            self._decode(q, spec, cache, plan, None, out)
        if plan.prefill.count and not self._flash(q, out, spec, cache, plan):
            self._prefill(q, out, spec, cache, plan)
        return out

    def _flash(
        self, q: Tensor, out: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: CudaPlan
    ) -> bool:
        """Let flash-attn compute the prefilling rows, where it can and is faster; false if it did not."""
        flash, fresh, slots = self.flash, plan.fresh, plan.layout.slots
        if fresh is None or not flash.takes(q, spec):
            return False
        if not flash.faster(
            spec,
            lambda: flash.attend(q, spec, cache, slots, fresh),
            lambda: self._prefill(q, out, spec, cache, plan),
        ):
            return False
        out[fresh.row :] = flash.attend(q, spec, cache, slots, fresh)
        return True

    def _decode(
        self,
        q: Tensor,
        spec: AttentionSpec,
        cache: tuple[Tensor, Tensor],
        plan: CudaPlan,
        rope: Rope | None,
        out: Tensor | None = None,
    ) -> Tensor:
        span, layout = plan.decode, plan.layout
        if out is None:
            out = torch.empty(q.shape[0], spec.num_heads * spec.head_dim, dtype=q.dtype, device=q.device)
        constants = decode_plan(
            seqs=span.count, queries=span.queries, heads=spec.num_heads, kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim, element=cache[0].element_size(), multiprocessors=self.multiprocessors,
            fused=rope is not None,
        )  # fmt: skip
        decode_attention(
            q, *cache, out, block_tables=layout.block_tables[: span.count],
            query_start=layout.query_start[: span.count + 1], context_lens=layout.context_lens[: span.count],
            counters=self._counters(spec, constants.tile_heads, span.count), plan=constants, num_heads=spec.num_heads,
            scale=spec.scale, window=spec.window or None, soft_cap=spec.soft_cap or None, rope=rope, slots=layout.slots,
        )  # fmt: skip
        return out

    def _prefill(
        self, q: Tensor, out: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: CudaPlan
    ) -> None:
        layout, first = plan.layout, plan.prefill.first
        constants = prefill_plan(
            tokens=q.shape[0], seqs=plan.prefill.count, heads=spec.num_heads, kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim, element=cache[0].element_size(), max_context=layout.max_context,
            multiprocessors=self.multiprocessors, shared_memory=self.shared_memory,
        )  # fmt: skip
        tiles = q.shape[0] // constants.block_q + plan.prefill.count
        prefill_attention(
            q, *cache, out, block_tables=layout.block_tables[first:], query_start=layout.query_start[first:],
            context_lens=layout.context_lens[first:], counters=self._counters(spec, constants.tile_heads, tiles),
            plan=constants, num_heads=spec.num_heads, scale=spec.scale, window=spec.window or None,
            soft_cap=spec.soft_cap or None,
        )  # fmt: skip

    def _invariant(
        self,
        q: Tensor,
        out: Tensor,
        spec: AttentionSpec,
        cache: tuple[Tensor, Tensor],
        layout: AttentionLayout,
    ) -> None:
        constants = invariant_plan(
            tiles=layout.context_lens.shape[0] + q.shape[0] // 8, heads=spec.num_heads, kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim, element=cache[0].element_size(), max_context=layout.max_context,
            multiprocessors=self.multiprocessors,
        )  # fmt: skip
        tiles = q.shape[0] // constants.block_q + layout.context_lens.shape[0]
        decode_attention(
            q, *cache, out, block_tables=layout.block_tables, query_start=layout.query_start,
            context_lens=layout.context_lens, counters=self._counters(spec, constants.tile_heads, tiles), plan=constants,
            num_heads=spec.num_heads, scale=spec.scale, window=spec.window or None, soft_cap=spec.soft_cap or None, tiled=True,
        )  # fmt: skip

    def _counters(self, spec: AttentionSpec, tile_heads: int, tiles: int) -> Tensor:
        """Zeros for the programs of `tiles` tiles of queries. A step is run before it is captured, so none are made in a graph."""
        needed = tiles * spec.num_kv_heads * -(-(spec.num_heads // spec.num_kv_heads) // tile_heads)
        if needed > self.counters.shape[0]:
            self._former.append(self.counters)
            self.counters = torch.zeros(next_power_of_2(needed), dtype=torch.int32, device=self.device)
        return self.counters


def rope_of(spec: AttentionSpec, rotation: Rope | None, like: Tensor) -> Rope:
    """A layer's norms and rotation as the kernels take them; without a rotation nothing turns."""
    cos, sin, rotary = (like, like, 0) if rotation is None else (rotation.cos, rotation.sin, rotation.rotary)
    return Rope(cos, sin, rotary, spec.q_norm, spec.k_norm, spec.norm_eps)

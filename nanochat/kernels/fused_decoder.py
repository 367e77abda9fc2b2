"""A decode step of a dense decoder for a few rows, in five kernels a layer.

Embedding with the angles; per layer: norm and projection, attention with everything around it, output projection with
the residual, norm with the gated half of the feed-forward net, its other half with the residual; then norm and head.
Our kernels are launched dependently where the chip can do that: they request their weights while the one before ends. Where cuBLAS
was measured to be faster (large matrices, four to eight rows), it stands between them, launched as usual.

`torch.compile` was tried for the same layers in plain torch, with CUDA graphs: 30.9 us a layer of Qwen3-0.6B's shape after 640
tokens on an H200, where these kernels take 23.1 in the engine's own step (`tests/gpu/compiled.py` measures both). Tried and left:
one persistent kernel for the whole step (no faster), the next matrix drawn into L2 while ranks wait for each other (1 to 10 % slower),
dependent launches between cuBLAS's products of larger batches (1.5 to 3 % of a half layer alone, nothing in the engine), and the
products around attention begun before the waits that are there now (2 % faster after 16,000 tokens, 2 % slower for Qwen3-8B's shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.kernels.bundle import AttentionSpec, DenseLayer, FusedReduce, Reduce
from nanochat.kernels.cuda import CudaKernels, Weight
from nanochat.kernels.decode_plan import decode_plan
from nanochat.kernels.gemv_config import GemvConfig, GemvShape
from nanochat.kernels.triton_decode import decode_attention
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_outlet import Outlet
from nanochat.kernels.triton_rope import Rope
from nanochat.kernels.triton_step import DecodeRows, embed


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseModel:
    """A decoder's weights and constants.

    Attributes:
        embedding: [vocab, H]; `embedding_scale` multiplies its rows. A rank's share begins at the id `first`.
        frequencies: float32 [ropes, rotary / 2]; `rope_factor` scales cosines and sines.
        head: [vocab, H], packed.
        eps: of every norm over hidden states.
        activation: "silu" or "gelu_tanh".
        reduce: sums over the ranks of a tensor-parallel model, whose weights are this rank's.
    """

    embedding: Tensor
    layers: Sequence[DenseLayer]
    final_norm: Tensor
    head: Weight
    frequencies: Tensor
    eps: float
    activation: str
    embedding_scale: float = 1.0
    rope_factor: float = 1.0
    first: int | None = None
    reduce: Reduce | None = None


class FusedDecoder:
    """Runs `DenseModel` for up to eight rows. Launches only: nothing waits, so a graph can capture it."""

    def __init__(self, model: DenseModel, kernels: CudaKernels) -> None:
        self.model = model
        self.kernels = kernels

    def shapes(self, rows: int) -> list[GemvShape]:
        """The distinct products of a step of so many rows, for tuning."""
        layer, head = self.model.layers[0], self.model.head

        def plain(weight: Weight, norm: bool) -> GemvShape:
            out, k = weight.weight.shape
            return GemvShape.of(rows, out, k, False, norm)

        hidden, inner = layer.mlp.down.weight.shape
        found = [
            plain(layer.qkv, True),
            plain(layer.output, False),
            GemvShape.of(rows, inner, hidden, True, True),
            plain(layer.mlp.down, False),
            plain(head, True),
        ]
        return list(dict.fromkeys(found))

    def logits(
        self,
        rows: DecodeRows,
        query_start: Tensor,
        kv_cache: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Feed `rows.ids`, write their keys and values, and return logits, float32 [num_tokens, vocab].

        Args:
            rows: a token of each sequence.
            query_start: int32 [num_seqs + 1].
            kv_cache: for each layer (keys, values).
        """
        model, pdl = self.model, self.kernels.pdl
        x, cos, sin = embed(
            rows.ids, rows.positions, model.embedding, model.frequencies,
            scale=model.embedding_scale, factor=model.rope_factor, first=model.first, pdl=pdl,
        )  # fmt: skip
        if model.reduce is not None:
            x = model.reduce(x)
        for layer, cache in zip(model.layers, kv_cache, strict=True):
            # `late`: attention reads cached keys before it waits, so it may only start once this product's wait is over.
            qkv = self._product(x, layer.qkv, norm=layer.input_norm, late=True)
            rope = Rope(
                x if layer.rope is None else cos[layer.rope], x if layer.rope is None else sin[layer.rope],
                0 if layer.rope is None else 2 * cos.shape[2],
                layer.spec.q_norm, layer.spec.k_norm, layer.spec.norm_eps,
            )  # fmt: skip
            attended = self._attend(qkv, layer.spec, rope, rows, query_start, cache)
            x = self._add(attended, layer.output, x)
            inner = self._product(x, layer.mlp.gate_up, norm=layer.mlp_norm, activation=model.activation)
            x = self._add(inner, layer.mlp.down, x)
        return self._product(x, model.head, norm=model.final_norm, out_dtype=torch.float32)

    def _add(self, y: Tensor, weight: Weight, x: Tensor) -> Tensor:
        """The residual with what half a layer adds to it, over all ranks."""
        reduce = self.model.reduce
        if reduce is None:
            return self._product(y, weight, residual=x)
        if isinstance(reduce, FusedReduce):
            # It alone decides: what was tuned here may have come out otherwise on another rank.
            outlet = reduce.outlet(x)
            if outlet is not None:
                self._product(y, weight, late=True, to=outlet)
                return reduce.collect(x, pdl=self.kernels.pdl)
        delta = self._product(y, weight)
        if isinstance(reduce, FusedReduce) and reduce.takes(delta):
            return reduce.add(delta, x, pdl=self.kernels.pdl)
        return reduce(delta) + x

    def _product(
        self, x: Tensor, weight: Weight, *, norm: Tensor | None = None, residual: Tensor | None = None,
        activation: str = "", out_dtype: torch.dtype | None = None, late: bool = False, to: Outlet | None = None,
    ) -> Tensor:  # fmt: skip
        config = self._config(x, weight, gated=bool(activation), norm=norm is not None)
        return gemv(
            x, weight.weight, config=config, norm=norm, eps=self.model.eps, bias=weight.bias,
            residual=residual, activation=activation, out_dtype=out_dtype, pdl=self.kernels.pdl, late=late, to=to,
        )  # fmt: skip

    def _config(self, x: Tensor, weight: Weight, *, gated: bool = False, norm: bool = False) -> GemvConfig:
        out, k = weight.weight.shape
        return self.kernels.tuning.config(
            GemvShape.of(x.shape[0], out // 2 if gated else out, k, gated, norm)
        )

    def _attend(
        self, qkv: Tensor, spec: AttentionSpec, rope: Rope, rows: DecodeRows, query_start: Tensor,
        cache: tuple[Tensor, Tensor],
    ) -> Tensor:  # fmt: skip
        kernels = self.kernels
        out = torch.empty(qkv.shape[0], spec.num_heads * spec.head_dim, dtype=qkv.dtype, device=qkv.device)
        plan = decode_plan(
            seqs=rows.context_lens.shape[0], queries=1, heads=spec.num_heads, kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim, element=cache[0].element_size(), multiprocessors=kernels.multiprocessors,
            fused=True, early=kernels.pdl,
        )  # fmt: skip
        decode_attention(
            qkv, *cache, out, block_tables=rows.block_tables, query_start=query_start, context_lens=rows.context_lens,
            counters=kernels.counters, plan=plan, num_heads=spec.num_heads, scale=spec.scale,
            window=spec.window or None, soft_cap=spec.soft_cap or None, rope=rope, slots=rows.slots,
            pdl=kernels.pdl, early=kernels.pdl,
        )  # fmt: skip
        return out

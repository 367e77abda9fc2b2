"""A native dense decoder as the fused decode kernels take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanochat.engine.models.decoder import Decoder
from nanochat.engine.models.embedding import Embedding, EmbeddingShare
from nanochat.engine.models.layers import Mlp
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.fused_decoder import DenseModel, FusedDecoder
from nanochat.kernels.gemv_config import GemvShape
from nanochat.kernels.tuning import compile_candidates, tune_gemv

if TYPE_CHECKING:
    from nanochat.engine.models import Model
    from nanochat.engine.step import KVTensors
    from nanochat.kernels.triton_step import DecodeRows

_TUNING_SECONDS = 2.0  # for each shape, once per chip: the results are kept on disk


class FusedStep:
    """One decode step of up to eight rows in five kernels a layer."""

    def __init__(self, model: DenseModel, kernels: CudaKernels, dtype: torch.dtype) -> None:
        self._decoder = FusedDecoder(model, kernels)
        self._kernels = kernels
        self._dtype = dtype

    @property
    def dependent(self) -> bool:
        """Whether each kernel is launched while the one before it ends, where the chip can do that."""
        return self._kernels.pdl

    def tune(self, rows: int) -> None:
        """Measure what was never measured on this chip; a second start finds it on disk."""
        kernels = self._kernels
        if self.is_tuned(rows):
            return
        kernels.tuning.look_again()
        lacking = [shape for shape in self._decoder.shapes(rows) if kernels.tuning.get(shape) is None]
        there = compile_candidates(
            lacking, dtype=self._dtype, pdl=kernels.pdl, seconds=_TUNING_SECONDS * len(lacking)
        )
        for shape in lacking:
            tune_gemv(
                shape, kernels.tuning, dtype=self._dtype, device=kernels.device, pdl=kernels.pdl,
                seconds=_TUNING_SECONDS, candidates=there[shape], weights=self._weights(shape),
            )  # fmt: skip
        if lacking:
            kernels.tuning.save()

    def _weights(self, shape: GemvShape) -> list[Tensor]:
        """The model's own matrices of a shape: measured over them, tuning takes no memory beside a full card's."""
        model, rows = self._decoder.model, shape.n * (2 if shape.gated else 1)
        found = [model.head.weight]
        for layer in model.layers:
            matrices = (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
            found += [matrix.weight for matrix in matrices]
        return [weight for weight in found if weight.shape == (rows, shape.k)]

    def is_tuned(self, rows: int) -> bool:
        """Whether `tune` has nothing left to measure."""
        return all(self._kernels.tuning.get(shape) is not None for shape in self._decoder.shapes(rows))

    def logits(self, rows: DecodeRows, query_start: Tensor, kv_cache: KVTensors) -> Tensor:
        """Float32 [rows, vocab_size], on several ranks this one's part of them."""
        return self._decoder.logits(rows, query_start, kv_cache)


def fused_decoder(model: Model | Any) -> FusedStep | None:
    """The fused form of a model, where it has one: dense, one scale of rope, in a 16-bit or 32-bit type."""
    if not isinstance(model, Decoder) or not isinstance(model.kernels, CudaKernels):
        return None
    weights, config, kernels = model.weights, model.config, model.kernels
    ropes = weights.ropes
    plain = all(layer.post_attention_norm is None and isinstance(layer.mlp, Mlp) for layer in weights.layers)
    same = len({(rope.dim, rope.attention_factor) for rope in ropes}) == 1
    stretched = any(rope.long_frequencies() is not None for rope in ropes)
    if kernels.deterministic or not plain or not same or stretched or config.logits_soft_cap:
        return None
    if not isinstance(weights.embed, Embedding | EmbeddingShare):
        return None
    table = weights.embed.table
    dense = DenseModel(
        embedding=table,
        layers=weights.layers,  # type: ignore[arg-type]
        final_norm=weights.final_norm,
        head=weights.head,
        frequencies=torch.stack([rope.frequencies() for rope in ropes]).to(table.device),
        eps=config.norm_eps,
        activation=config.activation,
        embedding_scale=config.embedding_scale,
        rope_factor=ropes[0].attention_factor,
        first=weights.embed.first if isinstance(weights.embed, EmbeddingShare) else None,
        reduce=model.reduce,
    )
    return FusedStep(dense, kernels, table.dtype)

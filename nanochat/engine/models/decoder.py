"""The native decoder: Llama and its kin, written in the operations of a kernel bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.layers import Layer, Mlp, SparseMlp
from nanochat.engine.models.rope import Rope
from nanochat.kernels.bundle import FusedReduce, Gather, Kernels, Reduce
from nanochat.kernels.headway import made
from nanochat.kernels.layout import AttentionLayout


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All that a decoder computes with. `embed` maps ids [T] to rows [T, hidden_size]; `head` is packed."""

    embed: Callable[[Tensor], Tensor]
    layers: list[Layer]
    final_norm: Tensor
    head: Any
    ropes: list[Rope]


class Decoder:
    """One rank of a decoder.

    Attributes:
        config: of the whole model.
        weights: this rank's, packed by `kernels`.
        reduce: sums over the ranks; None where there is one.
        gather: puts the ranks' logits side by side; None where there is one.
        num_bytes: what this rank's weights take.
        bytes_read: how much of the files that was.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        reduce: Reduce | None,
        gather: Gather | None = None,
    ) -> None:
        self.config = config
        self.kernels = kernels
        self.reduce = reduce
        self.gather = gather
        self.num_bytes = self.bytes_read = 0
        self.weights = weights
        self._like = torch.empty(0, dtype=dtype, device=device)
        self._ropes = [RopeFrequencies(rope, device) for rope in weights.ropes]
        self._scale = (
            torch.tensor(config.embedding_scale).to(dtype).to(device)
            if config.embedding_scale != 1.0
            else None
        )
        norms = [layer.input_norm for layer in weights.layers[1:]]
        self._layers = list(zip(weights.layers, [*norms, weights.final_norm], strict=True))
        plain = all(layer.post_mlp_norm is None and isinstance(layer.mlp, Mlp) for layer in weights.layers)
        self._stack = (
            kernels.stack(weights.layers, weights.final_norm, config.norm_eps, config.activation)  # type: ignore[arg-type]
            if plain and reduce is None
            else None
        )

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of this rank, the same in each layer."""
        return self.weights.layers[0].spec.num_kv_heads

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, positions: Tensor, layout: AttentionLayout, kv_cache: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Hidden states after the final norm, [T, hidden_size].

        Args:
            ids, positions: int64 [T].
            layout: whose tokens these are and where their keys and values go.
            kv_cache: for each layer (keys, values), each [num_blocks, BLOCK_SIZE, num_kv_heads, head_dim].
        """
        kernels, eps = self.kernels, self.config.norm_eps
        plan = kernels.plan(layout)
        rotations = [kernels.rotation(*rope.angles(positions, layout), self._like) for rope in self._ropes]
        x = self.weights.embed(ids)
        if self._scale is not None:
            x = x * self._scale
        if self._stack is not None and self._stack.takes(rotations, plan):
            return self._stack(x, rotations, plan, kv_cache)
        h = kernels.rms_norm(x, self.weights.layers[0].input_norm, eps)
        for (layer, next_norm), cache in zip(self._layers, kv_cache, strict=True):
            qkv = kernels.linear(h, layer.qkv)
            rotation = None if layer.rope is None else rotations[layer.rope]
            made()
            attended = kernels.attention(qkv, layer.spec, rotation, cache, plan)
            made()
            h, x = self._add(attended, layer.output, x, layer.post_attention_norm, layer.mlp_norm)
            if isinstance(layer.mlp, SparseMlp):
                h, x = self._mix(h, layer.mlp, x, next_norm)
            else:
                inner = kernels.gated(h, layer.mlp.gate_up, self.config.activation)
                made()
                h, x = self._add(inner, layer.mlp.down, x, layer.post_mlp_norm, next_norm)
        return h

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [R, hidden_size] -> float32 [R, vocab_size]."""
        return self.whole_logits(self.share_of_logits(hidden))

    @torch.inference_mode()
    def share_of_logits(self, hidden: Tensor) -> Tensor:
        """As `logits`, of this rank's part of the vocabulary."""
        logits = self.kernels.linear(hidden, self.weights.head).float()
        made()
        cap = self.config.logits_soft_cap
        return torch.tanh(logits / cap) * cap if cap else logits

    def whole_logits(self, share: Tensor) -> Tensor:
        """The ranks' parts side by side (see `Gather`)."""
        return share if self.gather is None else self.gather(share)

    def _add(
        self, y: Tensor, weight: Any, x: Tensor, post_norm: Tensor | None, norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The end of half a layer: (the next half's input, the residual stream)."""
        eps = self.config.norm_eps
        if post_norm is None:
            return self.kernels.project_add_norm(y, weight, x, norm, eps, self.reduce)
        delta = self.kernels.linear(y, weight)
        if self.reduce is not None:
            delta = self.reduce(delta)
        return self.kernels.add_rms_norm(self.kernels.rms_norm(delta, post_norm, eps), x, norm, eps)

    def _mix(self, h: Tensor, mlp: SparseMlp, x: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """What `_add` is to a dense layer's end, of experts."""
        experts, eps = self.config.experts, self.config.norm_eps
        assert experts is not None
        delta = self.kernels.experts(
            h,
            mlp.router,
            mlp.gate_up,
            mlp.down,
            experts.per_token,
            experts.normalized,
            self.config.activation,
        )
        if isinstance(self.reduce, FusedReduce) and self.reduce.norms(delta):
            return self.reduce.add_norm(delta, x, norm, eps)
        return self.kernels.add_rms_norm(delta if self.reduce is None else self.reduce(delta), x, norm, eps)


class RopeFrequencies:
    """A rope's frequencies on a device, and the angles of a step's tokens."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._short = rope.frequencies().to(device)
        long = rope.long_frequencies()
        self._long = None if long is None else long.to(device)
        self._switch = rope.original_context
        self._factor = rope.attention_factor

    def angles(self, positions: Tensor, layout: AttentionLayout) -> tuple[Tensor, Tensor]:
        """(cosines, sines) of each token, float32 [T, rotated / 2]. Asks nothing of the host."""
        frequencies = self._short
        if self._long is not None:
            rows = torch.arange(positions.shape[0], device=positions.device, dtype=torch.int32)
            owner = torch.searchsorted(layout.query_start[1:], rows, right=True).clamp_(
                max=layout.context_lens.shape[0] - 1
            )
            frequencies = torch.where(
                layout.context_lens[owner][:, None] > self._switch, self._long, self._short
            )
        angles = positions.float()[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self._factor == 1.0 else (cos * self._factor, sin * self._factor)

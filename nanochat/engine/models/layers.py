"""The native decoder's weights: plain tensors in small dataclasses, read from a checkpoint, sharded by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.layer_plan import LayerPlan
from nanochat.engine.parallel.shares import column_share, head_share
from nanochat.engine.weights import Checkpoint
from nanochat.kernels.bundle import AttentionSpec, Kernels


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor in the checkpoint: its name, its whole shape, the rows and columns that this rank holds."""

    name: str
    shape: tuple[int, ...]
    rows: slice | None = None
    columns: slice | None = None

    @property
    def part(self) -> tuple[int, ...]:
        """The shape of what is selected."""
        if len(self.shape) == 1:
            return (_span(self.rows, self.shape[0]),)
        return (_span(self.rows, self.shape[0]), _span(self.columns, self.shape[1]))


@dataclass(frozen=True, slots=True)
class Mlp:
    """A dense feed-forward network: `gate_up` is column-parallel, `down` row-parallel. Both are packed."""

    gate_up: Any
    down: Any


@dataclass(frozen=True, slots=True)
class SparseMlp:
    """Experts: router [E, H], gate_up [E, 2 * I, H], down [E, H, I], each expert sharded like a dense network."""

    router: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. The two `post_*` norms are Gemma's, applied to what a half adds before it is added."""

    rope: int | None  # which of the model's ropes
    spec: AttentionSpec
    qkv: Any
    output: Any
    mlp: Mlp | SparseMlp
    input_norm: Tensor
    mlp_norm: Tensor
    post_attention_norm: Tensor | None
    post_mlp_norm: Tensor | None


class LayerReader:
    """Reads one rank's layers. Fused matrices are filled piece by piece, so nothing is in memory twice for long."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        rank: int,
        ranks: int,
    ) -> None:
        self.checkpoint, self.config, self.kernels = checkpoint, config, kernels
        self.dtype, self.device = dtype, device
        self.rank, self.ranks = rank, ranks
        self.heads = head_share(config.num_heads, config.num_kv_heads, rank, ranks)
        self.num_bytes = 0  # of everything that was read, as it lies in memory
        self.used: set[str] = set()
        self.ropes = list(dict.fromkeys(plan.rope for plan in config.layers if plan.rope is not None))
        self.prefix = next(
            (
                p
                for p in ("model.", "language_model.model.", "model.language_model.", "")
                if f"{p}embed_tokens.weight" in checkpoint
            ),
            "model.",
        )

    def layer(self, index: int) -> Layer:
        """Read one layer."""
        config, plan = self.config, self.config.layers[index]
        name = f"{self.prefix}layers.{index}."
        gemma = config.gemma
        return Layer(
            rope=None if plan.rope is None else self.ropes.index(plan.rope),
            spec=self._attention_spec(f"{name}self_attn.", plan),
            qkv=self._qkv(f"{name}self_attn."),
            output=self._row_parallel(
                f"{name}self_attn.o_proj",
                config.num_heads * config.head_dim,
                self._wide(self.heads.queries),
                config.output_bias,
            ),
            mlp=self._experts(f"{name}mlp.") if plan.experts else self._mlp(f"{name}mlp."),
            input_norm=self.norm(f"{name}input_layernorm.weight"),
            mlp_norm=self.norm(f"{name}{'pre_feedforward' if gemma else 'post_attention'}_layernorm.weight"),
            post_attention_norm=self.norm(f"{name}post_attention_layernorm.weight") if gemma else None,
            post_mlp_norm=self.norm(f"{name}post_feedforward_layernorm.weight") if gemma else None,
        )

    def norm(self, name: str, size: int | None = None) -> Tensor:
        """A norm's weight. Gemma's are stored less one; in float32 the one does not round them away."""
        weight = self.stacked(
            [Piece(name, (size or self.config.hidden_size,))], torch.float32 if self.config.gemma else None
        )
        return weight.add_(1.0) if self.config.gemma else weight

    def stacked(self, pieces: Sequence[Piece], dtype: torch.dtype | None = None) -> Tensor:
        """Pieces, one below the other."""
        num_rows = sum(piece.part[0] for piece in pieces)
        whole = torch.empty((num_rows, *pieces[0].part[1:]), dtype=dtype or self.dtype, device=self.device)
        row = 0
        for piece in pieces:
            self._read(piece, whole[row : row + piece.part[0]])
            row += piece.part[0]
        return whole

    def _attention_spec(self, name: str, plan: LayerPlan) -> AttentionSpec:
        config = self.config
        normed = config.qk_norm
        return AttentionSpec(
            num_heads=self.heads.num_queries,
            num_kv_heads=self.heads.num_kv,
            head_dim=config.head_dim,
            scale=config.attention_scale,
            window=plan.window or 0,
            q_norm=self.norm(f"{name}q_norm.weight", config.head_dim) if normed else None,
            k_norm=self.norm(f"{name}k_norm.weight", config.head_dim) if normed else None,
            norm_eps=config.norm_eps,
        )

    def _qkv(self, name: str) -> Any:
        config = self.config
        sizes = [
            count * config.head_dim for count in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        ]
        shares = [self._wide(heads) for heads in (self.heads.queries, self.heads.kv, self.heads.kv)]
        names = [f"{name}qkv_proj"] if config.fused_checkpoint else [f"{name}{part}_proj" for part in "qkv"]
        return self._column_parallel(names, sizes, shares, config.qkv_bias)

    def _mlp(self, name: str) -> Mlp:
        config = self.config
        names = [f"{name}gate_up_proj"] if config.fused_checkpoint else [f"{name}gate_proj", f"{name}up_proj"]
        inner = config.intermediate_size
        share = self._share(inner)
        gate_up = self._column_parallel(names, [inner] * 2, [share] * 2, config.mlp_bias)
        return Mlp(gate_up, self._row_parallel(f"{name}down_proj", inner, share, config.mlp_bias))

    def _column_parallel(self, names: list[str], sizes: list[int], shares: list[slice], bias: bool) -> Any:
        """Matrices stacked, of each this rank's share of its rows. One name: they are stacked on disk already."""
        pieces: dict[str, list[Piece]] = {"weight": [], "bias": []}
        before = 0
        for place, (size, rows) in enumerate(zip(sizes, shares, strict=True)):
            if len(names) == 1:
                rows, height = slice(before + rows.start, before + rows.stop), sum(sizes)
            else:
                height = size
            source = names[min(place, len(names) - 1)]
            pieces["weight"].append(Piece(f"{source}.weight", (height, self.config.hidden_size), rows))
            pieces["bias"].append(Piece(f"{source}.bias", (height,), rows))
            before += size
        return self.kernels.pack(
            self.stacked(pieces["weight"]), self.stacked(pieces["bias"]) if bias else None
        )

    def _row_parallel(self, name: str, width: int, share: slice, bias: bool) -> Any:
        """A matrix whose columns are shared out; the results of all ranks must be summed, so that one adds the bias."""
        columns = share if self.ranks > 1 else None
        weight = self.stacked([Piece(f"{name}.weight", (self.config.hidden_size, width), None, columns)])
        bias_piece = Piece(f"{name}.bias", (self.config.hidden_size,))
        if bias:
            self.used.add(bias_piece.name)
        return self.kernels.pack(weight, self.stacked([bias_piece]) if bias and self.rank == 0 else None)

    def _experts(self, name: str) -> SparseMlp:
        config, experts = self.config, self.config.experts
        assert experts is not None
        hidden, inner = config.hidden_size, experts.intermediate_size
        share = self._share(inner)
        width = share.stop - share.start
        gate_up = torch.empty((experts.count, 2 * width, hidden), dtype=self.dtype, device=self.device)
        down = torch.empty((experts.count, hidden, width), dtype=self.dtype, device=self.device)
        for expert in range(experts.count):
            each = f"{name}experts.{expert}."
            self._read(Piece(f"{each}gate_proj.weight", (inner, hidden), share), gate_up[expert, :width])
            self._read(Piece(f"{each}up_proj.weight", (inner, hidden), share), gate_up[expert, width:])
            self._read(
                Piece(f"{each}down_proj.weight", (hidden, inner), None, share if self.ranks > 1 else None),
                down[expert],
            )
        return SparseMlp(self.stacked([Piece(f"{name}gate.weight", (experts.count, hidden))]), gate_up, down)

    def _read(self, piece: Piece, to: Tensor) -> None:
        self.checkpoint.read(piece.name, to, shape=piece.shape, rows=piece.rows, columns=piece.columns)
        self.used.add(piece.name)
        self.num_bytes += to.numel() * to.element_size()

    def _share(self, size: int) -> slice:
        """This rank's share of `size` feed-forward columns."""
        return column_share(size, self.rank, self.ranks)

    def _wide(self, heads: slice) -> slice:
        """The rows or columns of some heads."""
        return slice(heads.start * self.config.head_dim, heads.stop * self.config.head_dim)


def _span(selected: slice | None, size: int) -> int:
    first, last, _ = (selected or slice(None)).indices(size)
    return last - first

"""What of a model decides how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class Config(Protocol):
    """The part of a ModelConfig that is asked for here."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of a layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        ...

    @property
    def hidden_size(self) -> int:
        """Values of a token between layers."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Values inside the feed-forward part."""
        ...

    @property
    def vocab_size(self) -> int:
        """Tokens."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """The context that the model was made for."""
        ...

    @property
    def dtype(self) -> str:
        """What the weights were saved in."""
        ...

    @property
    def num_parameters(self) -> int:
        """Parameters, tied ones once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Counts, not bytes: those follow from the dtype that a device runs it in."""

    parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    context: int
    dtype: str = "bfloat16"

    @classmethod
    def of(cls, config: Config, *, parameters: int | None = None) -> Shape:
        """From a model's configuration; `parameters` when the weights' own headers were read."""
        return cls(
            parameters=parameters or config.num_parameters,
            layers=config.num_layers,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
            dtype=config.dtype,
        )

    @classmethod
    def from_json(cls, data: Any) -> Shape | None:
        """The reverse of `dataclasses.asdict`; None for what is none."""
        try:
            return cls(**data) if data is not None else None
        except TypeError:
            return None

    def weight_bytes(self, dtype: str) -> int:
        """Of all weights."""
        return self.parameters * BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES[dtype]

    def run_dtype(self, kind: str) -> str:
        """What a device of this kind ("cuda", "cpu") runs it in, as the engine's "auto" chooses."""
        return "bfloat16" if kind == "cpu" or self.dtype not in BYTES else self.dtype

"""What of a model decides how much memory it takes."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

from nanochat.errors import ModelError

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
    def in_folder(cls, folder: Path) -> Shape | None:
        """Of a model on disk: config.json's plain numbers and the weights' headers, read in a millisecond.

        What the configuration leaves to its family's defaults is asked of ModelConfig. None for what is no model.
        """
        from nanochat.transfer.headers import count, local_tensors

        try:
            values: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
            inner: dict[str, Any] = values | (values.get("text_config") or {})
            parameters = count(local_tensors(folder), tied=bool(inner.get("tie_word_embeddings", False)))
            heads, hidden = inner["num_attention_heads"], inner["hidden_size"]
            shape = cls(
                parameters=parameters,
                layers=inner["num_hidden_layers"],
                kv_heads=inner.get("num_key_value_heads") or heads,
                head_dim=inner.get("head_dim") or hidden // heads,
                hidden=hidden,
                intermediate=inner["intermediate_size"],
                vocabulary=inner["vocab_size"],
                context=inner["max_position_embeddings"],
                dtype=inner.get("dtype") or inner.get("torch_dtype") or "bfloat16",
            )
            return (
                shape if all(isinstance(value, int) and value > 0 for value in astuple(shape)[:-1]) else None
            )
        except KeyError:
            return cls._by_model_config(folder)
        except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError, ModelError):
            return None

    @classmethod
    def _by_model_config(cls, folder: Path) -> Shape | None:
        from nanochat.engine.models.config import ModelConfig
        from nanochat.transfer.headers import count, local_tensors

        try:
            config = ModelConfig.from_folder(folder)
            return cls.of(config, parameters=count(local_tensors(folder), tied=config.tied_embeddings))
        except (OSError, ModelError):
            return None

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

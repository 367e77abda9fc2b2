"""A model's config: config.json and generation_config.json, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.engine.models.families import NATIVE, refuse_unknown, refuse_unsupported
from nanochat.engine.models.fields import Fields, read_json
from nanochat.engine.models.generation import read_generation
from nanochat.engine.models.layer_plan import Experts, LayerPlan, read_layers
from nanochat.errors import ModelNotFound, UnsupportedModel

if TYPE_CHECKING:
    import torch

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DTYPES = {
    "float32": "float32",
    "float": "float32",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
}
_HIDDEN = ("hidden_size", "n_embd", "d_model")  # the name that most have, then older ones
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What a model is. Counts are whole-model counts, whatever the number of ranks.

    Attributes:
        native: our own decoder runs it; otherwise Transformers does, inside the same paged cache.
        dtype: what its weights were saved in: "bfloat16", "float16" or "float32".
        eos_token_ids: every end-of-sequence token, generation_config.json's before config.json's.
        generation_defaults: sampling parameters that the model asks for.
        layers: one plan for each layer: window, rope, experts.
        attention_scale: scores are multiplied by this before the softmax.
        embedding_scale: embeddings are multiplied by this.
        stored_parameters: for a model that is not native, how many its files hold.
    """

    architecture: str
    model_type: str
    native: bool
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    generation_defaults: dict[str, Any] = field(hash=False)
    layers: tuple[LayerPlan, ...]
    norm_eps: float = 1e-6
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    fused_checkpoint: bool = False
    gemma: bool = False
    tied_embeddings: bool = False
    attention_scale: float = 1.0
    logits_soft_cap: float = 0.0
    embedding_scale: float = 1.0
    experts: Experts | None = None
    stored_parameters: int = 0

    @classmethod
    def from_folder(cls, path: Path) -> ModelConfig:
        """Read and check a model folder's config. Imports nothing heavy and opens no weights.

        Raises:
            ModelNotFound: there is no such folder, or it has no config.json.
            InvalidModel: the config is damaged, or its numbers are absurd or contradict each other.
            UnsupportedModel: an architecture, quantization or weight format that this engine does not run.
        """
        if not path.exists():
            raise ModelNotFound(f"there is no folder {path}: it was moved or removed; take another model")
        if not path.is_dir():
            raise ModelNotFound(
                f"{path} is not a folder: give the folder of a model (config.json, *.safetensors)"
            )
        outer = read_json(path / "config.json")
        architectures = outer.texts("architectures") or ()
        if not architectures:
            outer.fail("architectures is missing, so there is no telling what model this is")
        architecture = architectures[0]
        refuse_unsupported(outer, architecture)
        _refuse_pickles(path, architecture)
        refuse_unknown(outer, architecture, (_HIDDEN, _LAYERS, _HEADS, ("vocab_size",), _CONTEXT))
        inner = outer.section("text_config") if architecture in NATIVE else None
        return _read(outer, inner or outer, architecture, path)

    @property
    def num_parameters(self) -> int:
        """Parameters, tied embeddings counted once. For a model that is not native and not here yet, by Llama's formula."""
        if self.stored_parameters:
            return self.stored_parameters
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * q + 2 * kv) + (q + 2 * kv) * self.qkv_bias
        attention += self.hidden_size * self.output_bias + 2 * self.head_dim * self.qk_norm
        norms = self.hidden_size * (4 if self.gemma else 2)
        total = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2) + self.hidden_size
        for layer in self.layers:
            if layer.experts and self.experts is not None:
                mlp = self.experts.count * self.hidden_size * (3 * self.experts.intermediate_size + 1)
            else:
                mlp = 3 * self.hidden_size * self.intermediate_size
                mlp += (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
            total += attention + norms + mlp
        return total

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the weights in `dtype`."""
        return self.num_parameters * dtype.itemsize

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values that one token takes in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def _refuse_pickles(path: Path, architecture: str) -> None:
    """Weights that are only there in a format that can run code when it is opened."""
    if any(path.glob("*.safetensors")) or (path / "model.safetensors.index.json").exists():
        return
    found = next((found.name for pattern in _PICKLES for found in sorted(path.glob(pattern))), None)
    if found is not None:
        raise UnsupportedModel(
            f"{architecture} in {path.name} has only pickled weights ({found}), which can run code when opened; "
            "this engine reads safetensors only: fetch a version with *.safetensors"
        )


def _read(outer: Fields, config: Fields, architecture: str, path: Path) -> ModelConfig:
    family = NATIVE.get(architecture)
    default = family.defaults.get if family is not None else {}.get
    hidden = config.integer(_HIDDEN[0], 1, 2**20, default("hidden_size"), *_HIDDEN[1:])
    num_layers = config.integer(_LAYERS[0], 1, 4096, None, *_LAYERS[1:])
    num_heads, num_kv_heads, head_dim = _heads(config, default, hidden)
    vocab = config.integer("vocab_size", 1, 2**24, default("vocab_size"))
    context = config.integer(_CONTEXT[0], 1, 2**27, default("max_position_embeddings"), *_CONTEXT[1:])
    intermediate = config.integer(
        "intermediate_size", 1, 2**22, 4 * hidden if family is None else None, "n_inner", "ffn_dim"
    )
    eos, bos, defaults = read_generation(path, outer, config, vocab)
    layers, experts = read_layers(config, family, num_layers=num_layers, head_dim=head_dim, context=context)
    common: dict[str, Any] = {
        "architecture": architecture,
        "model_type": config.text("model_type"),
        "native": family is not None,
        "hidden_size": hidden,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "dtype": _saved_dtype(outer, config),
        "eos_token_ids": eos,
        "bos_token_id": bos,
        "generation_defaults": defaults,
        "layers": layers,
        "experts": experts,
    }
    return ModelConfig(
        **common, **_traits(outer, config, architecture, hidden, head_dim, path, common["dtype"])
    )


def _heads(config: Fields, default: Callable[[str], int | None], hidden: int) -> tuple[int, int, int]:
    """Attention heads, key-value heads, and the values in a head."""
    num_heads = config.integer(_HEADS[0], 1, 2**14, default("num_attention_heads"), *_HEADS[1:])
    num_kv_heads = config.integer(
        "num_key_value_heads", 1, 2**14, default("num_key_value_heads") or num_heads
    )
    if num_heads % num_kv_heads:
        config.fail(f"{num_heads} attention heads are not a multiple of {num_kv_heads} key-value heads")
    return num_heads, num_kv_heads, _head_dim(config, default("head_dim"), hidden, num_heads)


def _saved_dtype(outer: Fields, config: Fields) -> str:
    """The dtype that the weights were saved in; bfloat16 where it is none that this engine computes in."""
    saved = (
        config.text("dtype") or config.text("torch_dtype") or outer.text("dtype") or outer.text("torch_dtype")
    )
    return _DTYPES.get(saved.removeprefix("torch.") or "float32", "bfloat16")


def _head_dim(config: Fields, default: int | None, hidden: int, num_heads: int) -> int:
    if "head_dim" not in config and default is None and hidden % num_heads:
        config.fail(
            f"hidden_size {hidden} is not a multiple of {num_heads} attention heads, and there is no head_dim"
        )
    head_dim = config.integer("head_dim", 1, 1024, default or max(hidden // num_heads, 1))
    if head_dim % 2:
        config.fail(f"head_dim is {head_dim}, and must be even")
    return head_dim


def _traits(
    outer: Fields, config: Fields, architecture: str, hidden: int, head_dim: int, path: Path, dtype: str
) -> dict[str, Any]:
    """What only the native decoder asks about; for other models what there is to know before Transformers is asked."""
    family = NATIVE.get(architecture)
    tied = outer.boolean(
        "tie_word_embeddings", config.boolean("tie_word_embeddings", _tied_by_default(config, architecture))
    )
    if family is None:
        return {"tied_embeddings": tied, "stored_parameters": _stored_parameters(path, dtype)}
    activation = (
        config.text("hidden_activation")
        or config.text("hidden_act")
        or ("gelu_pytorch_tanh" if family.gemma else "silu")
    )
    if activation not in ("silu", "swish", "gelu_pytorch_tanh"):
        raise UnsupportedModel(
            f"{config.where}: the activation {activation[:40]!r} is not one of silu and gelu_pytorch_tanh"
        )
    all_biases = family.bias == "config" and config.boolean("attention_bias", False)
    scale = (
        config.number("query_pre_attn_scalar", 1e-6, 1e9, 256.0 if family.gemma else float(head_dim)) ** -0.5
    )
    return {
        "norm_eps": config.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        "activation": "silu" if activation in ("silu", "swish") else "gelu_tanh",
        "qkv_bias": family.bias == "qkv" or all_biases,
        "output_bias": all_biases,
        "mlp_bias": config.boolean("mlp_bias", False),
        "qk_norm": family.qk_norm,
        "fused_checkpoint": family.fused,
        "gemma": family.gemma,
        "tied_embeddings": tied,
        "attention_scale": scale if family.gemma else head_dim**-0.5,
        "logits_soft_cap": config.number("final_logit_softcapping", 0.0, 1e9, 0.0) if family.gemma else 0.0,
        "embedding_scale": hidden**0.5 if family.gemma else 1.0,
    }


def _tied_by_default(config: Fields, architecture: str) -> bool:
    return architecture.startswith(("Gemma", "SmolLM3", "GPT2"))


def _stored_parameters(path: Path, dtype: str) -> int:
    """How many values of `dtype` the weight files have room for; their headers are too short to matter."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) // (4 if dtype == "float32" else 2)

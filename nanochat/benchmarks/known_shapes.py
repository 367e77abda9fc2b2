"""Shapes of well-known models, as config.json files made on the spot, so that no download is needed to measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanochat.errors import UsageError


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": intermediate, "vocab_size": 151936, "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
        "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": False,
        "eos_token_id": 151645, "bos_token_id": 151643,
    }  # fmt: skip


def _llama3(
    hidden: int, layers: int, heads: int, head_dim: int, intermediate: int, *, tied: bool
) -> dict[str, Any]:
    scaling = {
        "factor": 32.0 if tied else 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": head_dim,
        "intermediate_size": intermediate, "vocab_size": 128256, "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": scaling, "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16", "hidden_act": "silu", "eos_token_id": 128001, "bos_token_id": 128000,
    }  # fmt: skip


_QWEN3_30B_A3B: dict[str, Any] = _qwen3(2048, 48, 32, 6144, tied=False) | {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_key_value_heads": 4, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip

_SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536,
    "vocab_size": 49152, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "hidden_act": "silu", "eos_token_id": 2,
    "bos_token_id": 1,
}  # fmt: skip

_TINY: dict[str, Any] = _SMOLLM2_135M | {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "vocab_size": 12000,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288, tied=False),
    "qwen3-14b": _qwen3(5120, 40, 40, 17408, tied=False),
    "qwen3-30b-a3b": _QWEN3_30B_A3B,
    "llama-3.2-1b": _llama3(2048, 16, 32, 64, 8192, tied=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 128, 8192, tied=True),
    "llama-3.1-8b": _llama3(4096, 32, 32, 128, 14336, tied=False),
    "smollm2-135m": _SMOLLM2_135M,
    "tiny": _TINY,
}
"""From the models' own config.json files; `tiny` is no model, and is for trying the benchmark out."""


def write_shape(name: str, folder: Path) -> Path:
    """Write the config.json of a known shape into a folder of its own below `folder`.

    Raises:
        UsageError: the name is not known; the text lists those that are.
    """
    shape = SHAPES.get(name.lower())
    if shape is None:
        raise UsageError(f"--random knows no shape {name!r}; it knows {', '.join(SHAPES)}")
    target = folder / name.lower()
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(shape, indent=1), encoding="utf-8")
    return target

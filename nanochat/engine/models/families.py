"""Which architectures the native decoder runs and how each differs from Llama; which are refused, and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from nanochat.engine.models.fields import Fields
from nanochat.errors import UnsupportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a family differs from Llama, where its config does not say so itself.

    Attributes:
        bias: where the attention's biases are: "config" (all four, if attention_bias is true), "qkv" or "none".
        qk_norm: queries and keys are normed per head, before the rotation.
        fused: the checkpoint holds qkv_proj and gate_up_proj.
        gemma: norms scale by 1 + weight, embeddings by sqrt(hidden_size), four norms in a layer, GELU.
        experts: its feed-forward layers choose among experts.
        windows: where sliding_window applies: "all" layers, or only if use_sliding_window is "chosen".
        theta: rope's base where the config has none.
        defaults: what the family's configs may leave out.
    """

    bias: str = "config"
    qk_norm: bool = False
    fused: bool = False
    gemma: bool = False
    experts: bool = False
    windows: str = "none"
    theta: float = 10_000.0
    defaults: Mapping[str, int] = field(default_factory=dict[str, int])


_GEMMA3 = Family(
    qk_norm=True,
    gemma=True,
    windows="all",
    theta=1_000_000.0,
    defaults=MappingProxyType(
        {
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
        }
    ),
)

NATIVE: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(),
        "MistralForCausalLM": Family(bias="none", windows="all"),
        "Qwen2ForCausalLM": Family(bias="qkv", windows="chosen"),
        "Qwen3ForCausalLM": Family(
            qk_norm=True, windows="chosen", defaults=MappingProxyType({"head_dim": 128})
        ),
        "Qwen3MoeForCausalLM": Family(qk_norm=True, windows="chosen", experts=True),
        "SmolLM3ForCausalLM": Family(windows="chosen", theta=2_000_000.0),
        "Phi3ForCausalLM": Family(bias="none", fused=True, windows="all"),
        "Gemma3ForCausalLM": _GEMMA3,
        "Gemma3ForConditionalGeneration": _GEMMA3,  # its text part
    }
)

_REFUSED = (
    (("qwen3_next", "qwen3_5", "kimi_linear", "minimax", "olmo_hybrid", "olmo3_hybrid"), "hybrid linear-attention"),
    (("mamba", "jamba", "bamba", "falcon_h1", "zamba", "nemotron_h"), "state-space (Mamba)"),
    (("granitemoehybrid", "plamo2"), "state-space (Mamba)"),
    (("rwkv", "recurrent_gemma", "xlstm", "lfm2", "hgrn"), "recurrent or convolutional"),
    (("deepseek_v", "kimi_k2", "minicpm3", "longcat", "glm4_moe_lite"), "latent-attention (MLA)"),
    (("gpt_oss",), "attention-sink"),
    (("llama4", "gemma3n", "gemma4"), "chunked or shared-cache attention"),
    (("bert", "electra", "deberta", "mpnet"), "encoder-only"),
    (("bart", "mbart", "plbart", "mvp", "blenderbot", "pegasus", "bigbird_pegasus", "marian"), "encoder-decoder"),
    (("t5", "mt5", "umt5", "longt5", "switch_transformers", "m2m_100", "prophetnet", "whisper", "trocr"), "encoder-decoder"),
    (("bloom", "mpt"), "position-bias (ALiBi)"),
)  # fmt: skip

_REFUSED_KEYS = (
    ("kv_lora_rank", "latent-attention (MLA)"),
    ("linear_num_value_heads", "hybrid linear-attention"),
    ("mamba_d_state", "state-space (Mamba)"),
    ("ssm_state_size", "state-space (Mamba)"),
    ("state_size", "state-space (Mamba)"),
    ("num_kv_shared_layers", "shared-cache attention"),
    ("global_head_dim", "mixed head-size"),
    ("decoder_layers", "encoder-decoder"),
    ("num_decoder_layers", "encoder-decoder"),
)

_RUNS = (
    "this engine runs decoders whose layers all have full or sliding-window attention (Llama, Qwen2/3, Mistral, Gemma 3, "
    "Phi-3/4, SmolLM and kin): take one of those"
)


def refuse_unsupported(config: Fields, architecture: str) -> None:
    """Raise UnsupportedModel, by name, for what this engine does not run."""
    model_type = config.text("model_type").lower()
    _refuse_quantized(config, architecture)
    for prefixes, kind in _REFUSED:
        if any(model_type.startswith(prefix) for prefix in prefixes):
            _refuse(architecture, model_type, kind)
    for key, kind in _REFUSED_KEYS:
        if config.values.get(key) not in (None, 0):
            _refuse(architecture, model_type, kind)
    if config.boolean("is_encoder_decoder", False):
        _refuse(architecture, model_type, "encoder-decoder")
    if config.boolean("use_bidirectional_attention", False):
        _refuse(architecture, model_type, "bidirectional (embedding)")
    if architecture in NATIVE:
        return
    if (
        "vision_config" in config
        or "audio_config" in config
        or architecture.endswith("ForConditionalGeneration")
    ):
        _refuse(architecture, model_type, "multimodal")
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        _refuse(architecture, model_type, "non-generating (or encoder-only)")
    if "auto_map" in config and not _transformers_has(model_type):
        raise UnsupportedModel(
            f"{architecture} runs only with code from its own repository, which this engine never does: take another"
        )


def _transformers_has(model_type: str) -> bool:
    """Whether Transformers brings the code of a model type. Looks for its folder: importing it takes seconds."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None or not model_type.replace("-", "_").isidentifier():
        return False
    return (Path(found.origin).parent / "models" / model_type.replace("-", "_")).is_dir()


def _refuse_quantized(config: Fields, architecture: str) -> None:
    if "quantization_config" not in config and "compression_config" not in config:
        return
    section = config.values.get("quantization_config") or config.values.get("compression_config")
    method = str(section.get("quant_method", "unknown") if isinstance(section, dict) else section)[:40]
    raise UnsupportedModel(
        f"{architecture} is quantized ({method}), which this engine does not read: take the bfloat16 original"
    )


def refuse_unknown(config: Fields, architecture: str, sizes: Sequence[Sequence[str]]) -> None:
    """Raise UnsupportedModel where the config of a model that is not native gives one of `sizes` by none of its names.

    It is called otherwise, or there is none: the file is not damaged, it is of a model that this engine does not know.
    """
    missing = next((names[0] for names in sizes if not any(name in config for name in names)), None)
    if missing is not None and architecture not in NATIVE:
        raise UnsupportedModel(
            f"{architecture} ({config.text('model_type') or 'no model_type'}) is not supported: its config gives no "
            f"{missing}, which this engine must know; {_RUNS}"
        )


def _refuse(architecture: str, model_type: str, kind: str) -> None:
    article = "an" if kind[0] in "aeiou" else "a"
    raise UnsupportedModel(
        f"{architecture} ({model_type or 'no model_type'}) is {article} {kind} model; {_RUNS}"
    )

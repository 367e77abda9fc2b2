"""Tiny random models of every family, made with Transformers, which is also the oracle.

Weights are large and norms and biases random, so that logits are far from flat and nothing may be left out unnoticed.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as tf

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 131, "max_position_embeddings": 256}
COMMON = {**SIZES, "bos_token_id": 1, "eos_token_id": 2}
GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
MHA = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 80}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama(**changes):
    return tf.LlamaConfig(
        **{**COMMON, **GQA, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, **changes}
    )


def qwen3(**changes):
    return tf.Qwen3Config(
        **{
            **COMMON,
            **GQA,
            "head_dim": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            **changes,
        }
    )


def phi3(**changes):
    ids = {"pad_token_id": 0, "original_max_position_embeddings": 32}
    return tf.Phi3Config(
        **{**COMMON, **GQA, **ids, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **changes}
    )


def moe(**changes):
    return tf.Qwen3MoeConfig(**COMMON, **GQA, head_dim=16, moe_intermediate_size=24, **changes)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.5 + 0.7 * i for i in range(6)],
}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

NATIVE = {
    "llama_mha_64": lambda: llama(**MHA, head_dim=64, tie_word_embeddings=False),
    "llama_gqa_128_tied": lambda: llama(head_dim=128, tie_word_embeddings=True, vocab_size=257),
    "llama_biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama3_scaling": lambda: llama(rope_parameters=LLAMA3),
    "llama_linear": lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "llama_dynamic": lambda: llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
    "llama_yarn": lambda: llama(rope_parameters=YARN),
    "smollm2": lambda: llama(num_attention_heads=9, num_key_value_heads=3, hidden_size=144, tie_word_embeddings=True),
    "mistral_window": lambda: tf.MistralConfig(**COMMON, **GQA, sliding_window=11),
    "qwen2": lambda: tf.Qwen2Config(**COMMON, **GQA, tie_word_embeddings=True),
    "qwen2_window": lambda: tf.Qwen2Config(
        **COMMON, **GQA, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": lambda: qwen3(tie_word_embeddings=True),
    "qwen3_128_yarn": lambda: qwen3(head_dim=128, rope_parameters=YARN, attention_bias=True),
    "qwen3_moe": lambda: moe(num_experts=6, num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[1]),
    "qwen3_moe_raw": lambda: moe(num_experts=5, num_experts_per_tok=3, norm_topk_prob=False, decoder_sparse_step=2),
    "smollm3": lambda: tf.SmolLM3Config(**COMMON, **GQA, no_rope_layers=[1, 0, 1], pad_token_id=0),
    "phi3": lambda: phi3(),
    "phi3_window": lambda: phi3(sliding_window=10),
    "phi3_longrope": lambda: phi3(rope_parameters=dict(LONGROPE)),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **COMMON, **GQA, head_dim=32, sliding_window=10, query_pre_attn_scalar=24, rope_parameters=GEMMA_ROPES,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "gemma3_capped": lambda: tf.Gemma3TextConfig(
        **COMMON, **GQA, head_dim=32, sliding_window=10, final_logit_softcapping=3.0, tie_word_embeddings=False
    ),
}  # fmt: skip

THROUGH_TRANSFORMERS = {
    "gemma2": lambda: tf.Gemma2Config(
        **COMMON, **GQA, head_dim=32, sliding_window=10, attn_logit_softcapping=4.0
    ),
    "olmo2": lambda: tf.Olmo2Config(**COMMON, **GQA),
    "granite": lambda: tf.GraniteConfig(
        **COMMON, **GQA, logits_scaling=3.0, residual_multiplier=0.6, attention_multiplier=0.2
    ),
    "starcoder2": lambda: tf.Starcoder2Config(**COMMON, **GQA, sliding_window=12),
    "gpt2": lambda: tf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=131, n_positions=256),
    "opt": lambda: tf.OPTConfig(**COMMON, num_attention_heads=4, ffn_dim=96, word_embed_proj_dim=64),
    "opt_projected": lambda: tf.OPTConfig(
        **COMMON, num_attention_heads=4, ffn_dim=96, word_embed_proj_dim=48, do_layer_norm_before=False
    ),
    "mixtral": lambda: tf.MixtralConfig(**COMMON, **GQA, num_local_experts=4),
    "mixtral_narrow": lambda: tf.MixtralConfig(
        **COMMON, **{**GQA, "intermediate_size": 24}, num_local_experts=4
    ),
}

TINY = NATIVE | THROUGH_TRANSFORMERS


def save_tiny(make, folder: Path) -> None:
    torch.manual_seed(sum(map(ord, folder.name)))
    model = tf.AutoModelForCausalLM.from_config(make(), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(
                    0, (2.0 if "embed" in name or "lm_head" in name else 1.2) / parameter.shape[-1] ** 0.5
                )
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
    model.save_pretrained(folder)


def oracle(folder: Path):
    """The model in float32, with the attention that is easiest to trust."""
    return tf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()

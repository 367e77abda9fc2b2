"""A model's config is believed only after every value was checked; what is refused is named, with what to do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import GEMMA_ROPES, LLAMA3, YARN

from nanochat.engine.models.config import ModelConfig
from nanochat.errors import InvalidModel, ModelError, ModelNotFound, UnsupportedModel

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
MOE = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
PHI3 = LLAMA | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
GEMMA3 = LLAMA | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 32,
    "sliding_window": 9,
}


@pytest.fixture
def read(tmp_path):
    def read(config, generation=None) -> ModelConfig:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return ModelConfig.from_folder(folder)

    return read


def refusal(read, config, kind=InvalidModel, **more) -> str:
    with pytest.raises(kind) as caught:
        read(config, **more)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_a_plain_config_is_read(read):
    config = read(LLAMA)
    assert config.native and config.architecture == "LlamaForCausalLM"
    assert (
        config.hidden_size,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
    ) == (64, 3, 4, 2, 16)
    assert config.dtype == "bfloat16"
    assert windows(config) == [None, None, None]
    assert config.kv_bytes_per_token(torch.float32) == 2 * 3 * 2 * 16 * 4
    assert config.weight_bytes(torch.bfloat16) == 2 * config.num_parameters
    assert config.eos_token_ids == (2,) and config.bos_token_id == 1


def test_every_end_token_of_the_generation_config_counts(read):
    config = read(
        LLAMA, generation={"eos_token_id": [5, 7, 5], "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    )
    assert config.eos_token_ids == (5, 7)
    assert config.generation_defaults == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}


def test_do_sample_false_is_greedy(read):
    assert (
        read(LLAMA, generation={"do_sample": False, "temperature": 0.6}).generation_defaults["temperature"]
        == 0.0
    )


def test_an_end_token_beyond_the_vocabulary_is_left_out(read):
    assert read(LLAMA | {"eos_token_id": [2, 131]}).eos_token_ids == (2,)


@pytest.mark.parametrize(
    "generation",
    [{"temperature": "hot"}, {"top_p": 7}, {"top_k": 1.5}, {"eos_token_id": -1}, {"eos_token_id": ["a"]}],
)
def test_a_damaged_generation_config_is_refused(read, generation):
    text = refusal(read, LLAMA, generation=generation)
    assert "generation_config.json" in text and next(iter(generation)) in text


SIZES = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
]
SIZES += ["intermediate_size", "head_dim"]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2**63, 10**400, "64", 1.5, True, [64], {}, 10**9])
def test_an_absurd_size_is_refused_with_its_name(read, key, value):
    text = refusal(read, LLAMA | {key: value})
    assert key in text and "fetch" in text
    assert "model/config.json" in text


@pytest.mark.parametrize("key", [key for key in SIZES if key not in ("head_dim", "num_key_value_heads")])
def test_a_missing_size_is_refused(read, key):
    assert f"{key} is missing" in refusal(read, {k: v for k, v in LLAMA.items() if k != key})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "not a multiple of 5 attention heads"),
        ({"num_key_value_heads": 3}, "4 attention heads are not a multiple of 3"),
        ({"head_dim": 7}, "head_dim is 7, and must be even"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": -1e4}, "rope_theta"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "high_freq_factor is 0.5 and must be above"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.05}},
            "0 of 16 values",
        ),
        ({"architectures": []}, "architectures is missing"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM', not a list"),
        ({"architectures": [3]}, "architectures holds 3"),
        ({"model_type": 5}, "model_type is 5"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
    ],
)
def test_a_contradiction_is_named(read, changes, words):
    assert words in refusal(read, LLAMA | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, and must be between 1 and 8"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"mlp_only_layers": ["0"]}, "mlp_only_layers"),
    ],
)
def test_experts_are_checked(read, changes, words):
    assert words in refusal(read, MOE | changes)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"a": NaN', "\x00\x01", "[" * 100_000, '{"hidden_size": 1' + "0" * 5000 + "}"],
)
def test_what_is_not_json_is_refused(read, text):
    refusal(read, text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(read, value):
    text = json.dumps(LLAMA).replace("10000.0", value)
    assert "rope_theta" in refusal(read, text)


def test_bytes_that_are_not_text_are_refused(read, tmp_path):
    read(LLAMA)
    (tmp_path / "model" / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InvalidModel, match="not JSON"):
        ModelConfig.from_folder(tmp_path / "model")


def test_a_folder_without_a_config_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound, match="no config"):
        ModelConfig.from_folder(tmp_path)
    with pytest.raises(ModelNotFound, match="moved or removed"):
        ModelConfig.from_folder(tmp_path / "nowhere")
    (tmp_path / "a-file").touch()
    with pytest.raises(ModelNotFound, match="not a folder"):
        ModelConfig.from_folder(tmp_path / "a-file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}, "hybrid linear-attention"),
        (
            {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5"},
            "hybrid linear-attention",
        ),
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 16}, "Mamba"),
        (
            {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "kv_lora_rank": 512},
            "MLA",
        ),
        ({"architectures": ["NewForCausalLM"], "model_type": "new", "kv_lora_rank": 512}, "MLA"),
        (
            {"architectures": ["NewForCausalLM"], "model_type": "new", "linear_num_value_heads": 4},
            "linear-attention",
        ),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "encoder-only"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
            "encoder-decoder",
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
            "is an encoder-decoder model",
        ),
        (
            {"architectures": ["BartForCausalLM"], "model_type": "bart", "is_encoder_decoder": False},
            "is an encoder-decoder model",
        ),
        ({"architectures": ["NewForCausalLM"], "decoder_layers": 6}, "is an encoder-decoder model"),
        ({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}, "ALiBi"),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "vision_config": {}},
            "multimodal",
        ),
        ({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}, "attention-sink"),
        (
            {
                "architectures": ["OtherForCausalLM"],
                "layer_types": ["full_attention", "linear_attention", "full_attention"],
            },
            "linear_attention",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized (gptq)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized (fp8)"),
        ({"quantization_config": "int4"}, "quantized (int4)"),
        (
            {"architectures": ["MyForCausalLM"], "model_type": "mine", "auto_map": {"AutoModel": "my.py"}},
            "own repository",
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "'mrope' rope"),
        ({"hidden_act": "relu"}, "'relu'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(read, changes, words):
    assert words in refusal(read, LLAMA | changes, UnsupportedModel)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"],
)
def test_a_model_that_calls_its_sizes_otherwise_is_not_called_damaged(read, key):
    xglm = LLAMA | {"architectures": ["XGLMForCausalLM"], "model_type": "xglm", key: None, "other_" + key: 64}
    refused = refusal(read, xglm, UnsupportedModel)
    assert refused.startswith("XGLMForCausalLM (xglm) is not supported") and f"no {key}" in refused


def test_pickled_weights_are_refused_by_name(read, tmp_path):
    read(LLAMA)
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "pytorch_model.bin" in refusal(read, LLAMA, UnsupportedModel)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    read(LLAMA)


def ropes(config):
    return [layer.rope for layer in config.layers]


def windows(config):
    return [layer.window for layer in config.layers]


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, LLAMA3, YARN])
def test_old_and_new_spellings_of_rope_mean_the_same(read, scaling):
    new = read({k: v for k, v in LLAMA.items() if k != "rope_theta"} | {"rope_parameters": scaling})
    section = {k: v for k, v in scaling.items() if k not in ("rope_theta", "rope_type")}
    old = LLAMA | {
        "rope_theta": scaling["rope_theta"],
        "rope_scaling": section | {"type": scaling["rope_type"]},
    }
    assert ropes(read(old)) == ropes(new)
    assert ropes(new)[0].kind == scaling["rope_type"]


def test_gemma_ropes_in_both_spellings(read):
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    new = read(GEMMA3 | {"rope_theta": None, "layer_types": kinds, "rope_parameters": GEMMA_ROPES})
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = GEMMA3 | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": scaling,
        "sliding_window_pattern": 3,
    }
    assert read(old).layers == new.layers
    assert [rope.theta for rope in ropes(new)] == [1e4, 1e4, 1e6]
    assert windows(new) == [9, 9, None]


def test_early_phi_configs_call_longrope_su(read):
    scaling = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = PHI3 | {"original_max_position_embeddings": 64}
    found = [
        ropes(read(config | {"rope_scaling": scaling | {"type": kind}}))
        for kind in ("su", "yarn", "longrope")
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][0].attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
    assert "needed" in refusal(
        read, config | {"rope_scaling": scaling | {"type": "su", "long_factor": [1.0]}}
    )


def test_a_window_that_is_not_used_is_no_window(read):
    assert windows(read(QWEN3 | {"sliding_window": 8, "use_sliding_window": False})) == [None] * 3
    used = QWEN3 | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
    assert windows(read(used)) == [None, None, 8]


def test_a_text_part_of_a_multimodal_gemma_is_read(read):
    inner = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "sliding_window": 16,
        "model_type": "gemma3_text",
    }
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "vision_config": {},
        "text_config": inner,
    }
    config = read(outer | {"eos_token_id": [1, 106], "torch_dtype": "bfloat16"})
    assert config.native and config.num_heads == 8 and config.head_dim == 256 and config.tied_embeddings
    assert config.eos_token_ids == (1, 106) and config.dtype == "bfloat16"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.integers(-(2**70), 2**70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {*LLAMA, *MOE, "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "quantization_config"}
)
KEYS += [
    "text_config",
    "vision_config",
    "auto_map",
    "query_pre_attn_scalar",
    "partial_rotary_factor",
    "no_rope_layers",
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([LLAMA, QWEN3, MOE, PHI3, GEMMA3]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4),
)
def test_any_config_is_read_or_refused_with_one_line(read, base, changes):
    try:
        config = read(base | changes)
    except ModelError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert config.num_parameters > 0
        assert len(config.layers) == config.num_layers


def test_reading_is_quick_and_needs_no_torch(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 4096}))
    program = (
        "import sys\nfrom pathlib import Path\nfrom nanochat.engine.models.config import ModelConfig\n"
        f"ModelConfig.from_folder(Path({str(tmp_path)!r}))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "status = Path('/proc/self/status')\n"
        "peak = [line for line in status.read_text().splitlines() if 'VmHWM' in line] if status.exists() else []\n"
        "assert not peak or int(peak[0].split()[1]) < 200 * 1024, peak\n"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert time.monotonic() - start < 10

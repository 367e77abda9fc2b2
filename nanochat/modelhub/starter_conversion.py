"""The starter model's GGUF turned into a Hugging Face folder: weights, tokenizer, template, configuration."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.errors import InvalidModel

if TYPE_CHECKING:
    import numpy
    from gguf import GGUFReader

_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


@dataclass(frozen=True, slots=True)
class _Weight:
    """One tensor on its way from GGUF to safetensors; `shape` is torch's (rows first)."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], numpy.ndarray[Any, Any]]  # float32

    @property
    def num_bytes(self) -> int:
        return 2 * math.prod(self.shape)


def convert(gguf_file: Path, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write the model in `gguf_file` (a Llama with a byte-level BPE vocabulary) as a Hugging Face folder.

    Weights become bfloat16, rounded to the nearest even as torch does, and are written one by one: peak
    memory is the largest tensor's. `progress` is called with (bytes written, bytes in all).
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    fields = _Fields(reader)
    if fields["general.architecture"] != "llama" or fields["tokenizer.ggml.model"] != "gpt2":
        raise InvalidModel(f"{gguf_file.name} is not a Llama with a byte-level BPE vocabulary")
    _write_json(folder / "config.json", _config(fields))
    _write_json(folder / "generation_config.json", _generation_config(fields))
    _write_tokenizer(fields, folder)
    _write_tokenizer_config(fields, folder)
    weights = list(
        _weights(reader, fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"])
    )
    _write_safetensors(weights, folder / "model.safetensors", progress)


class _Fields:
    """The metadata of a GGUF file by key."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise InvalidModel(f"the GGUF file has no {key}")
        return self._fields[key].contents()


def _config(fields: _Fields) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": fields["llama.vocab_size"],
    }


def _generation_config(fields: _Fields) -> dict[str, Any]:
    """Sampling as the model's publisher recommends it on the model card: temperature 0.2, top-p 0.9."""
    return {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "do_sample": True,
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "temperature": 0.2,
        "top_p": 0.9,
    }


def _write_tokenizer(fields: _Fields, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    # Each digit is a token of its own ("smollm" in the GGUF's terms); without the split "    12" differs.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if tokenizer.get_vocab_size() != len(tokens):
        raise InvalidModel(
            f"the tokenizer came out with {tokenizer.get_vocab_size()} tokens instead of {len(tokens)}"
        )
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_tokenizer_config(fields: _Fields, folder: Path) -> None:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    names = {
        name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": fields["llama.context_length"],
            # The plain class takes tokenizer.json as it is; a model's own class rebuilds the pre-tokenizer.
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
        },
    )
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def _weights(reader: GGUFReader, num_heads: int, num_kv_heads: int) -> Iterator[_Weight]:
    from gguf import dequantize

    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        name, heads = _NAMES.get(tensor.name), None
        if name is None:
            _, layer, part, suffix = tensor.name.split(".")
            name = f"model.layers.{layer}.{_LAYER_NAMES[part]}.{suffix}"
            heads = {"attn_q": num_heads, "attn_k": num_kv_heads}.get(part)

        def read(tensor: Any = tensor, heads: int | None = heads, shape: tuple[int, ...] = shape) -> Any:
            values = dequantize(tensor.data, tensor.tensor_type)
            if heads is None:
                return values
            # GGUF interleaves the two halves that rotary embedding pairs; Hugging Face keeps them apart.
            return values.reshape(heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)

        yield _Weight(name, shape, read)


def _write_safetensors(weights: list[_Weight], path: Path, progress: Callable[[int, int], None]) -> None:
    """Header length, header, then every tensor (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for weight in weights:
        end = total + weight.num_bytes
        header[weight.name] = {"dtype": "BF16", "shape": weight.shape, "data_offsets": [total, end]}
        total = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for weight in weights:
            written += file.write(_to_bfloat16(weight.read()).tobytes())
            progress(written, total)
    if written != total:
        raise InvalidModel(f"{path.name}: {written} bytes written instead of {total}")


def _to_bfloat16(values: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """float32 to the bits of bfloat16, rounded to nearest even; finite values only."""
    import numpy

    bits = numpy.ascontiguousarray(values, dtype=numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

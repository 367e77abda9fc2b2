"""Each rank reads its share of each file: together the model once, and what every rank has to hold again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanochat.engine import llm as engine
from nanochat.engine import weights
from nanochat.engine.tensor_files import TensorEntry
from nanochat.engine.weights import Checkpoint

pytestmark = pytest.mark.usefixtures("rank_threads")

EVERYWHERE = (
    "norm.weight",
    "norm.bias",
    ".gate.weight",
)  # norms and routers: small, and whole on every rank
KEYS_AND_VALUES = (".k_proj.weight", ".v_proj.weight", ".k_proj.bias", ".v_proj.bias")
FAMILIES = [
    "smollm2", "llama_gqa_128_tied", "llama_biases", "qwen2", "qwen3", "qwen3_moe", "mistral_window", "smollm3", "phi3",
    "gemma3", "gemma2", "olmo2", "starcoder2", "mixtral",
]  # fmt: skip


def again(name: str, entry: TensorEntry, ranks: int, heads: dict[str, int]) -> float:
    """How many bytes of a tensor are read besides once."""
    if name.endswith(EVERYWHERE):
        return entry.num_bytes * (ranks - 1)
    copies = (
        max(ranks / heads["kv"], 1) - 1
    )  # more ranks than key-value heads: each of these is on several ...
    if heads["gathered"]:
        copies = 0  # ... but where they are gathered whole, they were cut anywhere
    if name.endswith(KEYS_AND_VALUES):
        return entry.num_bytes * copies
    if ".qkv_proj." in name:
        return entry.num_bytes * copies * 2 * heads["kv"] / (heads["all"] + 2 * heads["kv"])
    return 0


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_ranks_together_read_the_model_and_what_is_replicated(
    name: str, ranks: int, tiny_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = tiny_folder(name)
    config = json.loads((folder / "config.json").read_text())
    heads = {
        "all": config["num_attention_heads"],
        "kv": config["num_key_value_heads"],
        "gathered": name == "olmo2",
    }
    with Checkpoint(folder) as checkpoint:
        entries = checkpoint.entries
    whole = sum(entry.num_bytes for entry in entries.values())
    replicated = sum(again(tensor, entry, ranks, heads) for tensor, entry in entries.items())
    seen, read_exactly = [], weights._read_exactly

    def counting(file, path, to, at):
        seen.append(len(to))
        read_exactly(file, path, to, at)

    monkeypatch.setattr(weights, "_read_exactly", counting)
    llm = engine.LLM(
        folder, dtype="float32", device="cpu", tensor_parallel_size=ranks, skip_tokenizer=True, num_blocks=4
    )
    told = [rank.read for rank in llm.core.group.memory]
    llm.close()
    assert sum(seen) == sum(told) == whole + replicated
    assert len(told) == ranks and max(told) < whole * (1 / ranks + 0.3)

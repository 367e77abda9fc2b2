"""A model whose next token is a hash of the exact tokens that it reads through the block tables.

It keeps each token's id in the KV cache and forgets everything else, so that a wrong block, slot,
position or stale prefix anywhere changes every token that follows. The reference is three lines.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.core import EngineCore
from nanochat.engine.loading import Loaded
from nanochat.engine.memory import MemoryPlan
from nanochat.engine.runner import ModelRunner

VOCABULARY = 97


def next_token(tokens: list[int]) -> int:
    h = 0
    for token in tokens:
        h = (h * 31 + token + 1) % 1_000_003
    return h % VOCABULARY


def reply(prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class HashModel:
    def __init__(self, poison: int | None = None) -> None:
        self.poison = poison  # a context that ends with this token gives NaN
        self.config = SimpleNamespace(
            vocab_size=VOCABULARY,
            max_position_embeddings=BLOCK_SIZE * 4,
            eos_token_ids=(),
            generation_defaults={},
            num_layers=1,
            num_kv_heads=1,
            head_dim=1,
        )

    def forward(self, ids, positions, layout, kv_cache):
        keys = kv_cache[0][0].view(-1)
        keys[layout.slots] = ids.to(keys.dtype)
        rows = []
        start = 0
        for length, context, table in zip(layout.query_lens, layout.contexts, layout.tables, strict=True):
            assert positions[start : start + length].tolist() == list(range(context - length, context))
            start += length
            slots = [table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(context)]
            tokens = [int(x) for x in keys[slots].tolist()]
            rows += [[float(next_token(tokens))]] * length  # only the last row's is used
            if self.poison is not None and tokens[-1] == self.poison:
                rows[-1] = [float("nan")]
        return torch.tensor(rows)

    def logits(self, hidden):
        wanted = torch.nan_to_num(hidden[:, 0]).long()
        return torch.nn.functional.one_hot(wanted, VOCABULARY).float() * 50 + hidden.isnan() * hidden


def hash_config(num_blocks: int = 32, **options) -> EngineConfig:
    return EngineConfig(model=Path("hash"), num_blocks=num_blocks, **options)


def hash_loaded(config: EngineConfig, poison: int | None = None) -> Loaded:
    model = HashModel(poison)
    assert config.num_blocks is not None
    kv = [(torch.full((config.num_blocks, BLOCK_SIZE, 1, 1), -1.0), torch.zeros(1))]
    memory = MemoryPlan(0, 0, 0, BLOCK_SIZE * 4, config.num_blocks, config.num_blocks * BLOCK_SIZE)
    device = torch.device("cpu")
    return Loaded(
        model=model,  # type: ignore[arg-type]
        runner=ModelRunner(model, kv, config, device, memory.max_model_len),  # type: ignore[arg-type]
        tokenizer=None,
        device=device,
        dtype=torch.float32,
        memory=memory,
        fingerprint="hash",
    )


def hash_core(num_blocks: int = 32, poison: int | None = None, **options) -> EngineCore:
    config = hash_config(num_blocks, **options)
    return EngineCore(config, hash_loaded(config, poison))

"""Small models in engines on a GPU, and the bits that they leave in KV caches and logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drawn_replies
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.llm import LLM
from nanochat.engine.outputs import RequestOutput
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import Sequence

VOCABULARY = 4099
KINDS = ["llama", "qwen3", "qwen3_moe"]
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3,
    "num_attention_heads": 8, "head_dim": 64, "max_position_embeddings": 4096, "initializer_range": 0.08,
}  # fmt: skip
MIXTURE = {  # the layer in the middle is dense
    "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 192, "norm_topk_prob": True,
    "mlp_only_layers": [1],
}  # fmt: skip


def write_model(kind: str, path: Path, **fields: object) -> Path:
    """A model of a kind with random weights; `fields` change its config."""
    torch.manual_seed(0)
    own = {"num_key_value_heads": 2 if kind == "llama" else 4, "tie_word_embeddings": kind == "qwen3"}
    shape = {**SHAPE, **own, **fields}
    if kind == "llama":
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(path)
    elif kind == "qwen3_moe":
        Qwen3MoeForCausalLM(Qwen3MoeConfig(**MIXTURE, **shape)).save_pretrained(path)
    else:
        Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(path)
    return path


def load(folder: Path, **options) -> LLM:
    """An engine in bfloat16 whose KV cache is zeros."""
    llm = LLM(
        folder, device="cuda", skip_tokenizer=True, **{"dtype": "bfloat16", "num_blocks": 4096, **options}
    )
    clear(llm)
    return llm


def clear(llm: LLM) -> None:
    """All of an idle engine's KV cache is zeros again."""
    for pair in llm.core._runner.kv_cache:
        for tensor in pair:
            tensor.zero_()


def draw_prompts(count: int, seed: int, longest: int = 40, shortest: int = 1) -> list[list[int]]:
    return drawn_replies.draw_prompts(count, seed, VOCABULARY, longest=longest, shortest=shortest)


def same_caches(one: LLM, other: LLM) -> bool:
    """Whether all of two engines' KV caches have the same bits."""
    pairs = zip(one.core._runner.kv_cache, other.core._runner.kv_cache, strict=True)
    return all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def slots_written(llm: LLM) -> int:
    """Slots of the last layer's keys that hold something, since `clear`."""
    return int(llm.core._runner.kv_cache[-1][0].flatten(0, 1).flatten(1).any(dim=1).sum())


def kept_rows(llm: LLM, sequence: Sequence) -> torch.Tensor:
    """What the KV cache holds of all tokens of a sequence but the last: [2 * layers, tokens, kv_heads, head_dim]."""
    cache = llm.core._runner.kv_cache
    at = torch.arange(len(sequence.tokens) - 1, device=cache[0][0].device)
    slots = torch.tensor(sequence.blocks, device=at.device)[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
    return torch.stack([tensor.flatten(0, 1)[slots] for pair in cache for tensor in pair])


def reply_with_rows(
    llm: LLM, batch: list[list[int]], params: SamplingParams, place: int = 0
) -> tuple[RequestOutput, torch.Tensor]:
    """A reply among others, and its rows of the KV cache as they were when it ended."""
    core, kept = llm.core, {}
    requests = [Request(prompt, params) for prompt in batch]
    for request in requests:
        core.add(request)
    (sequence,) = (one for one in core.sequences if one.request_id == requests[place].request_id)
    remove = core.scheduler.remove

    def watched(ending: Sequence) -> None:
        if ending is sequence:
            kept["rows"] = kept_rows(llm, sequence)
        remove(ending)

    core.scheduler.remove = watched  # type: ignore[method-assign]
    try:
        while core.has_work:
            for update in core.step():
                if update.request_id == requests[place].request_id and update.finished is not None:
                    kept["reply"] = update.finished
    finally:
        core.scheduler.remove = remove  # type: ignore[method-assign]
    request = requests[place]
    return RequestOutput(request.request_id, None, tuple(request.prompt_ids), (kept["reply"],)), kept["rows"]


def watch_prompts(llm: LLM) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Grows with each prompt's chunk that a graph may take: (start, count, last hidden state, logits)."""
    prefills, seen = llm.core._runner._prefills, []
    run: Callable = prefills.run

    def watched(chunk):
        hidden, share = run(chunk)
        seen.append((chunk.start, chunk.count, hidden.clone(), share.clone()))  # good until the next run
        return hidden, share

    prefills.run = watched
    return seen

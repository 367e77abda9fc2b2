"""The starter model in float32 against Transformers: greedy ids and log-probabilities on 32 varied prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nanochat.engine.llm import LLM
from nanochat.engine.sampling_params import SamplingParams

LENGTH = 128
ASKED = [
    "What is the capital of France?", "Write a haiku about rain.", "List five prime numbers.", "Who wrote Hamlet?",
    "Explain photosynthesis to a child.", "Translate 'good morning' into German.", "用一句话介绍北京。",
    "什么是机器学习？", "写一首关于春天的短诗。", "🎉🎂 What do these emoji mean? 👩‍👩‍👧‍👦", "😀",
    "Résumé, naïve, façade: what do they share?", "1 + 1 =",
    "  leading spaces and\ttabs\n\n\n3 blank lines", "Reverse the string 'abcdef' in Python.", "What is 17 * 23?",
    "Why is the sky blue? Answer in one sentence.", "こんにちは、元気ですか？", "Привет! Как дела?", "مرحبا، كيف حالك؟",
    "Give me a recipe for pancakes.", "Name three rivers.", "What comes after Z?", "Tell me a joke about computers.",
]  # fmt: skip
CODE = [
    "def fibonacci(n: int) -> int:\n    ", "#include <stdio.h>\nint main(void) {\n",
    "SELECT name, count(*) FROM users\nWHERE ",
    '{"name": "nanochat", "version": ',
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(",
    "for i in range(10):\n\tprint(i", "<html>\n<head>\n<title>",
]  # fmt: skip


@pytest.fixture(scope="module")
def prompts(starter_model: Path) -> list[list[int]]:
    from nanochat.engine.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(starter_model)
    chats = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ASKED]
    made = [tokenizer.encode(text, special=True) for text in [*chats, *CODE]]
    long = tokenizer.encode(
        " ".join(f"{text} ({i})" for i in range(9) for text in [*ASKED, *CODE]), special=True
    )
    return [*made, long[:2048]]


@pytest.mark.timeout(600)
def test_the_starter_model_says_what_transformers_says(starter_model: Path, prompts: list[list[int]]) -> None:
    """One pass of Transformers over prompt and reply checks every token of it: greedy ids are equal if and only if
    each one is the likeliest after the ones before."""
    assert len(prompts) == 32 and len(prompts[-1]) == 2048
    llm = LLM(starter_model, dtype="float32", device="cpu")
    params = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True, logprobs=0)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm.close()
    oracle = AutoModelForCausalLM.from_pretrained(starter_model, dtype=torch.float32)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output.token_ids) == LENGTH and output.outputs[0].logprobs is not None
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *output.token_ids]])
            logits = oracle(ids[:, :-1], logits_to_keep=LENGTH).logits[0]
        expected = torch.log_softmax(logits.float(), dim=-1)
        assert output.token_ids == tuple(expected.argmax(dim=-1).tolist())
        chosen = expected.gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
        ours = torch.tensor(
            [table[i].logprob for table, i in zip(output.outputs[0].logprobs, output.token_ids, strict=True)]
        )
        assert (ours - chosen).abs().max() < 1e-4

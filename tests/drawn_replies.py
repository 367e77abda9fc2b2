"""Prompts that are drawn, and replies that are compared bit for bit."""

from __future__ import annotations

import random

from nanochat import LLM, RequestOutput, SamplingParams


def draw_prompts(
    count: int, seed: int, vocabulary: int, *, longest: int = 40, shortest: int = 1
) -> list[list[int]]:
    draw = random.Random(seed)
    return [
        [draw.randrange(vocabulary) for _ in range(draw.randint(shortest, longest))] for _ in range(count)
    ]


def replies(llm: LLM, batch: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
    return llm.generate(batch, params, use_tqdm=False)


def bits(output: RequestOutput) -> tuple[tuple[int, ...], list[dict[int, float]]]:
    """The tokens of a reply, and all its log-probabilities."""
    reply = output.outputs[0]
    assert reply.logprobs is not None
    return reply.token_ids, [{i: entry.logprob for i, entry in table.items()} for table in reply.logprobs]

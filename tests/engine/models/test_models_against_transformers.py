"""In float32 every family gives what Transformers gives: log-probabilities to 1e-4, and the same greedy tokens."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from paged import Paged
from tiny_models import NATIVE, THROUGH_TRANSFORMERS, TINY, oracle

from nanochat.engine.models import ModelConfig, load_model

CPU = torch.device("cpu")
IN_A_RUN = [3, 4, 5, 6, 7]
SCATTERED = [9, 2, 17, 5, 11]
NEAR = 1e-4


@cache
def _loaded(folder):
    config = ModelConfig.from_folder(folder)
    return load_model(folder, config, dtype=torch.float32, device=CPU), oracle(folder)


def _prompt(length, vocab, seed=0):
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def _expected(theirs, tokens):
    return torch.log_softmax(theirs(torch.tensor([tokens]), use_cache=False).logits[0].float(), -1)


def _length(name):
    """LongRoPE's factors follow the length of the sequence, so its chunks are kept within the original context."""
    return 30 if name == "phi3_longrope" else 45


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_whole_prompt_matches(name, tiny_folder):
    ours, theirs = _loaded(tiny_folder(name))
    tokens = _prompt(45, ours.config.vocab_size)
    found = Paged(ours).step(tokens, 0, SCATTERED)
    expected = _expected(theirs, tokens)
    assert (found - expected).abs().max() < NEAR
    assert expected.exp().max() > 0.04  # else the comparison would say little


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("table", [IN_A_RUN, SCATTERED], ids=["in_a_run", "scattered"])
def test_chunks_then_decode_match(name, table, tiny_folder):
    ours, theirs = _loaded(tiny_folder(name))
    length = _length(name)
    tokens = _prompt(length, ours.config.vocab_size, seed=1)
    paged = Paged(ours)
    bounds = [0, 7, 23, 24, length - 4, *range(length - 3, length + 1)]
    found = torch.cat([paged.step(tokens[a:b], a, table) for a, b in pairwise(bounds)])
    assert (found - _expected(theirs, tokens)).abs().max() < NEAR


@pytest.mark.parametrize("name", sorted(TINY))
def test_greedy_tokens_match(name, tiny_folder):
    ours, theirs = _loaded(tiny_folder(name))
    prompt = _prompt(_length(name) - 16, ours.config.vocab_size, seed=2)
    paged = Paged(ours)
    tokens, new = list(prompt), list(prompt)
    for _ in range(16):
        logprobs = paged.step(new, len(tokens) - len(new), SCATTERED)
        new = [int(logprobs[-1].argmax())]
        tokens += new
    expected = list(prompt)
    for _ in range(16):
        expected.append(int(_expected(theirs, expected)[-1].argmax()))
    assert tokens == expected


@pytest.mark.parametrize(
    "name", ["llama_gqa_128_tied", "mistral_window", "qwen3_moe", "gemma3", "gemma3_capped", "starcoder2"]
)
def test_company_in_the_batch_changes_nothing(name, tiny_folder):
    ours, theirs = _loaded(tiny_folder(name))
    vocab = ours.config.vocab_size
    prompts = [_prompt(length, vocab, seed=length) for length in (20, 33, 5)]
    tables = [[1, 2], [12, 3, 7], [20]]
    paged = Paged(ours)
    paged.batch([(prompt[:-4], 0, table) for prompt, table in zip(prompts, tables, strict=True)])
    mixed = paged.batch(
        [
            (prompts[0][-4:-3], 16, tables[0]),
            (prompts[1][-4:], 29, tables[1]),
            (prompts[2][-4:-3], 1, tables[2]),
        ]
    )
    both = paged.batch([(prompts[0][-3:-2], 17, tables[0]), (prompts[2][-3:-2], 2, tables[2])])
    for found, prompt, rows in (
        (mixed[0], prompts[0], slice(16, 17)),
        (mixed[1], prompts[1], slice(29, 33)),
        (mixed[2], prompts[2], slice(1, 2)),
        (both[0], prompts[0], slice(17, 18)),
        (both[1], prompts[2], slice(2, 3)),
    ):
        assert (found - _expected(theirs, prompt)[rows]).abs().max() < NEAR


def test_longrope_turns_to_its_long_factors_past_the_original_context(tiny_folder):
    ours, theirs = _loaded(tiny_folder("phi3_longrope"))
    assert {layer.rope.original_context for layer in ours.config.layers} == {32}
    for length in (32, 33):
        tokens = _prompt(length, ours.config.vocab_size, seed=3)
        short_neighbour = _prompt(9, ours.config.vocab_size, seed=4)
        found, neighbour = Paged(ours).batch([(tokens, 0, SCATTERED), (short_neighbour, 0, [1])])
        assert (found - _expected(theirs, tokens)).abs().max() < NEAR
        assert (neighbour - _expected(theirs, short_neighbour)).abs().max() < NEAR


@pytest.mark.parametrize("name", ["llama_gqa_128_tied", "qwen2", "qwen3_moe", "gemma3", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(name, dtype, tiny_folder):
    ours = load_model(tiny_folder(name), ModelConfig.from_folder(tiny_folder(name)), dtype=dtype, device=CPU)
    theirs = oracle(tiny_folder(name))
    tokens = _prompt(30, ours.config.vocab_size, seed=5)
    paged = Paged(ours, dtype=dtype)
    found = torch.cat(
        [
            paged.step(tokens[:25], 0, SCATTERED),
            *(paged.step(tokens[i : i + 1], i, SCATTERED) for i in range(25, 30)),
        ]
    )
    error = (found - _expected(theirs, tokens)).abs()
    assert error.mean() < (0.08 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_the_native_decoder_runs_it(name, tiny_folder):
    config = ModelConfig.from_folder(tiny_folder(name))
    assert config.native
    theirs = oracle(tiny_folder(name))
    assert config.num_parameters == sum(p.numel() for p in {id(p): p for p in theirs.parameters()}.values())


@pytest.mark.parametrize("name", sorted(THROUGH_TRANSFORMERS))
def test_transformers_runs_it(name, tiny_folder):
    assert not ModelConfig.from_folder(tiny_folder(name)).native

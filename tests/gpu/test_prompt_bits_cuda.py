"""Prompts in graphs against eager ones on CUDA: the same bits at every captured size, its neighbours, and over a prefix.

In bfloat16, where rounding shows every other order of adding up. What is compared is the whole KV cache, the last hidden
state, all logits, and what is told of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawn_replies import bits, replies
from small_engines import (
    KINDS,
    clear,
    draw_prompts,
    load,
    same_caches,
    slots_written,
    watch_prompts,
    write_model,
)

from nanochat.engine.sampling_params import SamplingParams

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from nanochat.engine.prefill_graphs import SIZES

pytestmark = pytest.mark.gpu
FIRST = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=5)
NEAR = sorted({size + d for size in SIZES for d in (-1, 0, 1)})
PREFIX = SIZES[-1]  # what one step takes: the rest of a longer prompt is read over it


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("deterministic", [False, True], ids=["usual", "deterministic"])
def test_a_prompt_in_a_graph_leaves_the_bits_of_an_eager_one_at_every_size(
    folder: Path, deterministic: bool
) -> None:
    options = {
        "enable_prefix_caching": False, "deterministic": deterministic, "max_num_seqs": 2, "num_blocks": 512,
        "max_num_batched_tokens": PREFIX,
    }  # fmt: skip
    graphs, eager = load(folder, **options), load(folder, enforce_eager=True, **options)
    captured, launched = watch_prompts(graphs), watch_prompts(eager)
    for count in [*NEAR, *(PREFIX + count for count in NEAR if count < PREFIX)]:
        batch = draw_prompts(1, count, count, count)
        one, other = (bits(replies(llm, batch, FIRST)[0]) for llm in (graphs, eager))
        assert one == other, count
        assert same_caches(graphs, eager), count
        assert slots_written(graphs) == count, "padding writes nothing"
        for ours, theirs in zip(captured, launched, strict=True):
            assert ours[:2] == theirs[:2], count
            assert torch.equal(ours[2], theirs[2]) and torch.equal(ours[3], theirs[3]), ours[:2]
        fresh, rest = min(count, PREFIX), max(count - PREFIX, 0)
        chunks = [(0, fresh), *([(PREFIX, rest)] if rest > 1 else [])]  # a single token is a step of its own
        assert [each[:2] for each in captured] == chunks
        captured.clear()
        launched.clear()
        clear(graphs)
        clear(eager)
    assert sorted(graphs.core._runner._prefills._captured) == list(SIZES)
    assert not eager.core._runner._prefills._captured
    graphs.close()
    eager.close()

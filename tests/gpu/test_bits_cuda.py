"""Bits on CUDA: graphs against eager at every captured size, and the deterministic mode in company and over a cached prefix.

In bfloat16, where rounding shows every other order of adding up. What is compared is the whole KV cache, and
log-probabilities.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawn_replies import bits, replies
from small_engines import KINDS, draw_prompts, load, reply_with_rows, same_caches, write_model

from nanochat.engine.sampling_params import SamplingParams

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from nanochat.engine.cuda_graphs import batch_sizes

pytestmark = pytest.mark.gpu
LARGEST, NEIGHBOURS, TRIALS = 256, 64, 50
DRAWN = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, max_tokens=8, ignore_eos=True, seed=3)
LOGPROBS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(request.param, tmp_path_factory.mktemp(request.param))


def near_sizes() -> list[int]:
    """Every captured size and its neighbours."""
    near = {size + d for size in batch_sizes(LARGEST) for d in (-1, 0, 1)}
    return sorted(count for count in near if 1 <= count <= LARGEST)


@pytest.mark.parametrize("deterministic", [False, True], ids=["usual", "deterministic"])
def test_graphs_give_the_bits_of_eager_steps_at_every_size(folder: Path, deterministic: bool) -> None:
    options = {
        "enable_prefix_caching": False, "deterministic": deterministic, "max_num_seqs": LARGEST,
    }  # fmt: skip
    graphs, eager = load(folder, **options), load(folder, enforce_eager=True, **options)
    for count in near_sizes():
        batch = draw_prompts(count, count)
        captured, launched = ([r.token_ids for r in replies(llm, batch, DRAWN)] for llm in (graphs, eager))
        assert captured == launched, count
        assert same_caches(graphs, eager), count
    graphs.close()
    eager.close()


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_a_needle_has_the_same_bits_among_64_neighbours(folder: Path, eager: bool) -> None:
    """Its rows of the KV cache, of prompt and reply; and its log-probabilities in every other trial, whose graphs end with logits."""
    options = {"deterministic": True, "enable_prefix_caching": False, "max_num_seqs": LARGEST}
    llm = load(folder, enforce_eager=eager, **options)
    wrong: list[int] = []
    for trial in range(TRIALS):
        (needle,) = draw_prompts(1, trial, 1500)
        params = LOGPROBS if trial % 2 else DRAWN
        alone, rows_alone = reply_with_rows(llm, [needle], params)
        company = draw_prompts(NEIGHBOURS, 1000 + trial, 700)
        place = trial * NEIGHBOURS // TRIALS
        among, rows = reply_with_rows(llm, [*company[:place], needle, *company[place:]], params, place)
        assert rows.shape[1] == len(needle) + params.max_tokens - 1 and rows.any(dim=(0, 2, 3)).all()
        same = torch.equal(rows, rows_alone) and among.token_ids == alone.token_ids
        same = same and (params is DRAWN or bits(among) == bits(alone))
        wrong += [] if same else [trial]
    captured = llm.core._runner._graphs._captured
    sizes = {form: [size for size, own in captured if own == form] for form in ("whole", "logits")}
    llm.close()
    assert not wrong
    if eager:
        assert not captured
    else:
        assert all(min(own) == 1 and max(own) > NEIGHBOURS for own in sizes.values()), sizes


def test_graphs_and_eager_steps_draw_the_same_in_the_deterministic_mode(folder: Path) -> None:
    """A prompt is read beside the replies, so that some of their tokens come from steps without a graph."""
    batch = draw_prompts(12, 5, 900)
    params = [SamplingParams(**{**_fields(DRAWN), "seed": i, "max_tokens": 40}) for i in range(12)]
    options = {
        "deterministic": True,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 256,
        "max_num_seqs": LARGEST,
    }
    graphs, eager = load(folder, **options), load(folder, enforce_eager=True, **options)
    alone = [replies(graphs, [prompt], own)[0].token_ids for prompt, own in zip(batch, params, strict=True)]
    for llm in (graphs, eager):
        assert [r.token_ids for r in llm.generate(batch, params, use_tqdm=False)] == alone
        llm.close()


def _fields(params: SamplingParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "ignore_eos")}


def test_a_cached_prefix_gives_the_bits_of_a_computed_one(folder: Path) -> None:
    batch = draw_prompts(8, 2, 1500)
    plain = load(folder, deterministic=True, enable_prefix_caching=False, max_num_seqs=LARGEST)
    computed = [bits(replies(plain, [prompt], LOGPROBS)[0]) for prompt in batch]
    plain.close()
    llm = load(folder, deterministic=True, max_num_seqs=LARGEST)
    assert [bits(r) for r in replies(llm, batch, LOGPROBS)] == computed
    again = replies(llm, batch, LOGPROBS)
    assert any(reply.num_cached_tokens > 0 for reply in again)
    assert [bits(r) for r in again] == computed
    llm.close()
    chunked = load(folder, deterministic=True, max_num_batched_tokens=100, max_num_seqs=LARGEST)
    assert [bits(r) for r in replies(chunked, batch, LOGPROBS)] == computed
    chunked.close()


def test_without_the_mode_company_changes_bits(folder: Path) -> None:
    llm = load(folder, enable_prefix_caching=False, max_num_seqs=LARGEST)
    needle, *company = draw_prompts(NEIGHBOURS + 1, 9, 700)
    alone, rows_alone = reply_with_rows(llm, [needle], LOGPROBS)
    among, rows = reply_with_rows(llm, [*company, needle], LOGPROBS, NEIGHBOURS)
    assert bits(among) != bits(alone)
    assert not torch.equal(rows, rows_alone)
    llm.close()


def test_without_the_mode_a_cached_prefix_changes_bits(folder: Path) -> None:
    llm = load(folder, max_num_seqs=LARGEST)
    batch = [prompt for prompt in draw_prompts(8, 2, 1500) if len(prompt) > 300]
    computed = [bits(replies(llm, [prompt], LOGPROBS)[0]) for prompt in batch]
    cached = [replies(llm, [prompt], LOGPROBS)[0] for prompt in batch]
    assert all(reply.num_cached_tokens > 0 for reply in cached)
    assert [bits(reply) for reply in cached] != computed
    llm.close()

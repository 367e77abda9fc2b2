"""Captured steps that draw from divided logits, on one GPU: several ranks' offers in one graph, and the engine's graphs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from transformers import Qwen3Config, Qwen3ForCausalLM

from nanochat.engine.llm import LLM
from nanochat.engine.parallel.divided_sampler import DividedSampler
from nanochat.engine.parallel.shares import vocabulary_share
from nanochat.engine.sampling_params import SamplingParams
from nanochat.kernels.triton_divided import choose_rows, offer_rows
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows

pytestmark = pytest.mark.gpu

VOCABULARY = 1031
PROMPTS = [[5, 9, 2, 77, 31], [*range(3, 43)], [100], [*range(20, 320)]]


def rows_of(count: int) -> SamplingRows:
    draw = torch.Generator().manual_seed(count)
    rows = (
        torch.tensor([0.0, 0.6, 1.0, 1.7])[torch.randint(4, (count,), generator=draw)],
        torch.zeros(count, dtype=torch.int32), torch.ones(count), torch.zeros(count),
        torch.randint(-(2**62), 2**62, (count,), generator=draw), torch.randint(5000, (count,), generator=draw),
    )  # fmt: skip
    return SamplingRows(*(tensor.cuda() for tensor in rows))


def slices(vocabulary: int, ranks: int) -> list[slice]:
    return [vocabulary_share(vocabulary, rank, ranks) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("vocabulary", [1000, 32000, 151936, 262144])
def test_a_captured_draw_gives_the_tokens_of_whole_logits(vocabulary: int, ranks: int) -> None:
    logits, rows = torch.zeros(16, vocabulary, device="cuda"), rows_of(16)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        offers = [offer_rows(logits[:, s], rows, s.start) for s in slices(vocabulary, ranks)]
        return choose_rows(torch.stack(offers))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        draw()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids, finite = draw()
    for seed, steps in (
        (0, 0.0),
        (1, 0.0),
        (2, 1.0),
        (3, 0.25),
    ):  # with steps, the largest are there several times
        drawn = torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
        logits.copy_((drawn * steps).round() / steps if steps else drawn)
        rows.counter.add_(1)
        graph.replay()
        assert ids.tolist() == sample_rows(logits, rows)[0].tolist(), (seed, steps, rows.temperature.tolist())
        assert finite.all()
    logits[3, 0] = logits[5, vocabulary - 1] = float("nan")
    graph.replay()
    assert [row for row, sound in enumerate(finite.tolist()) if not sound] == [3, 5]


class OneGpu:
    """What a rank asks of `Collectives`, answered by itself; counts what it was asked."""

    rank, ranks = 0, 1

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def exchange(self, x: torch.Tensor) -> torch.Tensor:
        self.count["exchange"] += 1
        return x[None]

    def gather(self, share: torch.Tensor) -> torch.Tensor:
        self.count["gather"] += 1
        return share


class Simulated(DividedSampler):
    """Draws as so many ranks would, each from its part of the vocabulary."""

    def __init__(self, model, shares: list[slice]) -> None:
        super().__init__(model, OneGpu())  # type: ignore[arg-type]
        self._shares = shares

    def draw_rows(self, share, rows, *, pdl=False):
        offers = [offer_rows(share[:, s], rows, s.start, pdl=pdl) for s in self._shares]
        return choose_rows(torch.stack(offers), pdl=pdl)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("divided")
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, initializer_range=0.1,
        )
    ).save_pretrained(path)  # fmt: skip
    return path


WISHES = {
    "greedy": [SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)] * 4,
    "drawn": [
        SamplingParams(temperature=0.5 + i / 2, seed=2**63 + i, max_tokens=24, ignore_eos=True) for i in range(4)
    ],
    "top-k": [SamplingParams(temperature=1.0, top_k=20, seed=i, max_tokens=24, ignore_eos=True) for i in range(4)],
    "top-p": [SamplingParams(temperature=1.0, top_p=0.7, seed=i, max_tokens=24, ignore_eos=True) for i in range(4)],
    "min-p": [SamplingParams(temperature=1.0, min_p=0.1, seed=i, max_tokens=24, ignore_eos=True) for i in range(4)],
    "adjusted": [
        SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2),
        SamplingParams(temperature=1.2, seed=7, max_tokens=24, ignore_eos=True, repetition_penalty=1.3),
        SamplingParams(temperature=0.9, top_k=5, seed=8, max_tokens=24, ignore_eos=True, logit_bias={9: 3.0}),
        SamplingParams(temperature=0.9, seed=9, max_tokens=24, ignore_eos=True, min_tokens=24, stop_token_ids=[4]),
    ],
    "mixed": [
        SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True),
        SamplingParams(temperature=1.2, seed=7, max_tokens=24, ignore_eos=True),
        SamplingParams(temperature=0.9, top_k=5, seed=8, max_tokens=12, ignore_eos=True),
        SamplingParams(temperature=0.9, top_p=0.5, min_p=0.02, seed=9, max_tokens=6, ignore_eos=True),
    ],
}  # fmt: skip
FORMS = {
    "greedy": {"divided"}, "drawn": {"divided"}, "top-k": {"whole"}, "top-p": {"whole"}, "min-p": {"whole"},
    "adjusted": {"logits"},
}  # fmt: skip


def load(folder: Path) -> LLM:
    return LLM(folder, dtype="float32", device="cuda", skip_tokenizer=True, num_blocks=512)


def ids_of(llm: LLM, wishes: list[SamplingParams]) -> list[tuple[int, ...]]:
    """Of all prompts at once, and of one alone, whose prefill is a graph's."""
    outputs = llm.generate(PROMPTS, wishes, use_tqdm=False)
    outputs += llm.generate([PROMPTS[1]], wishes[1], use_tqdm=False)
    return [output.token_ids for output in outputs]


def divide(llm: LLM, sampler: DividedSampler) -> None:
    """From now on the engine's steps draw with `sampler`."""
    runner = llm.core._runner
    runner._divided = runner._graphs._divided = sampler
    runner._graphs._captured.clear()


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[tuple[int, ...]]]:
    llm = load(folder)
    found = {name: ids_of(llm, wishes) for name, wishes in WISHES.items()}
    llm.close()
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_engine_draws_what_one_device_draws_whatever_is_asked(folder: Path, alone, ranks: int) -> None:
    llm = load(folder)
    wrong = {}
    for name, wishes in WISHES.items():
        divide(llm, Simulated(llm.core._runner.model, slices(VOCABULARY, ranks)))
        found = ids_of(llm, wishes)
        if found != alone[name]:
            wrong[name] = [
                (row, next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None))
                for row, (one, other) in enumerate(zip(alone[name], found, strict=True))
            ]
        forms = {form for _, form in llm.core._runner._graphs._captured}
        assert forms == FORMS.get(name, {"divided", "whole"}), (name, forms)
    llm.close()
    assert not wrong, f"(row, first step that differs): {wrong}"


def test_a_rank_that_is_not_heard_is_noticed(folder: Path, alone) -> None:
    llm = load(folder)
    divide(llm, Simulated(llm.core._runner.model, slices(VOCABULARY, 2)[:1]))
    assert ids_of(llm, WISHES["greedy"]) != alone["greedy"]
    assert ids_of(llm, WISHES["drawn"]) != alone["drawn"]
    llm.close()


@pytest.mark.parametrize(
    ("name", "asked"), [("drawn", "exchange"), ("top-k", "gather"), ("adjusted", "gather")]
)
def test_a_recorded_step_holds_its_exchange_and_no_other(folder: Path, alone, name: str, asked: str) -> None:
    llm, ranks = load(folder), OneGpu()
    runner = llm.core._runner
    divide(llm, DividedSampler(runner.model, ranks))  # type: ignore[arg-type]
    runner.model.gather = ranks.gather
    assert ids_of(llm, WISHES[name]) == alone[name]
    assert set(ranks.count) == {asked}
    held, sizes = runner._graphs, len(runner._graphs._captured)
    for size, form in [*held._captured]:
        ranks.count.clear()
        held._capture(size, form)
        assert ranks.count == {asked: 2}, "once in the step before the recording, once in it"
    assert sizes > 0
    llm.close()


def test_nothing_in_the_drawing_of_first_tokens_waits_for_the_device(folder: Path, alone) -> None:
    llm = load(folder)
    runner = llm.core._runner
    divide(llm, DividedSampler(runner.model, OneGpu()))  # type: ignore[arg-type]
    ids_of(llm, WISHES["drawn"])  # compiles
    draw, drawn = runner._draw_divided, []

    def watched(share, sequences):
        drawn.extend(sequences)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return draw(share, sequences)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    runner._draw_divided = watched
    assert ids_of(llm, WISHES["drawn"]) == alone["drawn"]
    assert len(drawn) == 5, "four together and one alone"
    llm.close()

"""Tokens from divided logits, in the interpreter: those that whole logits give, to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch

from nanochat import SamplingParams
from nanochat.engine.adjusted_sampler import rows_of_newcomers
from nanochat.engine.cuda_graphs import DecodeGraphs, Form
from nanochat.engine.parallel.divided_sampler import DividedSampler
from nanochat.engine.parallel.shares import vocabulary_share
from nanochat.engine.sampler import sample
from nanochat.engine.sequence import Sequence
from nanochat.kernels.triton_divided import choose_rows, offer_rows
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows
from nanochat.kernels.triton_step import DecodeRows, Told

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # integer hashes wrap


def rows_of(count: int, seed: int) -> SamplingRows:
    draw = torch.Generator().manual_seed(seed)
    choice = torch.tensor([0.0, 0.6, 1.0, 1.7])[torch.randint(4, (count,), generator=draw)]
    return SamplingRows(
        choice, torch.zeros(count, dtype=torch.int32), torch.ones(count), torch.zeros(count),
        torch.randint(-(2**62), 2**62, (count,), generator=draw), torch.randint(5000, (count,), generator=draw),
    )  # fmt: skip


def divided(logits: torch.Tensor, rows: SamplingRows, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    shares = [vocabulary_share(logits.shape[1], rank, ranks) for rank in range(ranks)]
    return choose_rows(torch.stack([offer_rows(logits[:, s], rows, s.start) for s in shares]))


@pytest.mark.parametrize(
    ("vocab", "ranks", "steps"), [(1000, 2, 0.0), (5000, 2, 1.0), (131, 3, 0.5), (2100, 4, 0.0), (5, 4, 0.0)]
)
def test_divided_logits_give_the_tokens_of_whole_ones(vocab: int, ranks: int, steps: float) -> None:
    """With steps most of the largest values are there several times, on several ranks."""
    logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    logits = (logits * steps).round() / steps if steps else logits
    rows = rows_of(8, vocab)
    ids, finite = divided(logits, rows, ranks)
    assert ids.tolist() == sample_rows(logits, rows)[0].tolist()
    assert finite.all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_row_with_nan_or_inf_on_any_rank_is_flagged_and_no_other(poison: float) -> None:
    logits, rows = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)), rows_of(5, 3)
    clean, _ = divided(logits, rows, 2)
    logits[1, 0] = logits[3, 299] = poison
    ids, finite = divided(logits, rows, 2)
    assert finite.tolist() == [True, False, True, False, True]
    assert ids[[0, 2, 4]].tolist() == clean[[0, 2, 4]].tolist() and ids[1] == ids[3] == 0


@pytest.mark.parametrize("form", ["divided", "whole", "logits"])
def test_what_a_graph_records_exchanges_offers_or_all_logits_once(form: Form) -> None:
    """One rank's step up to the next one's ids; the other rank is there in what the exchanges give back."""
    logits, sampling = torch.randn(3, 1001, generator=torch.Generator().manual_seed(4)) * 3, rows_of(3, 8)
    logits[:, 600] = 20.0  # the likeliest token is on the other rank
    mine, theirs = (vocabulary_share(1001, rank, 2) for rank in range(2))
    asked: list[str] = []

    def exchange(offers: torch.Tensor) -> torch.Tensor:
        asked.append("offers")
        return torch.stack([offers, offer_rows(logits[:, theirs], sampling, theirs.start)])

    def whole(share: torch.Tensor) -> torch.Tensor:
        asked.append("logits")
        return torch.cat([share, logits[:, theirs]], dim=1)

    decoder = SimpleNamespace(config=SimpleNamespace(vocab_size=1001), whole_logits=whole)
    ranks = SimpleNamespace(rank=0, ranks=2, exchange=exchange)
    rows = DecodeRows(
        ids=torch.zeros(3, dtype=torch.int64), positions=torch.zeros(3, dtype=torch.int64),
        context_lens=torch.ones(3, dtype=torch.int32), slots=torch.arange(3), counter=sampling.counter,
        block_tables=torch.arange(3, dtype=torch.int32)[:, None], stop_ids=torch.full((3, 1), -1, dtype=torch.int32),
    )  # fmt: skip
    expected, _ = sample_rows(logits, sampling)
    told = Told(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    graphs = SimpleNamespace(
        _ids=SimpleNamespace(told=told), _rows=SimpleNamespace(decode=rows, sampling=sampling), _logits=lambda rows, size: logits[:, mine],
        _divided=DividedSampler(decoder, ranks), _model=decoder, _pdl=False,  # type: ignore[arg-type]
    )  # fmt: skip
    left = DecodeGraphs._step(graphs, 3, form)  # type: ignore[arg-type]
    assert asked == (["offers"] if form == "divided" else ["logits"])
    if form == "logits":
        assert left is not None and torch.equal(left, logits) and not told.ring.any(), "drawn elsewhere"
        return
    assert left is None
    assert told.ring.tolist() == [[0, *expected.tolist()]] and rows.ids.tolist() == expected.tolist()


def test_first_tokens_are_drawn_from_divided_logits_as_from_whole_ones() -> None:
    """Of sequences that have no rows on the device yet."""
    batch = [
        Sequence(
            request_id="", index=0, prompt=(1,), params=SamplingParams(temperature=temperature), seed=2**64 - row,
            priority=0, arrival=0, submitted=0.0, max_tokens=9, root=b"", eos_ids=frozenset(),
        )
        for row, temperature in enumerate((0.0, 0.6, 1.0, 1.7, 2.5), 1)
    ]  # fmt: skip
    logits = torch.randn(5, 1001, generator=torch.Generator().manual_seed(5))
    logits[3, 990] = float("nan")
    mine, theirs = (vocabulary_share(1001, rank, 2) for rank in range(2))
    rows = rows_of_newcomers(batch, logits.device)
    ranks = SimpleNamespace(
        rank=0,
        ranks=2,
        exchange=lambda own: torch.stack([own, offer_rows(logits[:, theirs], rows, theirs.start)]),
    )
    decoder = SimpleNamespace(config=SimpleNamespace(vocab_size=1001))
    graphs = SimpleNamespace(_divided=DividedSampler(decoder, ranks), _pdl=False)  # type: ignore[arg-type]
    drawn = DecodeGraphs.draw_divided(graphs, logits[:, mine], batch)  # type: ignore[arg-type]
    ids, finite = sample_rows(logits, rows)
    assert drawn.finite.tolist() == finite.tolist() == [True, True, True, False, True]
    assert drawn.ids[finite].tolist() == ids[finite].tolist()
    assert (
        drawn.ids[finite].tolist()
        == sample(logits[finite], [s for s, ok in zip(batch, finite, strict=True) if ok]).ids.tolist()
    )

"""What drawing costs, on a tiny model: the engine alone and beneath the real application, one table."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from nanochat.bench import Hooks, Plan, Row, Run, Sizes, run_benchmark
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.benchmarks.made_vocabulary import write_vocabulary
from nanochat.engine.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("known_ceilings")


def test_the_same_reply_is_measured_with_and_without_the_screen(tmp_path: Path) -> None:
    plan = Plan(
        model=write_shape("tiny", tmp_path), model_name="tiny", drawn=True, names=("screen",),
        sizes=Sizes(output=24), repeats=2, device="cpu",
    )  # fmt: skip
    grown: list[Run] = []
    gc.unfreeze()  # an application that ran before in this process
    settled = (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count())
    run = run_benchmark(plan, Hooks(on_row=lambda run, row: grown.append(run)))
    assert [(row.test, row.engine) for row in run.rows] == [
        ("tg24 @ d64", "nanochat"), ("tg24 @ d64", "nanochat, drawing"),
    ]  # fmt: skip
    assert all(len(row.samples) == 2 and row.error is None and row.tokens == 2 * 24 for row in run.rows)
    assert not run.partial and grown[0].partial and "matrices" in run.environment["kernels"]
    assert (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()) == settled


def test_a_stop_closes_the_application(tmp_path: Path) -> None:
    plan = Plan(
        model=write_shape("tiny", tmp_path), model_name="tiny", drawn=True, names=("screen",),
        sizes=Sizes(output=100_000 // 16), repeats=3, device="cpu",
    )  # fmt: skip
    rates: list[float] = []
    told = Hooks(on_progress=lambda progress: rates.append(progress.rate or 0.0), stopped=lambda: any(rates))
    rows: list[Row] = list(run_benchmark(plan, told).rows)
    assert all(row.partial for row in rows)


def test_made_up_words_are_told_apart_and_lines_end(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, 1000)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 1000
    words = [tokenizer.decode([number]) for number in range(1000)]
    assert len(set(words)) == 1000 and sum(word.startswith("\n") for word in words) == 84

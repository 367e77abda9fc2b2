"""One run over several numbers of devices: rows of each, and what one of them costs the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_runs import a_row, a_run
from click.testing import CliRunner

from nanochat.bench import Hooks, Plan, Progress, Sizes
from nanochat.benchmarks import scaling
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.benchmarks.report import header
from nanochat.benchmarks.scaling import run_over
from nanochat.commands.bench import bench
from nanochat.errors import UsageError

pytestmark = pytest.mark.usefixtures("known_ceilings")


@pytest.fixture
def plan(tmp_path) -> Plan:
    sizes = Sizes(prompts=(16,), output=4, depths=(0,))
    return Plan(
        model=write_shape("tiny", tmp_path), model_name="tiny", drawn=True, sizes=sizes, device="cpu",
        dtype="float32", repeats=1,
    )  # fmt: skip


def test_rows_of_each_number_stand_in_one_run(plan: Plan) -> None:
    kept, told = [], list[Progress]()
    run = run_over(plan, (1, 2), Hooks(on_progress=told.append, on_row=lambda run, row: kept.append(run)))
    assert [(row.test, row.engine) for row in run.rows] == [
        (test, engine) for engine in ("nanochat, 1 rank", "nanochat, 2 ranks") for test in ("pp16", "tg4")
    ]
    assert [row.collectives is not None for row in run.rows] == [False, False, True, True]
    assert "2 ranks, gloo" in run.environment["engines"]["nanochat, 2 ranks"]
    assert run.settings["tensor_parallel_size"] == [1, 2] and not run.partial
    assert [len(each.rows) for each in kept] == [1, 2, 3, 4]
    assert all(each.partial and each.id == run.id for each in kept)
    assert {each.engine for each in told} == {"nanochat, 1 rank", "nanochat, 2 ranks"}


def test_a_run_that_is_stopped_stays_partial_and_no_further_one_begins(plan, monkeypatch) -> None:
    begun = []

    def stopped(plan: Plan, hooks: Hooks):
        begun.append((plan.tensor_parallel_size, plan.against))
        row = a_row("tg4", 50, 100, work=(1e9, 1e6))
        peer = replace(row, engine="vllm")
        rows = (row, peer) if plan.against else (row,)
        return a_run(*rows, partial=plan.tensor_parallel_size == 2)

    monkeypatch.setattr(scaling, "run_benchmark", stopped)
    monkeypatch.setattr(scaling, "check_plan", lambda plan: None)
    run = run_over(replace(plan, against=("vllm",)), (1, 2, 4), Hooks())
    assert begun == [(1, ("vllm",)), (2, ())]
    assert [row.engine for row in run.rows] == ["nanochat, 1 rank", "vllm", "nanochat, 2 ranks"]
    assert run.partial


def test_ceilings_that_differ_are_told_for_each_number(plan, monkeypatch) -> None:
    reads = {1: 60e9, 2: 60e9, 4: 90e9}

    def measured(plan: Plan, hooks: Hooks):
        gpus = {"device": "a GPU", "nanochat": "0.1.0", "capability": "9.0"}
        found = {"read": reads[plan.tensor_parallel_size], "matrix": 2e12, "disturbed": []}
        return a_run(a_row("tg4", 50, 100, work=(1e9, 1e6)), environment=gpus, ceilings=found)

    monkeypatch.setattr(scaling, "run_benchmark", measured)
    monkeypatch.setattr(scaling, "check_plan", lambda plan: None)
    lines = header(run_over(plan, (1, 2, 4), Hooks()))
    assert [line for line in lines if line.startswith("ceilings")] == [
        "ceilings of each device: reads 60 GB/s, multiplies 2.00 TFLOP/s",
        "ceilings of nanochat, 4 ranks: reads 90 GB/s, multiplies 2.00 TFLOP/s",
    ]
    assert any(line.startswith("ceilings: reads 60 GB/s") for line in header(run_over(plan, (1,), Hooks())))


def test_a_number_that_cannot_be_had_is_refused_before_anything_is_measured(plan, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "run_benchmark", None)
    with pytest.raises(UsageError, match="7 devices"):
        run_over(plan, (1, 7), Hooks())


@pytest.mark.parametrize("text", ["0", "1,,2", "two", "1,-2", ""])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    result = CliRunner().invoke(bench, ["--random", "tiny", "--tp", text])
    assert result.exit_code == 2 and "1,2,4" in result.output

"""A run in a process of its own: what it tells, how it is stopped, and how it ends when it goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from nanochat.bench import Plan, Progress, Sizes
from nanochat.benchmarks.child import BenchProcess, Doing, Ended, Event, Grown, plan_as_dict, plan_from_dict
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.benchmarks.storage import Results
from nanochat.benchmarks.time_left import TimeLeft
from nanochat.environment import own_module
from nanochat.errors import NanochatError
from nanochat.kernels import pick

pytestmark = pytest.mark.usefixtures("known_ceilings")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    sizes = Sizes(prompts=(16,), output=4, depths=(0,))
    shape = write_shape("tiny", tmp_path)
    return Plan(model=shape, model_name="tiny", drawn=True, sizes=sizes, repeats=2, device="cpu")


async def everything(process: BenchProcess) -> list[Event]:
    return [event async for event in process.events()]


def test_a_plan_survives_the_way_to_the_process(plan: Plan) -> None:
    full = replace(plan, against=("transformers",), gguf=Path("/models/x.gguf"), names=("quick", "s"))
    assert plan_from_dict(plan_as_dict(full)) == full and plan_from_dict(plan_as_dict(plan)) == plan


async def test_rows_come_as_they_are_measured_and_the_run_is_kept(plan: Plan, nanochat_home: Path) -> None:
    events = await everything(BenchProcess(plan))
    grown = [event.run for event in events if isinstance(event, Grown)]
    assert [len(run.rows) for run in grown] == [1, 2] and all(run.partial for run in grown)
    (ended,) = (event.run for event in events if isinstance(event, Ended))
    assert events[-1] == Ended(ended) and not ended.partial and ended.rows == grown[-1].rows
    assert ended.environment["kernels"] == pick(torch.device("cpu")).describe(torch.bfloat16)
    assert any(isinstance(event, Doing) and "loading" in event.what for event in events)
    told = [event for event in events if isinstance(event, Progress)]
    assert told[0].repeat == 0 and told[-1].case == told[-1].cases == 2
    assert Results.find().load(ended.id) == ended


async def test_a_run_that_cannot_be_kept_is_told_whole_before_it_is_said(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").write_text("a file")
    events = list[Event]()
    with pytest.raises(NanochatError, match="could not be kept"):
        async for event in BenchProcess(plan).events():
            events.append(event)
    assert isinstance(events[-1], Ended) and len(events[-1].run.rows) == 2


def test_another_nanochat_in_the_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    command, environment = own_module("nanochat.settings")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


async def test_a_stopped_run_ends_at_once_and_is_partial(plan: Plan) -> None:
    process = BenchProcess(replace(plan, repeats=100_000))
    run = None
    async for event in process.events():
        if isinstance(event, Progress) and event.repeat == 2 and run is None:
            await asyncio.wait_for(process.stop(), 5)
        if isinstance(event, Ended):
            run = event.run
    assert run is not None and run.partial and run.rows[0].samples and run.rows[0].partial


async def test_a_process_that_does_not_stop_is_ended(plan: Plan) -> None:
    deaf = 'import time, sys; sys.stdin.readline(); print(\'{"event": "doing", "value": "deaf"}\', flush=True); time.sleep(600)'
    process = BenchProcess(plan, (sys.executable, "-c", deaf))
    async for event in process.events():
        assert event == Doing("deaf")
        await asyncio.wait_for(process.stop(), 10)


async def test_a_refusal_is_the_error_that_the_command_would_give(plan: Plan) -> None:
    with pytest.raises(NanochatError, match="not installed"):
        await everything(BenchProcess(replace(plan, against=("vllm",))))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        (
            "import sys; print('Traceback', file=sys.stderr); sys.exit('the driver is gone')",
            "the driver is gone",
        ),
    ],
)
async def test_a_process_that_dies_is_explained(plan: Plan, code: str, said: str) -> None:
    with pytest.raises(NanochatError, match=said):
        await everything(BenchProcess(plan, (sys.executable, "-c", code)))


async def test_the_process_ends_when_nobody_reads_any_more(plan: Plan) -> None:
    process = BenchProcess(replace(plan, repeats=100_000))
    async with contextlib.aclosing(process.events()) as events:
        async for event in events:
            if isinstance(event, Progress):
                break  # the reader goes away
    inner = process._process
    assert inner is not None and inner.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(inner.pid, 0)


def test_the_time_left_follows_from_what_the_cases_before_took() -> None:
    left = TimeLeft((1.0, 2.0, 3.0), passes=4)
    assert left.after(None) is None and left.after(5.0) is None  # nothing is known of the other cases yet
    left.ended(40.0)  # ten times its floor of 4 x 1
    assert left.after(5.0) == pytest.approx(5.0 + 10 * 4 * 3.0)
    left.ended(80.0)
    assert left.after(7.0) == pytest.approx(7.0)


def test_the_process_ends_when_whoever_started_it_is_gone(plan: Plan, tmp_path: Path) -> None:
    """The starter is killed: its end of the pipe closes, and the run stops by itself."""
    code = (
        "import asyncio, json, os, signal, sys\n"
        "from nanochat.benchmarks.child import BenchProcess, plan_from_dict\n"
        "from nanochat.bench import Progress\n"
        "async def main():\n"
        "    process = BenchProcess(plan_from_dict(json.loads(sys.argv[1])))\n"
        "    async for event in process.events():\n"
        "        if isinstance(event, Progress):\n"
        "            print(process._process.pid, flush=True)\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    argument = json.dumps(plan_as_dict(replace(plan, repeats=100_000)))
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, timeout=60)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(15)

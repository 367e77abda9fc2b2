"""The benchmark's screen: a run borrows the device and gives it back, rows come as they are measured, runs are compared."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import bench_runs as runs
from stage import Stage, on_stage
from textual.widgets import OptionList, Static

from nanochat.benchmarks.child import Doing, Ended
from nanochat.benchmarks.storage import Results
from nanochat.errors import NanochatError
from nanochat.settings import Settings
from nanochat.ui.screens.bench import BenchScreen
from nanochat.ui.widgets.chart_view import ChartView
from nanochat.ui.widgets.result_table import ResultTable
from nanochat.ui.widgets.view_strip import ViewStrip


@asynccontextmanager
async def at_the_bench(
    home: Path, *kept: runs.Run, **given: object
) -> AsyncIterator[tuple[Stage, runs.DrivenProcess]]:
    """The screen open, and a run in the test's hands."""
    for run in kept:
        Results(home / "data" / "bench").save(run)
    async with on_stage(home, **given) as stage:  # type: ignore[arg-type]
        process = runs.DrivenProcess()
        stage.app.benchmark.open = process.open
        await stage.press("f4")
        await stage.until(lambda: isinstance(stage.app.screen, BenchScreen), "the screen opened")
        models = stage.app.screen.query_one("#bench-models", OptionList)
        await stage.until(
            lambda: models.option_count > 2 and models.highlighted is not None, "the models were read"
        )
        yield stage, process


async def started(stage: Stage, process: runs.DrivenProcess) -> None:
    await stage.press("enter")
    await stage.until(
        lambda: process.plan is not None and stage.app.host.state == "no model", "the run began"
    )


def words(stage: Stage, name: str) -> str:
    return str(stage.app.screen.query_one(name, Static).content)


async def test_it_opens_by_its_command_too(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.type("/bench")
        await stage.press("escape", "enter")
        await stage.until(lambda: stage.screen == "BenchScreen")
        assert any(
            command.title == "Benchmark" for command in stage.app.get_system_commands(stage.app.screen)
        )


async def test_a_run_begins_with_what_is_chosen(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        await stage.press("down", "plus", "plus", "t", "tab", "down", "down")
        await started(stage, process)
        plan = process.plan
        assert plan is not None and plan.names == ("throughput",) and plan.repeats == 7
        assert plan.model_name == "qwen3-0.6b" and plan.drawn and plan.against == ("transformers",)
        assert (plan.model / "config.json").exists()


async def test_a_run_is_set_up_as_the_chats_are(tmp_path: Path) -> None:
    settings = Settings(dtype="float32", device="cpu", tensor_parallel_size=2)
    async with at_the_bench(tmp_path, settings=settings) as (stage, process):
        await started(stage, process)
        plan = process.plan
        assert plan is not None and (plan.dtype, plan.device, plan.tensor_parallel_size) == (
            "float32",
            "cpu",
            2,
        )


async def test_the_chats_wait_for_a_run_and_go_on_after_it(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        app, engine = stage.app, stage.engine
        await started(stage, process)
        assert engine.closed and len(engine.loads) == 1  # the memory was given back
        app.spawn(app.chats.active.send("Hello?"))  # as another part of the application might
        await stage.until(lambda: app.chats.active.reply is not None)
        await stage.pilot.pause(0.1)
        assert not engine.requests and len(engine.loads) == 1
        process.tell(Ended(runs.quick()), None)
        await stage.until(lambda: not app.benchmark.running and not app.chats.busy, "the chat went on")
        assert len(engine.loads) == 2 and engine.requests
        assert stage.texts()[-1] == "Hello there."


async def test_a_run_does_not_begin_while_a_reply_is_written(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        stage.engine.manual = True
        await stage.send("Hello?")
        process = runs.DrivenProcess()
        stage.app.benchmark.open = process.open
        await stage.press("f4")
        await stage.until(lambda: stage.screen == "BenchScreen")
        models = stage.app.screen.query_one("#bench-models", OptionList)
        await stage.until(lambda: models.option_count > 2)
        await stage.press("enter")
        await stage.until(lambda: "a reply is being written" in stage.notices)
        assert process.plan is None and not stage.app.benchmark.running
        stage.engine.finish(stage.engine.last)
        await stage.settle()


async def test_rows_and_rates_are_shown_as_they_come(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        screen = stage.app.screen
        await started(stage, process)
        process.tell(Doing("loading tiny"))
        await stage.until(lambda: "Loading tiny" in words(stage, "#bench-live"))
        process.tell(*runs.under_way())
        await stage.until(lambda: len(stage.app.benchmark.rates) == 8)
        said = words(stage, "#bench-live")
        assert "tg128" in said and "test 3 of 4" in said and "repeat 3 of 5" in said
        assert "97.30 tok/s now" in said and "about 68 s left" in said
        table = str(screen.query_one(ResultTable).render())
        assert "pp512" in table and "1,320 tok/s" in table and "65.0 %" in table and "tg128" not in table
        assert "PARTIAL" not in words(stage, "#bench-facts")


async def test_esc_stops_and_keeps_what_was_finished(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        await started(stage, process)
        process.tell(*runs.under_way())
        await stage.until(lambda: stage.app.benchmark.progress is not None)
        process.tell(Ended(runs.stopped()))
        await stage.press("escape")
        await stage.until(lambda: not stage.app.benchmark.running)
        assert process.stopped and stage.screen == "BenchScreen"
        assert "PARTIAL" in words(stage, "#bench-facts")
        assert "3*" in str(stage.app.screen.query_one(ResultTable).render())
        await stage.until(lambda: stage.app.host.state == "ready", "the model is loaded again")
        await stage.press("escape")
        await stage.until(lambda: stage.screen == "ChatScreen")


async def test_ctrl_c_stops_a_run(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        await started(stage, process)
        await stage.press("ctrl+c")
        await stage.until(lambda: process.stopped and not stage.app.benchmark.running)


async def test_quitting_ends_the_run_with_the_application(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        await started(stage, process)
        await stage.press("ctrl+q")
        await stage.until(lambda: not stage.app.benchmark.running)
        assert len(stage.engine.loads) == 1  # nothing is loaded again on the way out


async def test_the_mouse_chooses_starts_and_turns_to_another_view(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path, runs.chat()) as (stage, process):
        await stage.pilot.click("#bench-presets", offset=(3, 2))
        assert (
            stage.app.screen.query_one("#bench-presets", OptionList).highlighted == 2 and process.plan is None
        )
        await stage.pilot.click("#bench-head", offset=(45, 0))
        assert stage.app.focused is stage.app.screen.query_one("#bench-kept")
        await stage.press("1")
        await stage.pilot.click("#bench-start")
        await stage.until(lambda: process.plan is not None)
        assert process.plan is not None and process.plan.names == ("chat",)


async def test_why_a_run_could_not_be_is_said_and_the_chats_go_on(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        await started(stage, process)
        process.tell(NanochatError("the weights take 9 GiB and 1 GiB is free"))
        await stage.until(lambda: "9 GiB" in words(stage, "#bench-facts"))
        await stage.until(lambda: stage.app.host.state == "ready")


async def test_what_went_wrong_after_rows_were_measured_is_said_beside_them(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path) as (stage, process):
        await started(stage, process)
        process.tell(Ended(runs.quick()))
        process.tell(NanochatError("this run could not be kept"))
        await stage.until(lambda: "could not be kept" in stage.notices)
        assert stage.app.benchmark.run is not None


async def test_every_picture_of_a_run_is_drawn(tmp_path: Path) -> None:
    async with at_the_bench(tmp_path, runs.throughput()) as (stage, _):
        await stage.press("3", "enter")
        await stage.until(lambda: len(stage.app.screen.query(ChartView)) == 3)
        texts = [str(chart.render()) for chart in stage.app.screen.query(ChartView)]
        assert [text.split(" · ")[0] for text in texts] == [
            "Throughput against batch", "Throughput of each request", "Roofline",
        ]  # fmt: skip
        table = str(stage.app.screen.query_one(ResultTable).render())
        assert "out of memory" in table and "busy CPU" in words(stage, "#bench-facts")


async def test_a_narrow_table_of_several_engines_says_which_row_is_whose(tmp_path: Path) -> None:
    run = runs.quick()
    theirs = [replace(row, engine="transformers", details={"anew": (2710.0,)}) for row in run.rows]
    async with at_the_bench(tmp_path, replace(run, rows=(*run.rows, *theirs)), size=(80, 24)) as (stage, _):
        await stage.press("3", "enter")
        table = stage.app.screen.query_one(ResultTable)
        await stage.until(lambda: table.size.width > 0 and "pp2048" in str(table.render()))
        head, *rows = str(table.render()).splitlines()
        assert "engine" in head and "anew ms" in head
        assert sum("nanochat" in row for row in rows) == sum("transformers" in row for row in rows) == 4
        assert rows[-1].split()[-1] != "2,710" and "2,710" in rows[-1]


async def test_two_kept_runs_are_compared(tmp_path: Path) -> None:
    slower, faster = runs.quick(), runs.quick(1.1, name="20260105-120000-dddd")
    async with at_the_bench(tmp_path, slower, faster, runs.chat()) as (stage, _):
        await stage.press("3", "space", "down", "down", "space", "c")
        await stage.until(lambda: "Wilcoxon" in words(stage, "#bench-words"))
        said = words(stage, "#bench-words")
        assert said.index("10:15") < said.index("12:00")  # the older one is before
        assert said.count("▲ faster") == 4 and "+10.0 %" in said and "within noise:" in said
        await stage.press("escape")
        assert "Comparison" not in str(stage.app.screen.query_one(ViewStrip).render())
        await stage.press(
            "down", "down", "space", "c"
        )  # marks itself beside the later mark: one run twice is nothing
        assert stage.screen == "BenchScreen"


async def test_a_comparison_within_noise_says_so(tmp_path: Path) -> None:
    again = runs.quick(1.004, name="20260105-120000-dddd")
    async with at_the_bench(tmp_path, runs.quick(), runs.chat(), again) as (stage, _):
        await stage.press("3", "c")  # with the last one like it, not with the chat between them
        await stage.until(lambda: words(stage, "#bench-words").count("≈ within noise") == 4)


async def test_a_run_is_exported_in_every_form_and_replaces_no_file(tmp_path: Path) -> None:
    run = runs.quick()
    async with at_the_bench(tmp_path, run) as (stage, _):
        await stage.press("3", "enter")
        for place, kind in enumerate(("md", "json", "csv", "svg")):
            await stage.press("e")
            await stage.until(lambda: stage.screen == "Question")
            await stage.press(*["down"] * place, "enter")
            file = tmp_path / f"nanochat-bench-{run.id}.{kind}"
            await stage.until(file.exists)
        await stage.until(lambda: stage.screen == "BenchScreen")
        assert json.loads((tmp_path / f"nanochat-bench-{run.id}.json").read_text())["id"] == run.id
        await stage.press("e")
        await stage.until(lambda: stage.screen == "Question")
        await stage.press("enter")
        await stage.until(lambda: "there already" in stage.notices)


async def test_the_results_are_copied_as_llama_bench_writes_them(tmp_path: Path) -> None:
    copied: list[str] = []
    async with at_the_bench(tmp_path, runs.quick()) as (stage, _):
        stage.app.copy = lambda text, what: copied.append(text)  # type: ignore[method-assign]
        await stage.press("3", "enter", "y")
        assert (
            copied[0].startswith("| model | size | params | backend |") and "| pp512 | 1320.00" in copied[0]
        )


async def test_a_damaged_result_is_listed_as_that(tmp_path: Path) -> None:
    (tmp_path / "data" / "bench").mkdir(parents=True)
    (tmp_path / "data" / "bench" / "20260101-000000-aaaa.json").write_text("{")
    async with at_the_bench(tmp_path, runs.quick()) as (stage, _):
        await stage.press("3")
        kept = stage.app.screen.query_one("#bench-kept", OptionList)
        assert kept.option_count == 2
        assert "cannot be read" in str(kept.get_option_at_index(1).prompt)


async def test_names_from_outside_reach_the_screen_harmless(tmp_path: Path) -> None:
    model = {**runs.quick().model, "name": "evil\x1b]52;c;aGk=\x07/\u202emodel[/bold]"}
    async with at_the_bench(tmp_path, runs.quick(model=model)) as (stage, _):
        await stage.press("3", "enter")
        await stage.until(lambda: "evil" in words(stage, "#bench-facts"))
        assert "\x1b" not in words(stage, "#bench-facts") and "\u202e" not in words(stage, "#bench-facts")

"""A model over several devices, as the application is told and shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fake_engine import OTHER, FakeEngine
from stage import on_stage

from nanochat.engine.outputs import EngineStats
from nanochat.errors import UsageError
from nanochat.settings import Settings


class SplitEngine(FakeEngine):
    """Over two devices."""

    def stats(self) -> EngineStats:
        return replace(super().stats(), ranks=2, rank_bytes=(3 << 30, 2 << 30), link="gloo over loopback")


async def test_what_the_command_line_says_holds_for_every_load_and_stands_in_no_file(tmp_path: Path) -> None:
    settings = Settings(theme="dark", tensor_parallel_size=4)
    async with on_stage(tmp_path, settings=settings, tensor_parallel_size=2) as stage:
        await stage.until(lambda: stage.engine.loads)
        await stage.type("/idle 60")  # reads the settings again
        await stage.press("enter")
        await stage.until(lambda: stage.app.settings.idle_unload_minutes == 60)
        await stage.type(f"/model {OTHER.name}")
        await stage.press("enter")
        await stage.until(lambda: len(stage.engine.loads) == 2)
        assert [load.config.tensor_parallel_size for load in stage.engine.loads] == [2, 2]
        assert Settings.load(stage.app.paths.settings_file).tensor_parallel_size == 0


async def test_without_a_word_it_is_the_settings(tmp_path: Path) -> None:
    for setting, asked in ((4, 4), (0, None)):
        given = Settings(theme="dark", tensor_parallel_size=setting)
        async with on_stage(tmp_path, settings=given) as stage:
            await stage.until(lambda engine=stage.engine: engine.loads)
            assert stage.engine.loads[0].config.tensor_parallel_size == asked


async def test_the_bar_shows_over_how_many_devices_the_model_is(tmp_path: Path) -> None:
    async with on_stage(tmp_path, SplitEngine(), size=(80, 24)) as stage:
        await stage.until(lambda: "Tiny-Chat-1M ×2" in stage.status)


async def test_a_model_that_cannot_be_divided_says_so_by_name(tmp_path: Path) -> None:
    async with on_stage(tmp_path, FakeEngine(load_at_once=False), tensor_parallel_size=5) as stage:
        await stage.until(lambda: stage.engine.loads)
        stage.engine.finish_load(error=UsageError("4 attention heads cannot be split over 5 devices"))
        await stage.until(lambda: "cannot be split over 5 devices" in stage.notices)


async def test_an_engine_that_dies_while_nobody_asks_says_so_once_and_the_next_message_loads_again(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello")
        stage.engine._state = "dead"
        await stage.until(lambda: "the engine stopped" in stage.notices and "stopped" in stage.status)
        await stage.ask("again")
        await stage.until(lambda: "ready" in stage.status)
        assert len(stage.engine.loads) == 2 and stage.notices.count("the engine stopped") == 1

"""Words that go by themselves: they leave the screen to what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import FakeEngine
from stage import on_stage
from textual.widgets._toast import Toast

from nanochat.ui.widgets.prompt_bar import PromptBar


async def test_the_oldest_notice_gives_way_to_a_fourth(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(80, 24)) as stage:
        for number in range(5):
            stage.app.say(f"number {number}", severity="warning")
        await stage.until(lambda: len(stage.app.screen.query(Toast)) == 3, "three are shown")
        assert stage.notices == "number 2\nnumber 3\nnumber 4"


@pytest.mark.parametrize("lines", [1, 8])
async def test_notices_stand_above_what_waits_and_what_is_being_written(tmp_path: Path, lines: int) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine, size=(80, 24)) as stage:
        await stage.send("first")
        await stage.type("second")
        await stage.press("enter")
        await stage.type("a line\n" * (lines - 1) + "the last")
        stage.app.say("a word", severity="warning")
        await stage.until(lambda: stage.app.screen.query(Toast), "it is shown")
        bar = stage.app.chat_screen.query_one(PromptBar)
        await stage.until(lambda: stage.app.screen.query_one(Toast).region.bottom == bar.region.y)
        await stage.pilot.resize_terminal(80, 12)
        await stage.until(lambda: 0 < stage.app.screen.query_one(Toast).region.bottom <= max(6, bar.region.y))
        await stage.press("escape")
        await stage.settle()

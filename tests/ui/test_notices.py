"""Words that go by themselves: they leave the screen to what it is for."""

from __future__ import annotations

from pathlib import Path

from stage import on_stage
from textual.widgets._toast import Toast


async def test_the_oldest_notice_gives_way_to_a_fourth(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(80, 24)) as stage:
        for number in range(5):
            stage.app.say(f"number {number}", severity="warning")
        await stage.until(lambda: len(stage.app.screen.query(Toast)) == 3, "three are shown")
        assert stage.notices == "number 2\nnumber 3\nnumber 4"

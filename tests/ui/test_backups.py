"""Copies of the history that are made beside the chats."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from stage import on_stage

from nanochat.errors import HistoryFull
from nanochat.history import History
from nanochat.storage.faults import newest_backup
from nanochat.ui import backups
from nanochat.ui.backups import Backups


class Copied:
    """A history whose copies are counted."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.asked: list[Path | None] = []

    def backup_if_due(self) -> Path | None:
        self.asked.append(self._history.backup_if_due())
        return self.asked[-1]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [1000.0]
    monkeypatch.setattr(backups, "monotonic", lambda: seconds[0])
    return seconds


async def test_a_copy_is_made_when_nobody_waits_for_a_reply_and_the_next_a_week_later(
    now: list[float], tmp_path: Path
) -> None:
    days = [0.0]
    with History.open(tmp_path, clock=lambda: time.time() + 86_400 * days[0]) as history:
        copied = Copied(history)
        kept = Backups(copied)  # type: ignore[arg-type]
        await kept.look(busy=False)
        assert not copied.asked, "the first minute is the user's"
        now[0] += backups.FIRST_SECONDS
        await kept.look(busy=True)
        assert not copied.asked, "a reply is on its way"
        await kept.look(busy=False)
        first = newest_backup(tmp_path / "chats.db")
        assert copied.asked == [first] and first is not None
        await kept.look(busy=False)
        assert len(copied.asked) == 1, "it is asked once an hour"
        for passed, made in ((6.9, False), (7.1, True)):
            days[0] = passed
            now[0] += backups.NEXT_SECONDS
            await kept.look(busy=False)
            assert (copied.asked[-1] is not None) == made, passed


async def test_a_full_disk_is_noted_and_disturbs_nobody(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def backup_if_due(self) -> None:
            raise HistoryFull("the disk is full")

    kept = Backups(Full())  # type: ignore[arg-type]
    now[0] += backups.FIRST_SECONDS
    with caplog.at_level(logging.WARNING, "nanochat.desk"):
        await kept.look(busy=False)
    assert "the disk is full" in caplog.text


async def test_the_application_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "FIRST_SECONDS", 0.0)
    async with on_stage(tmp_path) as stage:
        await stage.ask("hello you")
        await stage.until(lambda: newest_backup(stage.app.paths.data / "chats" / "chats.db"))

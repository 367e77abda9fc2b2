"""The list of chats: its days, and where its cursor stands."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from stage import Stage, on_stage

from nanochat.ui.widgets.sidebar import ChatList

TITLES = ("oldest", "middle", "newest")


def rows(stage: Stage) -> list[str]:
    return [str(option.prompt) for option in stage.app.chat_screen.query_one(ChatList).options]


def cursor(stage: Stage) -> str:
    """What the highlighted row says."""
    chats = stage.app.chat_screen.query_one(ChatList)
    return "" if chats.highlighted is None else str(chats.get_option_at_index(chats.highlighted).prompt)


async def three_chats(stage: Stage) -> None:
    """In a tab each; the oldest is open."""
    for title in TITLES:
        await stage.ask(title)
        await stage.press("ctrl+t")
    await stage.press("alt+1")
    await stage.until(lambda: stage.texts()[:1] == ["oldest"])


async def test_at_midnight_today_becomes_yesterday(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("late in the evening")
        await stage.press("f2")
        await stage.until(lambda: rows(stage)[:1] == ["Today"])
        stage.app.desk.sidebar.today = lambda: date.today() + timedelta(days=1)
        await stage.until(lambda: rows(stage)[:1] == ["Yesterday"])


async def test_a_chat_is_in_the_list_as_soon_as_its_first_message_is_sent(tmp_path: Path) -> None:
    engine = FakeEngine(manual=True)
    async with on_stage(tmp_path, engine) as stage:
        await stage.press("f2")
        await stage.until(lambda: "No chats yet" in rows(stage)[0])
        await stage.press("escape")
        await stage.send("the first message")
        await stage.until(lambda: rows(stage)[1:] == ["› the first message"], "it is in the list")
        assert stage.app.chats.busy
        engine.finish(engine.last)
        await stage.settle()


async def test_its_cursor_begins_at_the_open_chat_and_stays_where_the_user_put_it(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await three_chats(stage)
        await stage.press("f2")
        await stage.until(lambda: cursor(stage) == "› oldest")
        await stage.press("up")
        assert cursor(stage) == "middle"
        stage.app.desk.sidebar.refresh()
        await stage.app.desk.sidebar.open_found()  # the open chat changes, and with it the cursor's place
        await stage.until(lambda: stage.texts()[:1] == ["middle"])
        await stage.until(lambda: cursor(stage) == "› middle")


async def test_opened_again_its_cursor_begins_at_the_chat_that_is_open_now(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(80, 24)) as stage:
        await three_chats(stage)
        await stage.press("f2")
        await stage.until(lambda: cursor(stage) == "› oldest")
        await stage.press("f2", "ctrl+t", "f2")  # a chat that is not in the list yet
        await stage.until(lambda: cursor(stage) == "newest")


async def test_after_a_delete_its_cursor_is_at_the_next_chat(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await three_chats(stage)
        await stage.press("f2")
        await stage.until(lambda: cursor(stage) == "› oldest")
        await stage.press("up", "d")
        await stage.until(lambda: len(rows(stage)) == 3 and cursor(stage) == "› oldest")
        await stage.press("up", "d")
        await stage.until(lambda: rows(stage) == ["Today", "› oldest"] and cursor(stage) == "› oldest")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_after_a_delete_of_the_open_chat_its_cursor_is_at_the_next_row_not_at_the_chat_that_is_open_now(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with on_stage(tmp_path, size=size) as stage:
        await three_chats(stage)
        await stage.press("alt+2", "f2")
        await stage.until(lambda: cursor(stage) == "› middle")
        await stage.press("d")
        await stage.until(lambda: rows(stage) == ["Today", "› newest", "oldest"])
        assert cursor(stage) == "oldest"
        await stage.until(lambda: isinstance(stage.app.focused, ChatList))
        await stage.press("d")
        await stage.until(lambda: rows(stage) == ["Today", "› newest"])
        assert cursor(stage) == "› newest"


async def test_in_a_search_a_delete_passes_over_all_rows_of_its_chat(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        for title in ("marmalade", "marmalade too"):
            await stage.ask(title)
            await stage.press("ctrl+t")
        await stage.press("ctrl+f")
        await stage.until(lambda: stage.app.focused and stage.app.focused.id == "sidebar-search")
        await stage.type("marmal")
        await stage.until(
            lambda: rows(stage) == ["marmalade too", "  marmalade too", "marmalade", "  marmalade"]
        )
        await stage.press("down")
        assert cursor(stage) == "marmalade too"
        stage.app.chat_screen.sides.list.pass_over(stage.app.history.chats.list()[0].id)
        assert cursor(stage) == "marmalade"


async def test_among_many_chats_the_open_one_is_in_view(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(80, 24)) as stage:
        await stage.ask("the first of many")
        for number in range(40):
            stage.app.history.chats.create(title=f"chat {number}")
        await stage.press("f2")
        await stage.until(lambda: cursor(stage) == "› the first of many")
        chats = stage.app.chat_screen.query_one(ChatList)
        await stage.until(
            lambda: (
                chats.scroll_offset.y <= (chats.highlighted or 0) < chats.scroll_offset.y + chats.size.height
            )
        )
        assert chats.scroll_offset.y > 0

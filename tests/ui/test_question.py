"""Questions on screens that are too low for them: every answer can be reached, every word read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stage import Stage, on_stage
from textual.widgets import Input, OptionList

from nanochat.ui import overflow_flow
from nanochat.ui.exporting import export_chat
from nanochat.ui.overflow import Overflow
from nanochat.ui.screens.question import Answer, Question, TextQuestion

ANSWERS = [Answer(str(number), f"Answer {number}", f"What answer {number} does. " * 3) for number in range(8)]
LONG = " ".join(f"word{number}" for number in range(150))


def visible(stage: Stage) -> str:
    """What the question's box shows, row by row."""
    box = stage.app.screen.query_one(".dialog").content_region
    strips = stage.app.screen._compositor.render_strips()[max(box.y, 0) : box.bottom]
    scrollbar = re.compile("[▁-█]")
    return "\n".join(scrollbar.sub("", strip.crop(box.x, box.right).text).strip() for strip in strips)


async def ask(stage: Stage, question: Question) -> None:
    stage.app.attempt(stage.app.ask(question))
    await stage.until(lambda: stage.app.screen is question and "Enter take" in visible(stage))


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (40, 12)])
@pytest.mark.parametrize("text", ["Which?", LONG], ids=["short", "long"])
async def test_every_answer_is_reached_and_read(tmp_path: Path, size: tuple[int, int], text: str) -> None:
    async with on_stage(tmp_path, size=size) as stage:
        await ask(stage, Question("A question", text, ANSWERS))
        for number in range(len(ANSWERS)):
            await stage.until(lambda number=number: f"Answer {number}" in visible(stage))
            rows = visible(stage)
            assert f"Answer {number}" in rows
            assert " ".join(rows.split()).count(f"What answer {number} does.") == 3
            assert "A question" in rows
            assert "Enter take" in rows
            await stage.press("down")


async def test_a_long_text_is_read_with_the_page_keys(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(60, 20)) as stage:
        await ask(stage, Question("A question", LONG, ANSWERS))
        await stage.until(lambda: "PgUp PgDn read" in visible(stage))
        seen = set(visible(stage).split())
        while "word149" not in seen:
            before = visible(stage)
            await stage.press("pagedown")
            assert visible(stage) != before, "it does not scroll on"
            seen |= set(visible(stage).split())
        assert {f"word{number}" for number in range(150)} <= seen


async def test_without_a_long_text_the_page_keys_are_the_answers(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(60, 20)) as stage:
        await ask(stage, Question("A question", "Which?", ANSWERS))
        assert "PgDn" not in visible(stage)
        await stage.press("end")
        await stage.until(lambda: "Answer 7" in visible(stage) and "Answer 3" not in visible(stage))
        await stage.press("pageup")
        await stage.until(lambda: "Answer 3" in visible(stage), "a page up")
        assert stage.app.screen.query_one(OptionList).highlighted != len(ANSWERS) - 1


async def test_a_page_key_while_a_question_opens_does_nothing(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(60, 20)) as stage:
        question = Question("A question", LONG, ANSWERS)
        shown = stage.app.push_screen(question)
        assert stage.app.screen is question and not question.query("*"), "it is on top, but not composed"
        await stage.app._check_bindings("pagedown", priority=True)
        await shown
        await stage.until(lambda: "PgUp PgDn read" in visible(stage), "it opened")


async def test_a_notice_beside_a_question_is_there_once(tmp_path: Path) -> None:
    async with on_stage(tmp_path, size=(80, 24)) as stage:
        stage.app.say("A word to the user.")
        await stage.until(lambda: stage.app.screen.query("Toast"), "it is shown")
        question = Question("A question", "Which?", ANSWERS[:2])
        await ask(stage, question)
        await stage.until(lambda: question.query("Toast"), "it is shown over the question too")
        assert not any(toast.display for toast in stage.app.chat_screen.query("Toast"))
        await stage.press("escape")
        await stage.until(
            lambda: all(toast.display for toast in stage.app.screen.query("Toast")), "it is back"
        )


async def test_on_sixty_columns_all_four_answers_to_a_chat_that_is_too_long_are_in_view(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path, size=(60, 20)) as stage:
        session = stage.app.chats.active
        stage.app.attempt(overflow_flow.ask(stage.app, session, Overflow(133_210, 130_816, 131_072)))
        await stage.until(lambda: stage.screen == "Question" and "Enter take" in visible(stage))
        rows = visible(stage)
        for words in (
            "133,210 tokens",
            "without your",
            "Drop the oldest",
            "summary",
            "longer context",
            "made shorter.",
        ):
            assert words in rows


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
@pytest.mark.parametrize(
    ("command", "wrong", "why", "right", "said"),
    [
        ("/export", "here.md", "is there already: give another name", "there.md", "Written to"),
        ("/export", "no-folder/chat.md", "cannot be written: there is no folder", "there.md", "Written to"),
        ("/import", "nowhere.json", "cannot be read", "here.md", "Imported 1 chat"),
    ],
)
async def test_a_name_that_was_not_taken_stays_with_the_reason_below_it(
    tmp_path: Path, size: tuple[int, int], command: str, wrong: str, why: str, right: str, said: str
) -> None:
    async with on_stage(tmp_path, size=size) as stage:
        await stage.ask("hello you")
        assert stage.app.chats.active.chat is not None
        export_chat(stage.app.history, stage.app.chats.active.chat.id, "here.md", tmp_path)
        await stage.type(command)
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, TextQuestion))
        first = stage.app.screen
        first.query_one(Input).value = wrong
        await stage.press("enter")
        await stage.until(
            lambda: stage.app.screen is not first and isinstance(stage.app.screen, TextQuestion)
        )
        await stage.until(lambda: why in " ".join(visible(stage).split()))
        assert stage.app.screen.query_one(Input).value == wrong and "Enter take" in visible(stage)
        stage.app.screen.query_one(Input).value = right
        await stage.press("enter")
        await stage.until(lambda: said in stage.notices)
        assert not isinstance(stage.app.screen, TextQuestion)

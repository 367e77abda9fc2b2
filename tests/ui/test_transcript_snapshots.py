"""What the transcript looks like: one picture a size and theme."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from textual.pilot import Pilot
from textual.widgets import Input
from transcript_demo import TranscriptDemo, sample

Compare = Callable[..., bool]


async def settle(pilot: Pilot[None]) -> None:
    """The cursor does not blink, the code has its colours."""
    pilot.app.query_one(Input).cursor_blink = False
    for _ in range(5):
        await pilot.pause(0.05)


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40), (200, 60)], ids=str)
@pytest.mark.parametrize("theme", ["nanochat-dark", "nanochat-light"])
def test_a_chat(snap_compare: Compare, size: tuple[int, int], theme: str) -> None:
    assert snap_compare(TranscriptDemo(sample(), theme=theme), terminal_size=size, run_before=settle)


def test_a_chat_without_colour(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(TranscriptDemo(sample()), terminal_size=(80, 40), run_before=settle)


def test_the_start_of_a_chat_with_its_reasoning_open_and_code_selected(snap_compare: Compare) -> None:
    async def unfold(pilot: Pilot[None]) -> None:
        await settle(pilot)
        app = pilot.app
        assert isinstance(app, TranscriptDemo)
        app.transcript.toggle_reasoning()
        for _ in range(8):
            app.transcript.move_cursor(-1)
            await pilot.pause()

    assert snap_compare(TranscriptDemo(sample()), terminal_size=(100, 50), run_before=unfold)


def test_new_lines_while_scrolled_away(snap_compare: Compare) -> None:
    async def scroll(pilot: Pilot[None]) -> None:
        await settle(pilot)
        app = pilot.app
        assert isinstance(app, TranscriptDemo)
        app.transcript.scroll_to(y=12)
        await pilot.pause()
        app.chat.write("a2", "\n\n" + "- more\n" * 12)
        await settle(pilot)

    assert snap_compare(TranscriptDemo(sample()), terminal_size=(80, 24), run_before=scroll)

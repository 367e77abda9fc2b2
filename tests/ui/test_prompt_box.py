"""The prompt, key by key."""

from __future__ import annotations

import threading
from pathlib import Path
from time import monotonic

import pytest
from busy import BUSY
from stage import until
from textual import events
from textual.app import App, ComposeResult

from nanochat.ui.attachments import attach, mention
from nanochat.ui.draft import Draft
from nanochat.ui.input_history import InputHistory
from nanochat.ui.widgets import prompt_bar
from nanochat.ui.widgets.completions import Completion, Completions
from nanochat.ui.widgets.prompt_bar import PromptBar
from nanochat.ui.widgets.prompt_box import PromptBox

COMMANDS = [
    Completion("/help", "words", "/help", 0, final=True), Completion("/set name", "set", "/set ", 0),
    Completion("/stop", "stop", "/stop", 0, final=True),
]  # fmt: skip


class Bench(App[None]):
    """A prompt and nothing else."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.inputs = InputHistory()
        self.sent: list[str] = []
        self.scrolled: list[int] = []

    def compose(self) -> ComposeResult:
        bar = PromptBar(self.inputs, self.commands, id="bar")
        bar.folder = self.folder
        yield bar

    def commands(self, start: str) -> list[Completion]:
        return [
            Completion(each.shown, each.about, each.text, len(start) + 1, each.final)
            for each in COMMANDS
            if each.text[1:].startswith(start)
        ]

    def on_mount(self) -> None:
        self.box.send = self.send
        self.box.focus()

    @property
    def box(self) -> PromptBox:
        return self.query_one(PromptBox)

    def send(self, draft: Draft) -> None:
        self.sent.append(draft.full)
        self.inputs.add(draft.full)

    def on_prompt_box_scroll_requested(self, event: PromptBox.ScrollRequested) -> None:
        self.scrolled.append(event.pages)


async def test_enter_sends_and_ctrl_j_begins_a_line(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("a", "ctrl+j", "b", "alt+enter", "c", "enter")
        await until(pilot, lambda: app.sent == ["a\nb\nc"])
        await pilot.press("enter", "space", "enter")
        await pilot.pause()
        assert app.sent == ["a\nb\nc"]


async def test_up_goes_through_what_was_sent_and_down_comes_back_to_the_draft(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        for text in "xy":
            await pilot.press(text, "enter")
        await pilot.press("d", "up", "up")
        assert app.box.text == "x"
        await pilot.press("down", "down")
        assert app.box.text == "d"


async def test_up_in_a_text_of_several_lines_moves_the_cursor_first(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("x", "enter", "a", "ctrl+j", "b", "up")
        assert (app.box.text, app.box.cursor_location[0]) == ("a\nb", 0)
        await pilot.press("up")
        assert app.box.text == "x"


async def test_a_label_is_one_thing_for_backspace_delete_and_typing(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        app.post_message(events.Paste("line\n" * 50))
        await until(pilot, lambda: app.box.text)
        label = app.box.text
        await pilot.press("left", "left", "z")
        assert app.box.text == label + "z"
        await pilot.press("backspace", "backspace")
        assert app.box.text == ""
        await pilot.press("ctrl+underscore", "ctrl+underscore")
        await until(pilot, lambda: label in app.box.text)
        assert app.box.draft.full.startswith("line\n" * 50)


async def test_the_keys_that_delete_a_line_delete_the_last_one_too(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("ctrl+k", "a", "ctrl+j", "ctrl+k")
        assert app.box.text == "a\n"
        await pilot.press("b", "ctrl+shift+k")
        assert app.box.text == "a\n"


async def test_a_paste_with_escape_sequences_is_not_shown_but_sent_as_it_is(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        app.post_message(events.Paste("\x1b[2J[/markup]\x07 \u202e"))
        await until(pilot, lambda: app.box.text)
        assert app.box.text.startswith("[pasted 1 line ·")
        await pilot.press("enter")
        await until(pilot, lambda: app.sent == ["\x1b[2J[/markup]\x07 \u202e"])


async def test_ten_thousand_tokens_are_pasted_within_the_limit(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    text = "".join(f"{number} some words in a line of a log file\n" for number in range(1000))
    async with app.run_test() as pilot:
        started = monotonic()
        app.post_message(events.Paste(text))
        await until(pilot, lambda: app.box.text)
        assert monotonic() - started < BUSY * 0.3
        assert app.box.draft.full == text


async def test_a_file_dropped_on_the_prompt_becomes_a_mention(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("x")
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        app.box.folder = tmp_path
        app.post_message(events.Paste(str(tmp_path / "a b.txt")))
        await until(pilot, lambda: app.box.text == '@"a b.txt" ')


async def test_slash_opens_the_commands_and_enter_on_a_whole_one_sends_it(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("slash")
        completions = app.query_one(Completions)
        await until(pilot, lambda: completions.is_open)
        await pilot.press("down")
        assert completions.chosen is not None
        assert completions.chosen.shown == "/set name"
        await pilot.press("tab")
        assert (app.box.text, completions.is_open) == ("/set ", False)
        await pilot.press("ctrl+u", "slash", "h", "enter")
        await until(pilot, lambda: app.sent == ["/help"])


async def test_enter_takes_no_suggestion_for_less_than_what_was_typed(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("/", "s")
        await until(pilot, lambda: app.query_one(Completions).is_open)
        app.box.insert("et temperature 0")  # no message has told the list
        app.box.action_send()
        await until(pilot, lambda: app.sent == ["/set temperature 0"])


async def test_at_suggests_files_and_tab_takes_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("s", "e", "e", "space", "at", "n")
        await until(pilot, lambda: app.query_one(Completions).is_open)
        await pilot.press("tab")
        assert app.box.text == "see @notes.txt "


async def test_a_suggested_file_with_spaces_in_its_name_is_the_one_that_is_sent(tmp_path: Path) -> None:
    (tmp_path / "my folder").mkdir()
    (tmp_path / "my folder" / "my notes.txt").write_text("found")
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        for keys, text in (
            (("at", "m", "tab"), '@"my folder/'),
            (("m", "tab"), '@"my folder/my notes.txt" '),
        ):
            await pilot.press(*keys[:-1])
            await until(pilot, lambda: app.query_one(Completions).is_open)
            await pilot.press(keys[-1])
            assert app.box.text == text
        await until(pilot, lambda: not app.query_one(Completions).is_open)
        assert attach(app.box.text, tmp_path)[1][0].text == "found"


@pytest.mark.parametrize("name", ["a.txt", "my notes.txt", 'the "last".txt', "it's mine.txt", "a\u00a0b.txt"])
def test_a_file_is_found_by_its_mention(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    _, files = attach(f"see {mention(tmp_path / name, tmp_path)}, please", tmp_path)
    assert [(file.name, file.size) for file in files] == [(name, "empty")]


@pytest.mark.parametrize(("key", "pages"), [("pageup", -1), ("pagedown", 1), ("end", 0)])
async def test_the_chat_is_scrolled_from_the_prompt(tmp_path: Path, key: str, pages: int) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press(key)
        await until(pilot, lambda: app.scrolled == [pages])


async def test_keys_that_waited_are_taken_in_their_order(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        for key in (
            "a",
            "b",
            "backspace",
            "c",
            "enter",
            "d",
            "home",
            "e",
            "enter",
        ):  # all at once, as after a pause
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: app.sent == ["ac", "ed"])


async def test_a_command_typed_in_one_go_is_sent_as_it_was_typed(tmp_path: Path) -> None:
    app = Bench(tmp_path)
    async with app.run_test() as pilot:
        await pilot.press("slash")
        await until(pilot, lambda: app.query_one(Completions).is_open)
        for key in ("s", "t", "o", "p", "enter"):  # the list still says /help, the first of all
            app.box.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: app.sent)
        assert app.sent == ["/stop"]
        await until(pilot, lambda: not app.query_one(Completions).is_open)


async def test_a_file_suggested_for_less_than_what_was_typed_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "setup.txt").touch()
    app, slow = Bench(tmp_path), threading.Event()
    async with app.run_test() as pilot:
        await pilot.press("at", "s")
        await until(pilot, lambda: app.query_one(Completions).is_open)
        listed = prompt_bar.suggest
        monkeypatch.setattr(prompt_bar, "suggest", lambda *of: (slow.wait(10), listed(*of))[1])
        for key in ("r", "tab"):
            app.box.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: app.box.text == "@sr")
        await pilot.pause()
        assert (app.box.text, app.focused) == ("@sr", app.box)
        slow.set()

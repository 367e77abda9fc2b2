"""The prompt with what belongs to it: what waits and suggestions above, hints and the token count in its frame."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message

from nanochat.sanitize import sanitize_line
from nanochat.ui import notices
from nanochat.ui.attachments import quote_for, suggest, unfound
from nanochat.ui.draft import Draft
from nanochat.ui.input_history import InputHistory
from nanochat.ui.widgets.completions import Completion, Completions
from nanochat.ui.widgets.prompt_box import PromptBox
from nanochat.ui.widgets.queued_messages import QueuedMessages

_MENTION = re.compile(
    r"""(?:^|(?<=\s))@(?P<quote>["']?)(?P<start>(?:(?<=["'])(?:(?!(?P=quote)).)*|[^\s"']*))$"""
)
_COMMAND = re.compile(r"/\S*")
_SHOWN = 200  # suggestions at most


class PromptBar(Vertical):
    """Owns the prompt box, and the list of suggestions that opens above it."""

    @dataclass
    class Changed(Message):
        """What stands in the box changed."""

        draft: Draft

    def __init__(
        self, history: InputHistory, commands: Callable[[str], list[Completion]], *, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self._history, self._commands = history, commands
        self.folder = Path.cwd()
        self.when_empty: Callable[[str], bool] = lambda _verb: False
        self._offered_for = self._title = ""
        self._unfound: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        """The lists above the box."""
        yield QueuedMessages(id="queued")
        yield Completions(id="completions")
        yield PromptBox(self._history, id="prompt")

    def on_mount(self) -> None:
        """Let the box ask the list first."""
        self.box.completing = self._completing
        self.box.folder = self.folder

    def on_resize(self) -> None:
        """Keep notices off."""
        notices.stand_above(self)

    @property
    def box(self) -> PromptBox:
        """Where the user writes."""
        return self.query_one(PromptBox)

    @property
    def queued(self) -> QueuedMessages:
        """What waits to be sent."""
        return self.query_one(QueuedMessages)

    def frame(self, *, title: str, figures: str, tone: str = "") -> None:
        """Write into the frame: what is being done above, the token count below."""
        self._title = title
        self._show_title()
        self.box.border_subtitle = Content.styled(figures, tone) if tone else Content(figures)

    def _show_title(self) -> None:
        said = " · ".join(filter(None, (*self._unfound, self._title)))
        self.box.border_title = Content(sanitize_line(said)) if said else ""

    @on(PromptBox.Typing)
    def _typing(self, event: PromptBox.Typing) -> None:
        event.stop()
        self.post_message(self.Changed(self.box.draft))
        self._suggest()
        if self._unfound or "@" in self.box.text:  # else there is nothing to look for
            self._look_for_files()

    @work(exclusive=True, group="mentions")
    async def _look_for_files(self) -> None:
        """Say in the frame which files are not there, before the message goes."""
        text, typed = self.box.text, _MENTION.search(self.box.before_cursor)
        found = await asyncio.to_thread(unfound, text, self.folder, typing=typed["start"] if typed else "")
        for box in self.query(PromptBox):  # none where the application has ended meanwhile
            if box.text == text and found != self._unfound:
                self._unfound = found
                self._show_title()

    def _suggest(self) -> None:
        """Offer what begins as the text before the cursor does now."""
        before, completions = self.box.before_cursor, self.query_one(Completions)
        if match := _MENTION.search(before):
            # Until they are found, the list is for a text that was.
            self._suggest_files(before, match["start"], match["quote"])
            return
        self._offered_for = before
        if _COMMAND.fullmatch(before):
            completions.offer(self._commands(before[1:])[:_SHOWN])
        else:
            completions.close()

    @work(exclusive=True, group="suggest")
    async def _suggest_files(self, before: str, start: str, quote: str) -> None:
        names = await asyncio.to_thread(suggest, start, self.folder)
        if before != self.box.before_cursor:
            return  # typed on meanwhile
        items = [Completion(name, "", _mentioned(name, quote), len(start)) for name in names]
        self._offered_for = before
        for completions in self.query(Completions):  # none where the application has ended meanwhile
            completions.offer(items)

    def _completing(self, verb: str) -> bool:
        """What the box asks before it acts: whether the list takes the key."""
        completions = self.query_one(Completions)
        if self._offered_for != self.box.before_cursor:  # keys came faster than the list
            completions.close()
            self._suggest()
        if not completions.is_open:
            looking = verb == "accept" and _MENTION.search(self.box.before_cursor) is not None
            return looking or (not self.box.text and self.when_empty(verb))
        if verb in ("up", "down"):
            completions.step(-1 if verb == "up" else 1)
            return True
        chosen = completions.chosen
        completions.close()
        if verb == "close" or chosen is None:
            return verb == "close"
        if verb == "enter" and self.box.text == chosen.text.rstrip():
            return False  # it was typed in full: Enter means Enter
        row, column = self.box.cursor_location
        self.box.replace(
            chosen.text, (row, column - chosen.replaces), (row, column), maintain_selection_offset=False
        )
        return not (verb == "enter" and chosen.final)


def _mentioned(name: str, quote: str) -> str:
    """What is to stand behind `@`, or behind `@` and a quotation mark: a folder is not closed, as it goes on."""
    opening = "" if quote else quote_for(name)
    return f"{opening}{name}" if name.endswith("/") else f"{opening}{name}{quote or opening} "

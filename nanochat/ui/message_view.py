"""One message as rows: what was asked, or a reply with its reasoning above and its figures below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from nanochat.ui.block_stack import BlockStack
from nanochat.ui.conversation import Status, TranscriptMessage
from nanochat.ui.inline import join
from nanochat.ui.markdown import MEASURE, MarkdownRenderer
from nanochat.ui.rows import BLANK, Row, Run
from nanochat.ui.wrapping import wrap

#: Rows of a user's message from which on it is folded, and how many then show.
LONG_MESSAGE, FOLDED_ROWS = 24, 12
WORDS: dict[Status, str] = {
    "queued": "queued",
    "waiting": "waiting",
    "prefilling": "reading",
    "streaming": "",
}
ENDINGS: frozenset[Status] = frozenset(("stopped", "interrupted", "failed"))


@dataclass(frozen=True, slots=True)
class Stop:
    """A place for the block cursor: `height` rows from `top` on. `key` names a fence within its message."""

    what: Literal["message", "code", "reasoning"]
    top: int
    height: int
    key: str = ""


@dataclass(slots=True)
class _Section:
    top: int
    height: int
    row: Callable[[int], Row]
    source: Callable[[int, int, int], str] | None = None


class MessageView:
    """Draws one message, `width` cells wide; text is added to it as it comes."""

    def __init__(self, message: TranscriptMessage, renderer: MarkdownRenderer) -> None:
        self.message = message
        self.folded: bool | None = None  # None: as the message's state wants it
        self._base = "dropped" if message.dropped else ""
        self._answer = BlockStack(renderer, self._base)
        self._reasoning = BlockStack(renderer, join(self._base, "reasoning"))
        self._text_seen = bool(message.text.strip())
        self._reasoning_seen = bool(message.reasoning.strip())
        self._sections: list[_Section] = []
        self._width = 0
        self._stale = True
        self._finished = False
        self._all_changed = True
        if message.role == "assistant":
            self._answer.feed(message.text)
            self._reasoning.feed(message.reasoning)
            self._finish_if_done()

    @property
    def resumable(self) -> bool:
        """Whether text can be added: to a reply that is not complete."""
        return self.message.role == "assistant" and not self._finished

    @property
    def height(self) -> int:
        """Rows, the blank one after the message included, as of the last `layout`."""
        return self._sections[-1].top + self._sections[-1].height + 1 if self._sections else 1

    def update(self, message: TranscriptMessage, text: str = "", reasoning: str = "") -> None:
        """Take the message's new state, and the text and reasoning that were added to it."""
        self.message = message
        if text:
            self._answer.feed(text)
            if not self._text_seen and text.strip():
                self._text_seen = self._all_changed = True
                self._reasoning.finish()
        if reasoning:
            self._reasoning.feed(reasoning)
            self._all_changed = True
            self._reasoning_seen = self._reasoning_seen or bool(reasoning.strip())
        self._finish_if_done()
        self._stale = True

    def layout(self, width: int) -> None:
        """Draw what has changed since the last time."""
        if not self._stale and width == self._width:
            return
        self._all_changed |= width != self._width
        self._stale = False
        self._width = width
        self._sections = []
        draw = {"user": self._draw_user, "assistant": self._draw_reply, "notice": self._draw_notice}
        draw[self.message.role]()

    def row(self, y: int) -> Row:
        """Row `y`, from 0 to `height` - 1."""
        section = self._section(y)
        return section.row(y - section.top) if section else BLANK

    def source(self, y: int, begin: int, end: int) -> str:
        """What characters `begin` to `end` of row `y`, decoration left out, are in the text."""
        section = self._section(y)
        if section is None:
            return ""
        if section.source is not None:
            return section.source(y - section.top, begin, end)
        row = section.row(y - section.top)
        return row.text[row.prefix :][begin:end]

    def highlight(self) -> bool:
        """Work on the colours of finished code for a moment; whether there is nothing left to do."""
        return self._answer.highlight() and self._reasoning.highlight()

    def take_changed(self) -> int:
        """The first row that may have changed since the last call."""
        changed = self._answer.take_changed()
        if self._all_changed or self.message.role != "assistant":
            self._all_changed = False
            return 0
        answer = next((section for section in self._sections if section.row == self._answer.row), None)
        return 0 if answer is None else answer.top + changed

    def toggle(self) -> None:
        """Fold what is unfolded, and the other way round."""
        self.folded = not self.is_folded
        self._stale = self._all_changed = True

    @property
    def is_folded(self) -> bool:
        """Whether the reasoning (of a reply) or the end (of a long question) is out of sight."""
        if self.folded is not None:
            return self.folded
        return self.message.role == "user" or self._text_seen or not self.message.open

    @property
    def has_reasoning(self) -> bool:
        """Whether there is reasoning to show."""
        return self.message.role == "assistant" and self._reasoning_seen

    def stops(self) -> list[Stop]:
        """Where the block cursor may stand, from top to bottom; the whole message is last."""
        stops: list[Stop] = []
        top = 0
        if self.has_reasoning:
            top = sum(section.height for section in self._sections[:2])
            stops.append(Stop("reasoning", 0, top))
        if self.message.role == "assistant":
            start = next((s.top for s in self._sections if s.row == self._answer.row), 0)
            stops += [Stop("code", start + at, height, key) for key, at, height, _ in self._answer.codes()]
        return [*stops, Stop("message", 0, self.height - 1)]

    def code(self, key: str) -> tuple[str, str]:
        """The text and the language of the fence that `key` names. KeyError when there is none."""
        for name, _, _, block in self._answer.codes():
            if name == key:
                return block.text, block.language
        raise KeyError(key)

    # Drawing

    def _finish_if_done(self) -> None:
        if self.message.role == "assistant" and not self.message.open and not self._finished:
            self._finished = True
            self._answer.finish()
            self._reasoning.finish()

    def _section(self, y: int) -> _Section | None:
        for section in self._sections:
            if y < section.top + section.height:
                return section
        return None

    def _add(self, rows: list[Row]) -> None:
        self._add_section(len(rows), rows.__getitem__)

    def _add_section(
        self, height: int, row: Callable[[int], Row], source: Callable[[int, int, int], str] | None = None
    ) -> None:
        before = self._sections[-1] if self._sections else None
        self._sections.append(_Section(before.top + before.height if before else 0, height, row, source))

    def _draw_user(self) -> None:
        rows = wrapped(self.message.text.expandtabs(4), min(self._width, MEASURE), join(self._base, "user"))
        if len(rows) > LONG_MESSAGE and self.is_folded:
            hidden = len(rows) - FOLDED_ROWS
            word = Run(f"… {hidden} more lines", join(self._base, "user fold"), ("fold", ""))
            rows = [*rows[:FOLDED_ROWS], Row((word,), prefix=len(word.text))]
        fill = join(self._base, "user")
        self._add([Row(row.runs, row.prefix, row.joint, fill, self._width, full=True) for row in rows])

    def _draw_notice(self) -> None:
        self._add(wrapped(self.message.text, min(self._width, MEASURE), "notice"))

    def _draw_reply(self) -> None:
        if self.has_reasoning:
            self._draw_reasoning()
        self._answer.layout(self._width)
        if self._answer.height:
            self._add_section(self._answer.height, self._answer.row, self._answer.source)
        if self.message.error:
            self._add(wrapped(self.message.error, min(self._width, MEASURE), "error"))
        footer = self._footer()
        if footer is not None:
            self._add([footer])

    def _draw_reasoning(self) -> None:
        message = self.message
        style = join(self._base, "reasoning_head")
        seconds = f" for {message.reasoning_seconds:.1f} s" if message.reasoning_seconds is not None else ""
        thinking = message.open and not self._text_seen
        words = "thinking…" if thinking else f"thought{seconds}"
        head = Run(f"{'▸' if self.is_folded else '▾'} {words}", style, ("fold", ""))
        self._add([Row((head,), prefix=len(head.text))])
        if not self.is_folded:
            bar = Run("│ ", join(self._base, "reasoning_bar"))
            self._reasoning.layout(max(2, self._width - 2))

            def row(y: int) -> Row:
                inner = self._reasoning.row(y)
                width = inner.width + 2 if inner.width else 0
                return Row((bar, *inner.runs), inner.prefix + 2, inner.joint, inner.fill, width)

            self._add_section(self._reasoning.height, row, self._reasoning.source)
        else:
            self._add([])
        self._add([BLANK] if self._text_seen else [])

    def _footer(self) -> Row | None:
        message = self.message
        style = join(self._base, "footer")
        runs: list[Run] = []
        if message.variants > 1:
            button = join(style, "step")
            runs += [
                Run("‹ ", button, ("variant", "-1")),
                Run(f"{message.variant}/{message.variants}", style),
                Run(" ›", button, ("variant", "1")),
            ]
        words = [message.footer or (WORDS.get(message.status, "") if not self._text_seen else "")]
        if message.status in ENDINGS and message.status not in message.footer:
            words.append(message.status)
        line = " · ".join(word for word in words if word)
        if line:
            runs.append(Run(("  " if runs else "") + line, style))
        if not runs:
            return None
        return fitted(runs, self._width)


def wrapped(text: str, width: int, style: str) -> list[Row]:
    """A text that is no Markdown, as rows."""
    return [Row((Run(text[a:b], style),) if b > a else (), joint=joint) for a, b, joint in wrap(text, width)]


def fitted(runs: list[Run], width: int) -> Row:
    """Runs on one row, cut at its end."""
    kept: list[Run] = []
    room = width
    for run in runs:
        if cell_len(run.text) > room:
            (first, *_) = wrap(run.text[: max(1, room - 1)], max(2, room - 1))
            kept.append(Run(run.text[first.start : first.end] + "…", run.style, run.action))
            break
        kept.append(run)
        room -= cell_len(run.text)
    return Row(tuple(kept), prefix=sum(len(run.text) for run in kept))

"""One message as rows: what was asked, or a reply with its reasoning above and its figures below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.cells import cell_len

from nanochat.ui.block_stack import BlockStack
from nanochat.ui.column import Column
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
JOINT = " · "
ENDINGS: frozenset[Status] = frozenset(("stopped", "interrupted", "failed"))


@dataclass(frozen=True, slots=True)
class Stop:
    """A place for the block cursor: `height` rows from `top` on. `key` names a fence within its message."""

    what: Literal["message", "code", "reasoning"]
    top: int
    height: int
    key: str = ""


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
        self.column = Column()
        self._width = 0
        self._stale = True
        self._finished = False
        self._known = 0  # rows when it was last asked what has changed; 0: everything has
        self._footer_changed = False
        if message.role == "assistant":
            self._answer.feed(message.text)
            self._reasoning.feed(message.reasoning)
            self._finish_if_done()

    @property
    def resumable(self) -> bool:
        """Whether text can be added: to a reply that is not complete."""
        return self.message.role == "assistant" and not self._finished

    def update(self, message: TranscriptMessage, text: str = "", reasoning: str = "") -> None:
        """Take the message's new state, and the text and reasoning that were added to it."""
        if message != self.message:
            self._footer_changed = True
            if replace(message, footer=self.message.footer) != self.message:
                self._known = 0
        self.message = message
        if text:
            self._answer.feed(text)
            if not self._text_seen and text.strip():
                self._text_seen = True
                self._known = 0
                self._reasoning.finish()
        if reasoning:
            self._reasoning.feed(reasoning)
            if not self._reasoning_seen and reasoning.strip():
                self._reasoning_seen = True
                self._known = 0
        self._finish_if_done()
        self._stale = True

    @property
    def height(self) -> int:
        """Rows, the blank one after the message included; in part estimated until all was drawn."""
        return self.column.height + 1

    def layout(self, width: int) -> None:
        """Take in what has changed since the last time."""
        if not self._stale and width == self._width:
            return
        if width != self._width:
            self._known = 0
        self._stale = False
        self._width = width
        self.column = Column()
        arrange = {"user": self._show_question, "assistant": self._show_reply, "notice": self._show_notice}
        arrange[self.message.role]()

    def release(self) -> None:
        """Forget what is drawn; heights are kept."""
        self._answer.release()
        self._reasoning.release()

    def take_changed(self) -> int:
        """The first row that may have changed since the last call; `height` when none has."""
        changed, known = self.column.take_changed(), self._known
        self._known = self.height
        if known == 0:
            return 0
        below = next(
            (s.top for s in self.column.sections if s.name in ("error", "footer")), self.column.height
        )
        if self._footer_changed or changed < self.column.height or known != self.height:
            self._footer_changed = False
            return min(changed, below)
        return self.height

    def toggle(self) -> None:
        """Fold what is unfolded, and the other way round."""
        self.folded = not self.is_folded
        self._stale = True
        self._known = 0

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
        if self.has_reasoning:
            height = sum(
                section.height for section in self.column.sections if section.name.startswith("reasoning")
            )
            stops.append(Stop("reasoning", 0, height))
        for section in self.column.sections:
            if section.stack is self._answer:
                stops += [
                    Stop("code", section.top + at, height, key) for key, at, height, _ in self._answer.codes()
                ]
        return [*stops, Stop("message", 0, self.height - 1)]

    def code(self, key: str) -> tuple[str, str]:
        """The text and the language of the fence that `key` names. KeyError when there is none."""
        for name, _, _, block in self._answer.codes():
            if name == key:
                return block.text, block.language
        raise KeyError(key)

    # What stands one under the other

    def _finish_if_done(self) -> None:
        if self.message.role == "assistant" and not self.message.open and not self._finished:
            self._finished = True
            self._answer.finish()
            self._reasoning.finish()

    def _show_question(self) -> None:
        style = join(self._base, "user")
        rows = wrapped(self.message.text.expandtabs(4), min(self._width, MEASURE), style)
        if len(rows) > LONG_MESSAGE and self.is_folded:
            hidden = len(rows) - FOLDED_ROWS
            word = Run(f"… {hidden} more lines", join(style, "fold"), ("fold", ""))
            rows = [*rows[:FOLDED_ROWS], Row((word,), prefix=len(word.text))]
        self.column.add("question", [replace(row, fill=style, width=self._width, full=True) for row in rows])
        steps = self._steps(join(self._base, "footer"))
        if steps:
            self.column.add("footer", [Row(tuple(steps), prefix=sum(len(run.text) for run in steps))])

    def _show_notice(self) -> None:
        self.column.add("notice", wrapped(self.message.text, min(self._width, MEASURE), "notice"))

    def _show_reply(self) -> None:
        if self.has_reasoning:
            self._show_reasoning()
        self._answer.layout(self._width)
        if self._answer.height:
            self.column.add("answer", [], self._answer)
        if self.message.error:
            rows = wrapped(f"✗ {self.message.error}", min(self._width, MEASURE), "error")
            self.column.add("error", rows)
        footer = self._footer()
        if footer:
            self.column.add("footer", footer)

    def _show_reasoning(self) -> None:
        message = self.message
        style = join(self._base, "reasoning_head")
        seconds = f" for {message.reasoning_seconds:.1f} s" if message.reasoning_seconds is not None else ""
        words = "thinking…" if message.open and not self._text_seen else f"thought{seconds}"
        head = Run(f"{'▸' if self.is_folded else '▾'} {words}", style, ("fold", ""))
        self.column.add("reasoning head", [Row((head,), prefix=len(head.text))])
        if not self.is_folded:
            self._reasoning.layout(self._width)
            self.column.add("reasoning", [], self._reasoning)
        if self._text_seen:
            self.column.add("after reasoning", [BLANK])

    def _steps(self, style: str) -> list[Run]:
        """Which version it is, and the steps to the others; nothing when it is the only one."""
        if self.message.variants < 2:
            return []
        button = join(style, "step")
        return [
            Run("‹ ", button, ("variant", "-1")),
            Run(f"{self.message.variant}/{self.message.variants}", style),
            Run(" ›", button, ("variant", "1")),
        ]

    def _footer(self) -> list[Row]:
        """Figures and how it ended, on as few rows as hold them; steps through the versions stand before them."""
        message = self.message
        style = join(self._base, "footer")
        steps = self._steps(style)
        words = [message.footer or (WORDS.get(message.status, "") if not self._text_seen else "")]
        if message.status in ENDINGS and message.status not in message.footer:
            words.append(message.status)
        line = JOINT.join(word for word in words if word)
        taken = sum(cell_len(run.text) for run in steps) + 2 if steps else 0
        lines = packed(line.split(JOINT), self._width, taken=taken)
        if steps and lines[0]:
            lines[0] = f"  {lines[0]}"
        rows = [[Run(text, style)] if text else [] for text in lines]
        rows[0] = [*steps, *rows[0]]
        return [Row(tuple(runs), prefix=sum(len(run.text) for run in runs)) for runs in rows if runs]


def packed(parts: Sequence[str], width: int, *, taken: int = 0) -> list[str]:
    """Parts of a line, joined by dots, on as few rows as hold them; `taken` cells of the first are in use."""
    rows, room = [""], max(width - taken, 0)
    for part in parts:
        joined = f"{rows[-1]}{JOINT}{part}" if rows[-1] else part
        if cell_len(joined) <= room:
            rows[-1] = joined
            continue
        pieces = [part[piece.start : piece.end] for piece in wrap(part, width)]
        rows += pieces
        room = width
    return rows


def wrapped(text: str, width: int, style: str) -> list[Row]:
    """A text that is no Markdown, as rows."""
    return [Row((Run(text[a:b], style),) if b > a else (), joint=joint) for a, b, joint in wrap(text, width)]

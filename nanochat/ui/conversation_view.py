"""A conversation as one column of rows, of which only what is near the screen is drawn.

A message that was never on screen has an estimated height; drawing it corrects the estimate, and what the
reader looks at stays where it is. At most about `MOST_DRAWN` messages are kept drawn; the others keep only
their height.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.markdown import MEASURE, MarkdownRenderer
from nanochat.ui.message_view import MessageView, Stop
from nanochat.ui.rows import BLANK, Row

MOST_DRAWN = 24


@dataclass(slots=True)
class _Entry:
    message_id: str
    key: int
    height: int
    view: MessageView | None = None
    state: TranscriptMessage | None = None
    measured: bool = False
    folded: bool | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a message: what a view holds on to while heights change."""

    message_id: str
    row: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the block cursor selects: a message, its reasoning, or the fence in it that `key` names."""

    message_id: str
    what: Literal["message", "code", "reasoning"] = "message"
    key: str = ""


class ConversationView:
    """The rows of one conversation, `width` cells wide, and how it was last looked at."""

    def __init__(self, conversation: Conversation, renderer: MarkdownRenderer) -> None:
        self.conversation = conversation
        self.following = True
        self.place: Place | None = None  # the first row on screen, when not following
        self.seen = 0  # rows above this one have been on screen, or were there when the reader left the end
        self.cursor: Cursor | None = None
        self._renderer = renderer
        self._width = 0
        self._entries: list[_Entry] = []
        self._index: dict[str, int] = {}
        self._tops: list[int] = [0]

    @property
    def height(self) -> int:
        """All rows; those of messages that were never drawn are estimated."""
        return self._tops[-1]

    @property
    def drawn(self) -> int:
        """How many messages are kept drawn."""
        return sum(entry.view is not None for entry in self._entries)

    # Keeping up with the conversation

    def reconcile(self, width: int) -> None:
        """Take in which messages there are now, and the width they have."""
        if width != self._width:
            for entry in self._entries:
                entry.measured = False
            self._width = width
        known = {entry.key: entry for entry in self._entries}
        self._entries = []
        for message_id in self.conversation.ids:
            key = self.conversation.key(message_id)
            entry = known.get(key)
            if entry is None:
                entry = _Entry(message_id, key, self._estimate(self.conversation.state(message_id)))
            entry.message_id = message_id
            self._entries.append(entry)
            if entry.view is not None:
                self._update(entry)
        self._index = {entry.message_id: index for index, entry in enumerate(self._entries)}
        self._stack(0)

    def refresh(self, message_id: str) -> int:
        """Take in what was added to a message; returns the first row that changed. KeyError when it is new."""
        index = self._index[message_id]
        entry = self._entries[index]
        if entry.view is not None:
            self._update(entry)
        self._measure(index)
        assert entry.view is not None
        return self._tops[index] + entry.view.take_changed()

    def highlight(self, top: int, rows: int) -> tuple[int, int] | None:
        """Colour some code that is on screen; the rows that it changed, or None when there is nothing to do."""
        for index in self._visible(top, rows):
            view = self._entries[index].view
            if view is not None and not view.highlight():
                return self._tops[index], self._tops[index]
            if view is not None:
                changed = view.take_changed()
                if changed < view.height - 1:
                    return self._tops[index] + changed, self._tops[index + 1]
        return None

    # Where things are

    def settle(self, top: int, rows: int) -> int:
        """Draw what rows `top` to `top + rows` show; returns `top` corrected so that nothing on screen jumps."""
        for _ in range(len(self._entries) + 1):
            visible = self._visible(top, rows)
            unmeasured = [index for index in visible if not self._entries[index].measured]
            if not unmeasured:
                return top
            anchor, offset = self._anchor(visible, top)
            for index in unmeasured:
                self._measure(index)
            top = max(0, self._tops[anchor] + offset)
        return top

    def settle_end(self, rows: int) -> None:
        """Draw the last `rows` rows."""
        index = len(self._entries)
        while index > 0 and self.height - self._tops[index] < rows:
            index -= 1
            if not self._entries[index].measured:
                self._measure(index)

    def hydrate(self, top: int, rows: int) -> int | None:
        """Draw one more message near the screen; the corrected `top`, or None when all near ones are drawn."""
        near = self._visible(max(0, top - rows), 3 * rows)
        unmeasured = [index for index in near if not self._entries[index].measured]
        if not unmeasured:
            return None
        visible = self._visible(top, rows)
        anchor, offset = self._anchor(visible, top)
        self._measure(max(unmeasured))
        return max(0, self._tops[anchor] + offset)

    def release(self, top: int, rows: int) -> None:
        """Forget what is drawn far from the screen; only heights are kept."""
        drawn = [index for index, entry in enumerate(self._entries) if entry.view is not None]
        if len(drawn) <= MOST_DRAWN:
            return
        visible = self._visible(top, rows)
        middle = (visible.start + visible.stop) // 2
        for index in sorted(drawn, key=lambda index: abs(index - middle))[MOST_DRAWN:]:
            entry = self._entries[index]
            if index in visible or entry.view is None or entry.view.resumable:
                continue
            entry.folded, entry.view = entry.view.folded, None

    def row(self, y: int) -> tuple[Row, str]:
        """Row `y` and the id of its message; blank after the end."""
        entry, inner = self._find(y)
        if entry is None:
            return BLANK, ""
        return self._drawn(entry).row(inner), entry.message_id

    def source(self, y: int, begin: int, end: int) -> str:
        """What characters `begin` to `end` of row `y`, decoration left out, are in the message."""
        entry, inner = self._find(y)
        return "" if entry is None else self._drawn(entry).source(inner, begin, end)

    def locate(self, y: int) -> Place | None:
        """The place of row `y`."""
        entry, inner = self._find(y)
        return None if entry is None else Place(entry.message_id, inner)

    def find(self, place: Place) -> int:
        """The row of a place; 0 when its message is gone."""
        index = self._index.get(place.message_id)
        if index is None:
            return 0
        return self._tops[index] + min(place.row, self._entries[index].height - 1)

    # The block cursor

    def move_cursor(self, step: int) -> Cursor | None:
        """Select the block above (-1) or below (1); the last message first. None when there is none."""
        if not self._entries:
            self.cursor = None
        elif self.cursor is None or self.cursor.message_id not in self._index:
            self.cursor = Cursor(self._entries[-1].message_id)
        else:
            self.cursor = self._neighbour(self.cursor, step)
        return self.cursor

    def span(self, cursor: Cursor) -> tuple[int, int]:
        """The first row that the cursor selects, and the row after the last."""
        index = self._index.get(cursor.message_id)
        if index is None:
            return 0, 0
        for stop in self._stops(index):
            if (stop.what, stop.key) == (cursor.what, cursor.key):
                return self._tops[index] + stop.top, self._tops[index] + stop.top + stop.height
        return self._tops[index], self._tops[index + 1] - 1

    def view(self, message_id: str) -> MessageView:
        """The drawn message. KeyError when there is none."""
        index = self._index[message_id]
        if not self._entries[index].measured:
            self._measure(index)
        return self._view(self._entries[index])

    def remeasure(self, message_id: str) -> None:
        """A message was folded or unfolded."""
        self._measure(self._index[message_id])

    def _neighbour(self, cursor: Cursor, step: int) -> Cursor:
        index = self._index[cursor.message_id]
        stops = self._stops(index)
        names = [(stop.what, stop.key) for stop in stops]
        at = names.index((cursor.what, cursor.key)) if (cursor.what, cursor.key) in names else len(names) - 1
        if 0 <= at + step < len(stops):
            stop = stops[at + step]
        else:
            index += step
            if not 0 <= index < len(self._entries):
                return cursor
            stop = self._stops(index)[0 if step > 0 else -1]
        return Cursor(self._entries[index].message_id, stop.what, stop.key)

    def _stops(self, index: int) -> list[Stop]:
        return self.view(self._entries[index].message_id).stops()

    # Heights

    def _estimate(self, message: TranscriptMessage) -> int:
        width = max(8, min(self._width, MEASURE))
        return message.text.count("\n") + len(message.text) // width + 3

    def _find(self, y: int) -> tuple[_Entry | None, int]:
        index = bisect_right(self._tops, y) - 1
        if y < 0 or index >= len(self._entries):
            return None, 0
        return self._entries[index], y - self._tops[index]

    def _visible(self, top: int, rows: int) -> range:
        first = max(0, bisect_right(self._tops, top) - 1)
        last = bisect_right(self._tops, top + rows - 1)
        return range(first, min(last, len(self._entries)))

    def _anchor(self, visible: range, top: int) -> tuple[int, int]:
        """A message that is on screen and will not change its height, and where `top` is relative to its first row.

        Of a message that is only half on screen and has no height yet, the lower end is held: that is the side
        it is seen from when the reader scrolls up.
        """
        for index in visible:
            if self._entries[index].measured:
                return index, top - self._tops[index]
        after = visible.stop
        if after < len(self._entries) and visible.start + 1 == after:
            return after, top - self._tops[after]
        return visible.start, top - self._tops[visible.start]

    def _measure(self, index: int) -> None:
        entry = self._entries[index]
        view = self._view(entry)
        view.layout(self._width)
        entry.measured = True
        if view.height != entry.height:
            entry.height = view.height
            self._stack(index)

    def _drawn(self, entry: _Entry) -> MessageView:
        return self._view(entry) if entry.view is None else entry.view

    def _view(self, entry: _Entry) -> MessageView:
        if entry.view is None:
            entry.state = self.conversation.state(entry.message_id)
            entry.view = MessageView(self.conversation.get(entry.message_id), self._renderer)
            entry.view.folded = entry.folded
            self.conversation.take(entry.message_id)
        entry.view.layout(self._width)
        return entry.view

    def _update(self, entry: _Entry) -> None:
        if entry.view is None:
            return
        text, reasoning = self.conversation.take(entry.message_id)
        state = self.conversation.state(entry.message_id)
        if not text and not reasoning and state == entry.state:
            return
        entry.measured = False
        if (text or reasoning) and not entry.view.resumable:
            entry.folded, entry.view = entry.view.folded, None
        else:
            entry.state = state
            entry.view.update(state, text, reasoning)

    def _stack(self, start: int) -> None:
        del self._tops[start + 1 :]
        top = self._tops[start]
        for entry in self._entries[start:]:
            top += entry.height
            self._tops.append(top)

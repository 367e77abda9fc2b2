"""A conversation as one column of rows, of which only what is near the screen is drawn.

What was never on screen has an estimated height; drawing it corrects the estimate, and what the reader looks
at stays where it is. At most about `MOST_DRAWN` messages are kept drawn; the others keep only their heights.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from nanochat.ui.block_cursor import BlockCursor
from nanochat.ui.column import Spot
from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.markdown import MEASURE, MarkdownRenderer
from nanochat.ui.message_view import MessageView
from nanochat.ui.rows import BLANK, Row

MOST_DRAWN = 20


@dataclass(slots=True)
class _Entry:
    message_id: str
    key: int
    height: int
    view: MessageView | None = None
    state: TranscriptMessage | None = None
    drawn: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a conversation, by what it belongs to: what a view holds on to while heights change."""

    message_id: str
    key: int  # the message's, which stays when it gets another id: a reply does at its end
    spot: Spot
    index: int  # of the message, and the row within it: for when another one stands there
    row: int


class ConversationView:
    """The rows of one conversation, `width` cells wide, and how it was last looked at."""

    def __init__(self, conversation: Conversation, renderer: MarkdownRenderer) -> None:
        self.conversation = conversation
        self.following = True
        self.place: Place | None = None  # the first row on screen, when not following
        self.unseen = 0  # rows that have come since the reader left the end, and were not on screen
        self._cursor: BlockCursor | None = None
        self._cursor_place = 0  # among the messages
        self._folded: bool | None = None  # what the reader last wanted for all messages
        self._renderer = renderer
        self._width = 0
        self._entries: list[_Entry] = []
        self._index: dict[str, int] = {}
        self._by_key: dict[int, int] = {}
        self._tops: list[int] = [0]

    @classmethod
    def of(cls, conversation: Conversation, renderer: MarkdownRenderer) -> ConversationView:
        """The view that the conversation keeps; a new one the first time."""
        kept = conversation.kept_view
        view = kept if isinstance(kept, ConversationView) else cls(conversation, renderer)
        conversation.kept_view = view
        return view

    @property
    def cursor(self) -> BlockCursor | None:
        """What is selected; where that message is gone, the one in its place: another version, or what is left."""
        if self._cursor is not None and self._cursor.message_id not in self.conversation:
            ids = self.conversation.ids
            if ids == tuple(entry.message_id for entry in self._entries):  # else it is reconciled in a moment
                self._cursor = BlockCursor(ids[min(self._cursor_place, len(ids) - 1)]) if ids else None
        return self._cursor

    @cursor.setter
    def cursor(self, cursor: BlockCursor | None) -> None:
        ids = self.conversation.ids
        if cursor is not None and cursor.message_id in ids:
            self._cursor_place = ids.index(cursor.message_id)
        self._cursor = cursor

    def __contains__(self, message_id: str) -> bool:
        return message_id in self.conversation and message_id in self._index

    @property
    def height(self) -> int:
        """All rows; estimated where nothing was drawn yet."""
        return self._tops[-1]

    @property
    def drawn(self) -> int:
        """How many messages are kept drawn."""
        return sum(entry.drawn for entry in self._entries)

    # Keeping up with the conversation

    def reconcile(self, width: int) -> bool:
        """Take in which messages there are now, and the width they have; whether all that were there still are."""
        self._width = width
        before = [(entry.message_id, entry.key) for entry in self._entries]
        known = {entry.key: entry for entry in self._entries}
        self._entries = []
        for message_id in self.conversation.ids:
            key = self.conversation.key(message_id)
            entry = known.get(key) or _Entry(message_id, key, 0)
            entry.message_id = message_id
            self._entries.append(entry)
            if entry.view is None:
                entry.height = self._estimate(self.conversation.state(message_id))
            else:
                self._update(entry)
        self._index = {entry.message_id: index for index, entry in enumerate(self._entries)}
        self._by_key = {entry.key: index for index, entry in enumerate(self._entries)}
        self._stack(0)
        return all(name in self._index or key in self._by_key for name, key in before)

    def refresh(self, message_id: str) -> None:
        """Take in what was added to a message. KeyError when it is new: then `reconcile`."""
        index = self._index[message_id]
        self._update(self._entries[index])
        self._stack(index)

    def take_changed(self, message_id: str) -> int:
        """The first row that has changed in a message since the last call; the row after it when none has."""
        index = self._index[message_id]
        view = self._entries[index].view
        return self._tops[index] if view is None else self._tops[index] + view.take_changed()

    def highlight(self, top: int, rows: int) -> tuple[int, int] | None:
        """Colour some code that is on screen; the rows that it changed, or None when there is nothing to do."""
        for index in self._visible(top, top + rows):
            view, start = self._entries[index].view, self._tops[index]
            if view is not None and not view.column.highlight(top - start, top + rows - start):
                return start + view.take_changed(), start + view.height
        return None

    # Where things are

    def settle(self, top: int, rows: int, around: int = 0) -> int:
        """Draw what rows `top` to `top + rows` show, and `around` more rows above and below.

        Returns `top` corrected so that nothing on screen jumps: what is known to be on screen, or else what is
        next to it, stays where it is.
        """
        held = self._hold(top, rows)
        while self._draw(top - around, top + rows + around):
            if held is not None:
                top = max(0, self.find(held[0]) - held[1])
        return top

    def settle_end(self, rows: int) -> int:
        """Draw the last `rows` rows; returns the first of them."""
        while self._draw(self.height - rows, self.height):
            pass
        return max(0, self.height - rows)

    def release(self, top: int, rows: int) -> None:
        """Forget what is drawn far from the screen; only heights are kept."""
        drawn = [index for index, entry in enumerate(self._entries) if entry.drawn]
        visible = self._visible(top - rows, top + 2 * rows)
        middle = (visible.start + visible.stop) // 2
        for index in sorted(drawn, key=lambda index: abs(index - middle))[MOST_DRAWN:]:
            view = self._entries[index].view
            if index not in visible and view is not None and not view.resumable:
                view.release()
                self._entries[index].drawn = False

    def row(self, y: int) -> tuple[Row, str]:
        """Row `y` and the id of its message; blank after the end."""
        found = self._find(y)
        if found is None:
            return BLANK, ""
        entry, inner = found
        return self._view(entry).column.row(inner), entry.message_id

    def source(self, y: int, begin: int, end: int) -> str:
        """What characters `begin` to `end` of row `y`, decoration left out, are in the message."""
        found = self._find(y)
        return "" if found is None else self._view(found[0]).column.source(found[1], begin, end)

    def locate(self, y: int) -> Place | None:
        """The place of row `y`."""
        found = self._find(y)
        if found is None:
            return None
        entry, inner = found
        spot = Spot("?", 0, inner) if entry.view is None else entry.view.column.locate(inner)
        return Place(entry.message_id, entry.key, spot, self._by_key[entry.key], inner)

    def find(self, place: Place) -> int:
        """The row of a place; when its message is gone, in the one that stands there (another version), or the end."""
        index = self._by_key.get(place.key, self._index.get(place.message_id))
        if index is None:
            if place.index >= len(self._entries):
                return self.height
            return self._tops[place.index] + min(place.row, self._entries[place.index].height - 1)
        view = self._entries[index].view
        return self._tops[index] + (place.spot.row if view is None else view.column.find(place.spot))

    def span(self, message_id: str) -> tuple[int, int]:
        """The first row of a message, and the blank row after it. KeyError when there is none."""
        index = self._index[message_id]
        return self._tops[index], self._tops[index + 1] - 1

    def view(self, message_id: str) -> MessageView:
        """The message's own view. KeyError when there is none."""
        return self._view(self._entries[self._index[message_id]])

    def fold_all(self) -> None:
        """Fold the reasoning of every message, or unfold all of it when none is unfolded."""
        views = [entry.view for entry in self._entries if entry.view is not None and entry.view.has_reasoning]
        self._folded = any(not view.is_folded for view in views)
        for view in views:
            if view.is_folded != self._folded:
                view.toggle()

    # Inside

    def _estimate(self, message: TranscriptMessage) -> int:
        width = max(8, min(self._width, MEASURE))
        return message.text.count("\n") + len(message.text) // width + 3

    def _find(self, y: int) -> tuple[_Entry, int] | None:
        index = bisect_right(self._tops, y) - 1
        if y < 0 or index >= len(self._entries):
            return None
        return self._entries[index], y - self._tops[index]

    def _visible(self, first: int, end: int) -> range:
        start = max(0, bisect_right(self._tops, max(0, first)) - 1)
        stop = bisect_right(self._tops, max(0, end - 1))
        return range(start, min(stop, len(self._entries)))

    def _hold(self, top: int, rows: int) -> tuple[Place, int] | None:
        """A place whose height is known, and its distance from `top`: on screen, else below, else above it."""
        for first, end in ((top, top + rows), (top + rows, top + 2 * rows), (top - rows, top)):
            row = self._exact(max(0, first), end)
            if row is not None and (place := self.locate(row)) is not None:
                return place, row - top
        return None

    def _exact(self, first: int, end: int) -> int | None:
        for index in self._visible(first, end):
            view, start = self._entries[index].view, self._tops[index]
            if view is not None:
                row = view.column.exact(max(0, first - start), end - start)
                if row is not None and first <= start + row < end:
                    return start + row
        return None

    def _draw(self, first: int, end: int) -> bool:
        """Draw these rows; False when all were drawn."""
        drew = False
        for index in self._visible(first, end):
            entry, start = self._entries[index], self._tops[index]
            new = entry.view is None
            view = self._view(entry)
            entry.drawn = True
            if view.column.draw(first - start, end - start) or new:
                drew = True
                self._stack(index)
        return drew

    def _view(self, entry: _Entry) -> MessageView:
        if entry.view is None:
            entry.state = self.conversation.state(entry.message_id)
            entry.view = MessageView(self.conversation.get(entry.message_id), self._renderer)
            self.conversation.take(entry.message_id)
            if entry.view.has_reasoning:
                entry.view.folded = self._folded
            entry.view.layout(self._width)
        return entry.view

    def _update(self, entry: _Entry) -> None:
        """Take in what was added to a message, and the width; a reply that goes on after its end starts anew, as do dropped turns."""
        view = self._view(entry)
        text, reasoning = self.conversation.take(entry.message_id)
        state = self.conversation.state(entry.message_id)
        if ((text or reasoning) and not view.resumable) or state.dropped != view.message.dropped:
            entry.view = None
            self._view(entry).folded = view.folded
        elif text or reasoning or state != entry.state:
            entry.state = state
            view.update(state, text, reasoning)
        self._view(entry).layout(self._width)

    def _stack(self, start: int) -> None:
        """Work out where messages begin, from the one at index `start` on."""
        del self._tops[start + 1 :]
        top = self._tops[start]
        for entry in self._entries[start:]:
            if entry.view is not None:
                entry.height = entry.view.height
            top += entry.height
            self._tops.append(top)

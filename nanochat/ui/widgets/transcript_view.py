"""The scrolling and painting half of the transcript: rows of one conversation, and when they follow the end.

One widget, whatever its length: a flush costs the rows that changed, switching to another conversation costs
one repaint, and focus, timers and resizing never restyle a tree of widgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.selection import Selection
from textual.strip import Strip

from nanochat.ui.conversation import Conversation
from nanochat.ui.conversation_view import ConversationView
from nanochat.ui.markdown import MarkdownRenderer
from nanochat.ui.rows import BLANK, Row
from nanochat.ui.widgets.line_scroll_view import LineScrollView
from nanochat.ui.widgets.row_painter import GUTTER, MARGIN, RowPainter
from nanochat.ui.widgets.text_selection import Numbering, mark, selected_text

#: Rows from the end within which the view counts as being there.
NEAR_END = 2
#: Rows around the screen that are drawn at once in idle time.
AT_ONCE = 8


class TranscriptView(LineScrollView):
    """Shows one conversation; `swap` shows another one."""

    @dataclass
    class FollowChanged(Message, namespace="transcript"):
        """The view follows the end from now on, or no longer does."""

        following: bool

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.painter = RowPainter(self, "transcript")
        self._renderer = MarkdownRenderer()
        self._view: ConversationView | None = None
        self._dirty: set[str | None] = set()
        self._moving = False  # the scroll position is being set by us, not by the reader
        self._busy = False  # idle work is under way
        self._laid_out = 0  # the width that the rows were counted at
        self._around = 0  # rows above and below the screen that are drawn, too
        self._numbering = Numbering()

    # What is shown

    @property
    def conversation(self) -> Conversation | None:
        """What is shown."""
        return None if self._view is None else self._view.conversation

    def swap(self, conversation: Conversation | None) -> None:
        """Show this conversation, where and how it was last seen; a new one from its end."""
        if self._view is not None:
            self._view.conversation.on_change = None
        self._view = None
        if conversation is not None:
            self._view = ConversationView.of(conversation, self._renderer)
            conversation.on_change = self._on_change
        self._dirty = {None}
        if self.is_attached:
            self.screen.clear_selection()
        self.flush()
        self.post_message(self.FollowChanged(self.following))

    @property
    def following(self) -> bool:
        """Whether the view stays at the end as text comes."""
        return self._view is None or self._view.following

    @property
    def new_lines(self) -> int:
        """Rows that have come since the reader left the end, and were not on screen yet."""
        return 0 if self._view is None else self._view.unseen

    def follow(self) -> None:
        """Go to the end and stay there."""
        self._set_following(True)
        self._place()

    def _on_change(self, message_id: str | None) -> None:
        if not self._dirty:
            self.call_later(self.flush)
        self._dirty.add(message_id)

    def flush(self) -> None:
        """Take in what has changed in the conversation now; it happens soon by itself.

        For a pump that wants to know when what it brought is on screen: `call_after_refresh` counts from here.
        """
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        view, (width, rows) = self._view, self._room
        if view is None or not width or not rows:
            self._laid_out = 0  # when there is room, everything is taken in anew, whatever changes first
            self.set_height(0 if view is None else view.height)
            self.refresh()
            return
        height, known = view.height, self._laid_out == width
        ids: list[str] | None = None
        same = True
        with self._numbering.kept(view, self.text_selection):
            if None in dirty or not known:
                same = view.reconcile(width)
            else:
                ids = [name for name in dirty if name is not None and name in view.conversation]
                for message_id in ids:
                    view.refresh(message_id)
        if not view.following and known:
            # Other versions, or what is left of a chat, are not new: the reader asked for them.
            view.unseen = max(0, view.unseen + view.height - height) if same else 0
        self._laid_out = width
        self._place(ids)

    def _place(self, changed: Sequence[str] | None = None) -> None:
        """Put the view where it belongs after heights have changed, and repaint these messages; None: all."""
        view, (_, rows) = self._view, self._room
        if view is None or not rows:
            return
        with self._numbering.kept(view, self.text_selection):
            if view.following:
                top = view.settle_end(rows)
            else:
                top = view.find(view.place) if view.place else 0
                top = view.settle(min(top, max(0, view.height - rows)), rows)
        end = max(view.height, self.virtual_size.height)  # rows that are gone are painted over
        self.set_height(view.height)
        moved = self._move_to(top)
        if changed is None:
            self.refresh()
        elif not moved:
            first = min([view.take_changed(message_id) for message_id in changed], default=end)
            self._repaint(first, end)
            if not view.following:
                self.refresh(Region(0, rows - 1, self.size.width, 1))  # the badge
        self._start_idle_work()

    def _repaint(self, first: int, end: int) -> None:
        """Paint rows `first` to `end` (exclusive) anew, as far as they are on screen."""
        top, rows = round(self.scroll_y), self._room[1]
        first, end = max(0, first - top), min(rows, end - top)
        if first < end:
            self.refresh(Region(0, first, self.size.width, end - first))

    @property
    def _room(self) -> tuple[int, int]:
        """Columns for text, and rows on screen."""
        width, height = self.scrollable_content_region.size
        return max(0, width - GUTTER - MARGIN), height

    # Scrolling

    def _move_to(self, top: int) -> bool:
        """Scroll so that `top` is the first row; whether that was a change."""
        self._moving = True
        before = round(self.scroll_y)
        self.scroll_target_y = self.scroll_y = top
        self._moving = False
        self._remember(top)
        self.sync_scrollbar()
        return before != round(self.scroll_y)

    def _remember(self, top: int) -> None:
        view = self._view
        if view is not None:
            view.place = view.locate(top)
            view.unseen = 0 if view.following else min(view.unseen, max(0, view.height - top - self._room[1]))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """The view has moved; by the reader, unless we are moving it."""
        view = self._view
        if round(old_value) == round(new_value):
            return
        self.refresh()
        if self._moving or view is None:
            return
        if new_value < old_value:
            if new_value < self.max_scroll_y:  # else the rows became fewer, or the screen higher
                self._set_following(False)
        elif self.max_scroll_y - new_value <= NEAR_END:
            self._set_following(True)
            self._place()
            return
        self._settle(round(new_value))
        self._around = 0
        self._start_idle_work()

    def _settle(self, wanted: int, around: int = 0) -> None:
        """Draw what is on screen when it begins at row `wanted`, and stay there."""
        view, rows = self._view, self._room[1]
        if view is None:
            return
        with self._numbering.kept(view, self.text_selection):
            top = view.settle(wanted, rows, around)
        self.set_height(view.height)
        self._move_to(min(top, max(0, view.height - rows)))

    def _set_following(self, following: bool) -> None:
        view = self._view
        if view is None or view.following == following:
            return
        view.following = following
        self.post_message(self.FollowChanged(following))
        self.refresh()

    def on_resize(self, event: events.Resize) -> None:
        """Wrap everything anew, and stay at the same place."""
        del event
        self._dirty.add(None)
        self._around = 0
        self.flush()

    def notify_style_update(self) -> None:
        """The theme has changed."""
        super().notify_style_update()
        self.painter.clear()

    # Idle work: colours of code, messages just out of sight

    @property
    def working(self) -> bool:
        """Whether something is left to take in, to draw or to colour."""
        return self._busy or bool(self._dirty)

    def _start_idle_work(self) -> None:
        if not self._busy:
            self._busy = True
            self.call_after_refresh(self._work)

    def _work(self) -> None:
        """Do a few milliseconds of it, and come back while there is more."""
        self._busy = False
        view, rows = self._view, self._room[1]
        if view is None or not rows:
            return
        top = round(self.scroll_y)
        changed = view.highlight(top, rows)
        if changed is not None:
            self._repaint(*changed)
        elif self._around < rows:
            self._around += AT_ONCE
            self._settle(top, self._around)
        else:
            view.release(top, rows)
            return
        self._start_idle_work()

    # Painting

    def paint_line(self, y: int, width: int, rows: int) -> Strip:
        """Row `y` of the screen, with what is selected of it, and the badge on the last one."""
        view = self._view
        index = round(self.scroll_y) + y
        if view is None or index >= view.height:
            return self.painter.strip(BLANK, "", width)
        row, _ = view.row(index)
        strip = self.painter.strip(row, self.gutter_style(row, index), width)
        selection = self.text_selection
        if selection is not None:
            strip = mark(strip, row, selection, index + self._numbering.origin, self.selection_style)
        strip = strip.apply_offsets(0, index + self._numbering.origin)
        if y == rows - 1 and self.new_lines:
            strip = self.painter.badge(strip, self.new_lines, width)
        return strip

    def gutter_style(self, row: Row, index: int) -> str:
        """The style of the bar left of a row; "" for none."""
        del index
        return "user_bar" if row.full else ""

    # Selecting text

    def text_select_all(self) -> None:
        """A double click selects nothing: all of a chat is not what it means."""

    def selection_updated(self, selection: Selection | None) -> None:
        """Show what is selected."""
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text as it was written: wrapped lines are whole, tabs of code are kept."""
        return (
            None
            if self._view is None
            else (selected_text(self._view, selection, self._numbering.origin), "\n")
        )

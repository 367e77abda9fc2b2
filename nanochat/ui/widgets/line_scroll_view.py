"""A scroll view of lines, for text that grows all the time: what it does costs the lines that change, and no layout."""

from __future__ import annotations

from typing import cast

from textual._animator import EasingFunction
from textual._types import AnimationLevel, CallbackType
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget


class LineScrollView(ScrollView):
    """Whoever fills it tells its height with `set_height` and paints one line with `paint_line`."""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._thumb = (0, 0, 0)  # lines, and the thumb's size and place in eighths of one

    def paint_line(self, y: int, width: int, rows: int) -> Strip:
        """Line `y` of the `rows` on screen, `width` cells wide."""
        raise NotImplementedError

    def set_height(self, height: int) -> None:
        """There are so many lines now, on screen and out of sight; `sync_scrollbar` shows it."""
        # Not by assignment: that would lay out the whole screen, and only the scrollbar has to change.
        virtual_size = cast("Reactive[Size]", Widget.virtual_size)
        self.set_reactive(virtual_size, Size(self.scrollable_content_region.width, height))

    def sync_scrollbar(self) -> None:
        """Move the scrollbar's thumb, when that can be seen: painting it costs as much as a screen of text."""
        height, rows = self.virtual_size.height, self.scrollable_content_region.height
        if not self.show_vertical_scrollbar or not rows:
            return
        thumb = (rows, 8 * rows * rows // max(1, height), round(8 * rows * self.scroll_y / max(1, height)))
        if thumb != self._thumb:
            self._thumb = thumb
            bar = self.vertical_scrollbar
            bar.window_virtual_size, bar.window_size, bar.position = height, rows, self.scroll_y

    def scroll_to(
        self,
        x: float | None = None,
        y: float | None = None,
        *,
        animate: bool = True,
        speed: float | None = None,
        duration: float | None = None,
        easing: EasingFunction | str | None = None,
        force: bool = False,
        on_complete: CallbackType | None = None,
        level: AnimationLevel = "basic",
        immediate: bool = False,
    ) -> None:
        """Scroll at once: an animation would go on to a place that is no longer there."""
        del animate, speed, duration, easing, level
        super().scroll_to(x, y, animate=False, force=force, on_complete=on_complete, immediate=immediate)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of a part of the widget: there are no borders and no padding to work out, line by line."""
        width, rows = self.scrollable_content_region.size
        filters = self.get_line_filters()
        background = self.background_colors[1]
        whole = crop.column_span == (0, width)
        strips: list[Strip] = []
        for y in crop.line_range:
            strip = self.paint_line(y, width, rows)
            for line_filter in filters:
                strip = strip.apply_filter(line_filter, background)
            strips.append(strip if whole else strip.crop(*crop.column_span))
        return strips

    def render_line(self, y: int) -> Strip:
        """Line `y` of the screen."""
        return self.paint_line(y, *self.scrollable_content_region.size)

"""Rows -> strips: style names become the theme's styles, once, and what was painted is kept."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from nanochat.ui.rows import Row

#: Under this name a clickable run keeps what it asks for in its style's metadata.
ACTION = "transcript_action"
MOST_KEPT = 2000
#: Cells left of the text (bar and blank) and right of it.
GUTTER, MARGIN = 2, 1


class RowPainter:
    """Paints rows with the component styles of a widget, which are called `<prefix>--<name>`."""

    def __init__(self, widget: Widget, prefix: str) -> None:
        self._widget = widget
        self._prefix = prefix
        self._styles: dict[str, Style] = {}
        self._strips: dict[tuple[int, str, int], tuple[Row, Strip]] = {}

    def clear(self) -> None:
        """The theme has changed."""
        self._styles.clear()
        self._strips.clear()

    def style(self, names: str) -> Style:
        """The style of one or more names, each on top of the ones before."""
        found = self._styles.get(names)
        if found is None:
            background = self._widget.background_colors[1]
            color = self._widget.styles.color
            text_style = Style()
            for name in names.split():
                styles = self._widget.get_component_styles(f"{self._prefix}--{name}")
                if styles.has_rule("background"):
                    background += styles.background
                if styles.has_rule("auto_color") and styles.auto_color:
                    color = background.get_contrast_text(styles.color.a)
                elif styles.has_rule("color"):
                    color = styles.color
                text_style += styles.text_style
            found = Style.from_color((background + color).rich_color, background.rich_color) + text_style
            self._styles[names] = found
        return found

    def strip(self, row: Row, gutter: str, width: int) -> Strip:
        """A row with its gutter, `width` cells wide. `gutter` is the style of the bar left of it; "" for none."""
        key = (id(row), gutter, width)
        kept = self._strips.get(key)
        if kept is not None and kept[0] is row:
            return kept[1]
        if len(self._strips) >= MOST_KEPT:
            self._strips.clear()
        strip = self._paint(row, gutter, width)
        self._strips[key] = (row, strip)
        return strip

    def badge(self, strip: Strip, lines: int, width: int) -> Strip:
        """The last row of the screen with a word at its end on how many lines have come below it."""
        text = f" ↓ {lines:,} new line{'s' if lines != 1 else ''} · End "
        word = Segment(text, self.style("badge") + Style.from_meta({ACTION: ("follow", "")}))
        start = max(0, width - len(text) - MARGIN)
        return Strip.join(
            [strip.crop(0, start), Strip([word], len(text)), strip.crop(start + len(text), width)]
        )

    def _paint(self, row: Row, gutter: str, width: int) -> Strip:
        fill, blank = self.style(row.fill), self.style("")
        edge = fill if row.full else blank
        segments = [
            Segment("█" if gutter == "cursor" else "▌", edge + self.style(gutter))
            if gutter
            else Segment(" ", edge),
            Segment(" ", edge),
        ]
        used = 2
        for text, names, action in row.runs:
            style = self.style(names)
            if action is not None:
                style += Style.from_meta({ACTION: action})
            segments.append(Segment(text, style))
            used += cell_len(text)
        if row.width + 2 > used:
            segments.append(Segment(" " * (row.width + 2 - used), fill))
            used = row.width + 2
        if used < width:
            segments.append(Segment(" " * (width - used), blank))
        return Strip(segments, max(used, width)).crop(0, width)

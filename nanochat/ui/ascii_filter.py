"""For terminals without UTF-8: every line of the screen in ASCII, cell for cell."""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("─═╌╍┄┅┈┉╴╶╸╺▁▔⎯–—·", "-"),
        "━": "=",
        **dict.fromkeys("│┃║‖▏▎▍▕▐▌┆┇┊┋", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┣┫┳┻╋╔╗╚╝╠╣╦╩╬", "+"),
        **dict.fromkeys("█▉▊▋▇▆▅▓▒", "#"),
        **dict.fromkeys("▄▃▂▀░", "="),
        **dict.fromkeys("•∙●◆■▪★", "*"),
        **dict.fromkeys("○◇□▫◌", "o"),
        **dict.fromkeys("“”„", '"'),
        **dict.fromkeys("‘’‚", "'"),
        **dict.fromkeys("▶▸›→", ">"),
        **dict.fromkeys("◀◂‹←", "<"),
        **dict.fromkeys("▲▴↑", "^"),
        **dict.fromkeys("▼▾↓", "v"),
        "…": "~", "✓": "x", "✗": "!", "×": "x", "≈": "~", "\N{NO-BREAK SPACE}": " ",
    }
)  # fmt: skip


@lru_cache(4096)
def ascii_text(text: str) -> str:
    """`text` in ASCII, as many cells wide: drawing signs by their likes, other characters by `?`."""
    if text.isascii():
        return text
    plain = text.translate(_PLAIN)
    return "".join(char if char.isascii() else "?" * cell_len(char) for char in plain)


class AsciiFilter(LineFilter):
    """Replaces what the terminal cannot show, last, so no widget needs to know."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same line in ASCII."""
        return [
            segment if segment.control else Segment(ascii_text(segment.text), segment.style)
            for segment in segments
        ]

"""Terms and what they mean, in two columns that wrap with the width."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from rich.cells import cell_len
from textual.content import Content

from nanochat.sanitize import sanitize_line
from nanochat.ui.widgets.fitted_lines import FittedLines

Entry = tuple[str, str]
"""A term and its meaning; an empty meaning makes the term a heading."""


class Definitions(FittedLines):
    """A list of entries; as high as it needs to be."""

    def __init__(self, entries: Sequence[Entry], *, term_width: int = 27) -> None:
        super().__init__()
        self._entries = [(sanitize_line(term), sanitize_line(meaning)) for term, meaning in entries]
        self._term_width = term_width

    def lines(self, width: int) -> list[Content]:
        """The entries: headings, and terms with what they mean."""
        terms = [cell_len(term) + 2 for term, meaning in self._entries if meaning]
        widest = max((cells for cells in terms if cells <= self._term_width), default=self._term_width)
        column = min(widest, max(width * 2 // 5, 8))
        lines: list[Content] = []
        for term, meaning in self._entries:
            if not meaning:
                lines += [Content("")] if lines else []
                lines.append(Content.styled(term, "bold $primary"))
                continue
            first = term if cell_len(term) < column else ""
            if not first:
                lines.append(Content.styled(term, "bold"))
            for number, line in enumerate(wrap(meaning, max(width - column, 16)) or [""]):
                head = first if number == 0 else ""
                lines.append(Content.assemble((head + " " * (column - cell_len(head)), "bold"), line))
        return lines

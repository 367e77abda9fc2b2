"""The rows of a run as a table that leaves out its least important columns until it fits."""

from __future__ import annotations

from rich.cells import cell_len
from textual.content import Content
from textual.geometry import Size

from nanochat.bench import Row, Run
from nanochat.benchmarks.report import cells
from nanochat.sanitize import sanitize_line
from nanochat.ui.cells import cut, fixed
from nanochat.ui.widgets.fitted_lines import FittedLines

_GAP = 2
_BAR = 10
_BARS = " " * _BAR  # the column of bars has no name
_ORDER = (
    "test", "median", "engine", "anew ms", "reached", "bound", "quartiles", _BARS, "n", "ceiling", "TTFT p50/p95 ms", "ITL p50/p99 ms",
    "tok/s each", "J/token", "memory GiB", "in collectives",
)  # fmt: skip
_PLACE = (
    "test", "engine", "median", "quartiles", "n", "anew ms", _BARS, "reached", "bound", "ceiling", "TTFT p50/p95 ms", "ITL p50/p99 ms",
    "tok/s each", "J/token", "memory GiB", "in collectives",
)  # fmt: skip
_LEFT = {"test", "engine", "bound", _BARS}
_STYLES = {
    **dict.fromkeys(("quartiles", "n", "ceiling", "bound", "memory GiB", "engine"), "$foreground 60%"),
    **dict.fromkeys(("median", "reached"), "bold"),
    _BARS: "$primary",
}
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class ResultTable(FittedLines):
    """A run's rows; as high as it needs to be."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[Row, dict[str, str]]] = []

    def show(self, run: Run | None) -> None:
        """Show the rows of this run."""
        rows = run.rows if run is not None else ()
        self._rows = [(row, {name: sanitize_line(text) for name, text in cells(row).items()}) for row in rows]
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A row for each, and the head."""
        return len(self._rows) + 1 if self._rows else 0

    def lines(self, width: int) -> list[Content]:
        """The head and a line for each row."""
        if not self._rows:
            return []
        widths = self._fitting(width)
        head = [fixed(name, widths[name], right=name not in _LEFT) for name in widths]
        lines = [Content.styled((" " * _GAP).join(head), "bold $foreground 60%")]
        lines += [self._line(row, found, widths, width) for row, found in self._rows]
        return lines

    def _fitting(self, width: int) -> dict[str, int]:
        """The columns that fit, in their places, and how wide each is."""
        engines = len({row.engine for row, _ in self._rows})
        widths: dict[str, int] = {}
        for name in _ORDER:
            texts = [self._text(row, found, name) for row, found in self._rows]
            needed = max([len(name), *(cell_len(text) for text in texts)])
            wanted = any(texts) and (name != "engine" or engines > 1)
            if name == "test":
                needed = min(needed, max(width - 14, 8))
            if wanted and sum(widths.values()) + _GAP * len(widths) + needed <= width:
                widths[name] = needed
        return {name: widths[name] for name in _PLACE if name in widths}

    def _text(self, row: Row, found: dict[str, str], name: str) -> str:
        if name == _BARS:
            return _bar(row.fraction) if row.fraction is not None else ""
        return found[name] if row.samples or name in ("test", "engine") else ""

    def _line(self, row: Row, found: dict[str, str], widths: dict[str, int], width: int) -> Content:
        parts: list[tuple[str, str]] = []
        for name in widths:
            if parts:
                parts.append((" " * _GAP, ""))
            if name == "median" and not row.samples:
                used = sum(cell_len(text) for text, _ in parts)
                said = row.error or row.skipped or "not finished"
                parts.append(
                    (cut(sanitize_line(said), width - used), "$error" if row.error else "dim italic")
                )
                break
            cell = fixed(self._text(row, found, name), widths[name], right=name not in _LEFT)
            parts.append((cell, _STYLES.get(name, "")))
        return Content.assemble(*parts)


def _bar(share: float) -> str:
    eighths = round(min(max(share, 0.0), 1.0) * _BAR * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR, "·")

"""The views of the benchmark's screen: their names and order, where each stands, and what the keys do there."""

from __future__ import annotations

from typing import Literal

View = Literal["measure", "run", "kept", "compare"]
ORDER: tuple[View, ...] = ("measure", "run", "kept")
PLACES: dict[View, tuple[str, str]] = {  # what the switcher shows, and what has the keys then
    "measure": ("bench-measure", "#bench-presets"),
    "run": ("bench-run", "#bench-run"),
    "kept": ("bench-kept-box", "#bench-kept"),
    "compare": ("bench-compare", "#bench-compare"),
}
_TITLES: dict[View, str] = {
    "measure": "1 Measure",
    "run": "2 Results",
    "kept": "3 Kept runs",
    "compare": "Comparison",
}
_HINTS: dict[View, tuple[str, ...]] = {  # what matters most comes first: a narrow screen shows fewer
    "measure": ("Enter start", "Esc back", "Tab models", "+ - repeats", "t against Transformers"),
    "run": ("Esc back", "y copy", "e export", "↑↓ scroll", "←→ views"),
    "kept": ("Enter show", "Space mark", "c compare", "Esc back", "y copy", "e export"),
    "compare": ("Esc back", "y copy", "e export", "↑↓ scroll"),
}
_RUNNING = ("Esc stops and keeps what was finished", "↑↓ scroll")


def names_at(view: View) -> tuple[list[str], int]:
    """The names to show while one view is, and which of them is its own: the comparison comes and goes."""
    views = (*ORDER, "compare") if view == "compare" else ORDER
    return [_TITLES[each] for each in views], views.index(view)


def hint(view: View, width: int, *, running: bool) -> str:
    """What the keys do, as much of it as fits on one row."""
    hints = _RUNNING if running else _HINTS[view]
    while len(hints) > 1 and len(" · ".join(hints)) > width:
        hints = hints[:-1]
    return " · ".join(hints)

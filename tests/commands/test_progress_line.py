"""The line of progress: all its figures at every width of a terminal."""

from __future__ import annotations

import io

import pytest

from nanochat.commands.progress_line import ProgressLine
from nanochat.modelhub.starter import StarterProgress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
def test_figures_are_never_cut_off_and_the_line_never_wraps(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    ProgressLine(terminal).starter(
        StarterProgress("fetching", 40_200_000, 92_900_000, speed=35_300_000.0, seconds_left=12.0)
    )
    line = terminal.getvalue().removeprefix("\r\x1b[K")
    assert line.endswith("40.2/92.9 MB  35.3 MB/s  0:12 left")
    assert len(line) < width
    assert ("[" in line) == (width >= 80)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_the_name_of_a_folder_steers_no_terminal(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    terminal = Terminal()
    ProgressLine(terminal).fraction("a\x1b]0;pwned\x07\nmodel: reading weights", 0.5)
    line = terminal.getvalue().removeprefix("\r\x1b[K").rstrip("\n")
    assert "model: reading weights" in line
    assert line.isprintable()

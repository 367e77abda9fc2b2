"""The line on stderr on which a benchmark's progress is shown."""

from __future__ import annotations

import sys

import click

from nanochat.bench import Progress, Row
from nanochat.benchmarks.report import duration, number
from nanochat.commands.progress_line import redraws
from nanochat.sanitize import sanitize_line


class BenchLine:
    """One line on stderr that is overwritten; where that cannot be, only what is kept is printed."""

    def __init__(self) -> None:
        self._shown = redraws(sys.stderr)

    def show(self, text: str) -> None:
        """Put it in place of what is there."""
        if self._shown:
            click.echo(f"\r\x1b[2K{sanitize_line(text)}", nl=False, err=True)

    def progress(self, progress: Progress) -> None:
        """How far a test is, and how long it and the run will take."""
        value = f", {number(progress.value)} {progress.unit}" if progress.value is not None else ""
        left = _left(progress)
        if progress.rate is not None:
            value = f", now {number(progress.rate)} tok/s"
        what = f"{progress.repeat}/{progress.repeats}" if progress.repeat else "warm-up"
        self.show(
            f"[{progress.case}/{progress.cases}] {progress.test} ({progress.engine}): {what}{value}{left}"
        )

    def keep(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        click.echo(sanitize_line(text), err=True)

    def clear(self) -> None:
        """Leave nothing there."""
        self.show("")


def row_line(row: Row) -> str:
    """What a row tells when it is finished."""
    if not row.samples:
        return f"{row.test} ({row.engine}): {row.error or row.skipped or 'not finished'}"
    reached = (
        f", {100 * row.fraction:.1f} % of {number(row.ceiling or 0)}" if row.fraction is not None else ""
    )
    return f"{row.test} ({row.engine}): {number(row.summary.median)} {row.unit}{reached}"


def _left(progress: Progress) -> str:
    if progress.run_seconds_left is not None:
        return f", about {duration(progress.run_seconds_left)} left"
    if progress.seconds_left is not None:
        return f", about {duration(progress.seconds_left)} left in this test"
    return ""

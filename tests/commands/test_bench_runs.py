"""What `nanochat bench` prints of a run that came from elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import click
import pytest
from bench_runs import quick
from click.testing import CliRunner

from nanochat.benchmarks.storage import Results
from nanochat.commands import bench_line
from nanochat.commands.bench_line import BenchLine
from nanochat.commands.bench_runs import compare, show

HOSTILE = "a\x1b]0;pwned\x07\x1b[2Jmodel\u202e"


def hostile_run(folder: Path) -> str:
    """A file with a run whose every name wants to steer the terminal."""
    run = quick()
    rows = [replace(row, test=f"{row.test}{HOSTILE}", engine=HOSTILE) for row in run.rows]
    rows.append(replace(rows[0], test="failed", samples=(), error=HOSTILE))
    named = replace(
        run, rows=tuple(rows), preset=HOSTILE, model=run.model | {"name": HOSTILE}, environment=run.environment | {"device": HOSTILE}
    )  # fmt: skip
    Results(folder).keep(named)
    return str(next(folder.glob("*.json")))


@pytest.mark.parametrize("kind", ["text", "plot", "markdown", "json", "csv"])
def test_a_file_with_a_run_steers_no_terminal(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hostile_run(tmp_path)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)
    shown = CliRunner().invoke(show, [path, "--format", kind])
    assert shown.exit_code == 0, shown.output
    assert "model" in shown.output
    for raw in ("\x1b]", "\x1b[2J", "\x07", "\u202e"):
        assert raw not in shown.output


def test_a_comparison_with_such_a_file_steers_none_either(tmp_path: Path) -> None:
    path = hostile_run(tmp_path)
    shown = CliRunner().invoke(compare, [path, path])
    assert shown.exit_code == 0, shown.output
    assert "model" in shown.output and "\x1b" not in shown.output and "\x07" not in shown.output


def test_nor_does_what_a_measured_engine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(click, "echo", lambda text="", **_: said.write(f"{text}\n"))
    monkeypatch.setattr(bench_line, "redraws", lambda stream: True)
    line = BenchLine()
    line.show(HOSTILE)
    line.keep(HOSTILE)
    assert "model" in said.getvalue()
    assert "".join(said.getvalue().split("\r\x1b[2K")).replace("\n", "").isprintable()

"""A run of the benchmark as the command line gives it: a table, pictures in the terminal, JSON, a file with the pictures."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from nanochat.bench import Run
from nanochat.benchmarks.report import header, table
from nanochat.disk_faults import explain
from nanochat.errors import NanochatError
from nanochat.sanitize import sanitize, sanitize_line


def _new_file(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """A file that can be written: asked before anything is measured."""
    if path is None:
        return None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise click.BadParameter(f"there is no folder {folder}")
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder: give a file's name")
    try:
        if path.is_file():
            path.open("ab").close()
        elif not path.exists():  # a pipe is not opened twice
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(b"x")  # a full disk takes a file, and nothing in it
    except OSError as error:
        raise click.BadParameter(explain(error, path)) from error
    return path


PLOT = click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", callback=_new_file, help="Draw it as SVG as well."
)  # fmt: skip


def print_run(run: Run, *, pictures: bool) -> None:
    """Header and table; on a terminal the pictures too."""
    for line in (*header(run), "", *table(run)):
        click.echo(sanitize_line(line))
    if not pictures:
        return
    from nanochat.benchmarks.charts import charts_of
    from nanochat.benchmarks.text_plot import plain

    columns = min(shutil.get_terminal_size().columns, 120)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    for chart in charts_of(run):
        click.echo("\n" + sanitize("\n".join(plain(chart, columns, 18, ascii_only=not unicode))))


def print_json(value: dict[str, Any]) -> None:
    """For programs: one line. A terminal gets no raw characters."""
    click.echo(json.dumps(value, ensure_ascii=sys.stdout.isatty(), allow_nan=False))


def draw(run: Run, path: Path) -> None:
    """The pictures, as an SVG."""
    from nanochat.benchmarks.plot import svg

    try:
        path.write_text(svg(run), encoding="utf-8")
    except OSError as error:
        raise NanochatError(f"the picture is not drawn: {explain(error, path)}") from error

"""`nanochat bench list`, `show` and `compare`: the runs that were kept."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nanochat.benchmarks.report import as_csv, comparison_lines, markdown
from nanochat.benchmarks.result import DamagedResult
from nanochat.benchmarks.storage import Results
from nanochat.commands.bench_output import PLOT, draw, print_json, print_run
from nanochat.sanitize import sanitize, sanitize_line


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(as_json: bool) -> None:
    """The kept runs, oldest first."""
    results = Results.find()
    rows = [_row(results, name) for name in results.names()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("No run is kept yet: `nanochat bench` makes one.")
    for row in rows:
        if row["problem"] is not None:
            click.echo(sanitize_line(f"{row['id']}  {row['problem']}"))
            continue
        number = f"{row['rows']} {'row' if row['rows'] == 1 else 'rows'}"
        partial = " (partial)" if row["partial"] else ""
        click.echo(sanitize_line(f"{row['id']}  {row['preset']}  {row['model']}  {number}{partial}"))


def _row(results: Results, name: str) -> dict[str, Any]:
    """What the list tells of a run; of a damaged one, why it cannot be read."""
    try:
        run = results.load(name)
    except DamagedResult as error:
        known = {"preset": None, "model": None, "started": None, "rows": None, "partial": None}
        return {"id": name, **known, "problem": str(error)}
    facts = {"preset": run.preset, "model": run.model["name"], "started": run.started}
    return {"id": name, **facts, "rows": len(run.rows), "partial": run.partial, "problem": None}


@click.command(short_help="A kept run: its id, `last`, `last-1`, or a file.")
@click.argument("name", default="last")
@click.option(
    "--format", "kind", type=click.Choice(["text", "plot", "markdown", "json", "csv"]), default="text",
    show_default=True, help="How to print it; plot is text with pictures.",
)  # fmt: skip
@click.option("--json", "kind", flag_value="json", help="The same as --format json.")
@PLOT
def show(name: str, kind: str, plot: Path | None) -> None:
    """A kept run: its id or the beginning of it, `last`, `last-1`, or a file."""
    run = Results.find().load(name)
    if kind == "markdown":
        click.echo(sanitize(markdown(run)), nl=False)
    elif kind == "json":
        print_json(run.as_dict())
    elif kind == "csv":
        table = as_csv(run)
        click.echo(sanitize(table) if sys.stdout.isatty() else table, nl=False)
    else:
        print_run(run, pictures=sys.stdout.isatty() or kind == "plot")
    if plot is not None:
        draw(run, plot)


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(first: str, second: str, as_json: bool) -> None:
    """Whether SECOND differs from FIRST by more than noise, row by row."""
    from nanochat.benchmarks.comparison import compare as compare_runs

    results = Results.find()
    comparison = compare_runs(results.load(first), results.load(second))
    if as_json:
        print_json(asdict(comparison))
        return
    for line in comparison_lines(comparison):
        click.echo(sanitize_line(line))

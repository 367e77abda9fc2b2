"""`nanochat bench list`, `show` and `compare`: the runs that were kept."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from nanochat.benchmarks.report import as_csv, comparison_lines, markdown
from nanochat.benchmarks.storage import Results
from nanochat.commands.bench_output import PLOT, draw, print_json, print_run


@click.command("list")
def list_runs() -> None:
    """The kept runs, oldest first."""
    results = Results.find()
    for name in results.names():
        run = results.load(name)
        partial = " (partial)" if run.partial else ""
        click.echo(f"{name}  {run.preset}  {run.model['name']}  {len(run.rows)} rows{partial}")


@click.command()
@click.argument("name", default="last")
@click.option(
    "--format", "kind", type=click.Choice(["text", "plot", "markdown", "json", "csv"]), default="text"
)
@PLOT
def show(name: str, kind: str, plot: Path | None) -> None:
    """A kept run: its id or the beginning of it, `last`, `last-1`, or a file."""
    run = Results.find().load(name)
    if kind == "markdown":
        click.echo(markdown(run), nl=False)
    elif kind == "json":
        print_json(run.as_dict())
    elif kind == "csv":
        click.echo(as_csv(run), nl=False)
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
        click.echo(line)

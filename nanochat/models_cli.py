"""`nanochat models`: what is on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from nanochat import hub, starter
from nanochat.hub import LocalModel
from nanochat.sanitize import sanitize_line
from nanochat.settings import Settings


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """The models on this machine. Without a command they are listed."""
    if context.invoked_subcommand is None:
        print_models(as_json)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the models on this machine; a star marks the default."""
    print_models(as_json)


def print_models(as_json: bool) -> None:
    """Print every model that is here, as a table or as JSON."""
    found = hub.local_models()
    default = Settings.load().default_model or starter.NAME
    if as_json:
        rows = [model.as_dict() | {"default": model.name == default} for model in found]
        click.echo(json.dumps(rows, indent=2))
        return
    for line in table(found, default):
        click.echo(line)
    if not any(model.source == "starter" for model in found):
        click.echo(f"{starter.NAME} (the starter model) is fetched when it is first used: `nanochat run`")


def table(found: Sequence[LocalModel], default: str) -> list[str]:
    """Aligned lines: a star for the default, name, size, numbers, context, folder."""
    rows = [
        (
            "*" if model.name == default else "",
            sanitize_line(model.name),
            size(model.size) + (f" ({model.missing} files missing)" if model.missing else ""),
            sanitize_line(model.dtype) or "?",
            f"{model.context:,}" if model.context else "?",
            sanitize_line(str(model.path)),
        )
        for model in found
    ]
    if not rows:
        return []
    rows.insert(0, ("", "NAME", "SIZE", "DTYPE", "CONTEXT", "FOLDER"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [" ".join([f"{row[0]:{widths[0]}}", *_cells(row, widths), row[5]]).strip("\n") for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        f"{row[1]:<{widths[1]}} ",
        f"{row[2]:>{widths[2]}} ",
        f"{row[3]:<{widths[3]}} ",
        f"{row[4]:>{widths[4]}} ",
    ]


def size(count: int) -> str:
    """Bytes for people: `269 MB`, `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

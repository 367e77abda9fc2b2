"""`nanochat models`: what is here, what could be, and getting, checking and removing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from nanochat import hub
from nanochat.commands.count import Count
from nanochat.commands.misplaced import refuse_misplaced
from nanochat.commands.model_names import full_name, on_this_machine
from nanochat.commands.models_json import download_row, listing_row, print_json, starter_row
from nanochat.commands.progress_line import redraws
from nanochat.errors import InvalidModel, UsageError
from nanochat.hub import cache_folder
from nanochat.modelhub import catalog, starter
from nanochat.modelhub.download import Download, State
from nanochat.modelhub.fit import Ruler
from nanochat.modelhub.inventory import Inventory
from nanochat.modelhub.text import downloads_table, fit_row, here_table, listing_table, size
from nanochat.sanitize import sanitize_line
from nanochat.settings import Paths, Settings

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_REVISION = "A branch, a tag or a commit; by default main."


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """Find, fetch, check and remove models. Without a command they are listed."""
    if context.invoked_subcommand is not None:
        refuse_misplaced(context)
        return
    print_models(as_json)


@models.command("list", short_help="List the models here, and those recommended.")
@JSON
def list_models(as_json: bool) -> None:
    """List what is on this machine, what is unfinished, and what is recommended. Needs no network."""
    print_models(as_json)


def print_models(as_json: bool) -> None:
    """Print the three groups as tables, or as JSON: one row a model, with its `group`."""
    paths = Paths.find()
    found = Inventory.take(paths, Settings.load(paths.settings_file))
    here, listed, ruler = found.here, found.recommended, found.ruler
    unfinished = _unfinished(paths)
    if as_json:
        rows: list[dict[str, Any]] = [{"group": "here", **one.as_dict()} for one in here]
        rows += [{"group": "unfinished", **download_row(one)} for one in unfinished]
        rows += [{"group": "recommended", **listing_row(one), **fit_row(fits)} for one, fits in listed]
        return print_json(rows)
    _print_lines("On this machine:", here_table(here))
    if not any(one.model.source == "starter" for one in here):
        when = "when it is first used (`nanochat run`), or by `nanochat models pull starter`"
        click.echo(f"{starter.NAME} (the starter model) is fetched {when}")
    if unfinished:
        _print_lines("\nUnfinished (`nanochat models pull` goes on with them):", downloads_table(unfinished))
    _print_lines(
        f"\nRecommended (fit: {ruler.memory.name}, free now):",
        listing_table([(one, fits.text if fits else "?") for one, fits in listed]),
    )


@models.command(short_help="Search the hub for chat models that run here.")
@click.argument("text", nargs=-1)
@click.option(
    "--limit", type=Count(1, 100), metavar="N", default=20, show_default=True, help="Show at most this many."
)
@JSON
def search(text: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Search the hub for chat models that run here, most downloaded first."""
    found = catalog.search(" ".join(text), limit)
    if not (found or as_json):
        click.echo(f"nothing on the hub matches {' '.join(text)!r} and runs in this engine")
        return
    paths = Paths.find()
    ruler = Ruler.of(paths, Settings.load(paths.settings_file))
    if as_json:
        return print_json(
            [{**listing_row(one), **fit_row(ruler.fit(one.repo_id, one.shape))} for one in found]
        )
    for line in listing_table([(one, ruler.text(one.repo_id, one.shape, one.parameters)) for one in found]):
        click.echo(line)
    for reason in dict.fromkeys(one.only_weights for one in found if one.only_weights):
        names = [one.repo_id for one in found if one.only_weights == reason]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        click.echo(sanitize_line(f"{shown}: {reason}"))
    click.echo("`nanochat models show NAME` says whether one fits, `nanochat models pull NAME` fetches it")


@models.command(short_help="Show a model's facts, and whether it fits.")
@click.argument("name")
@click.option("--revision", metavar="NAME", default="main", help=_REVISION)
@JSON
def show(name: str, revision: str, as_json: bool) -> None:
    """Show the facts of a model, here or on the hub, and the arithmetic of whether it fits."""
    from nanochat.commands.models_show import facts_of

    paths = Paths.find()
    facts = facts_of(name, revision, paths)
    if as_json:
        return print_json(facts.as_dict())
    for line in facts.lines():
        click.echo(sanitize_line(line))


@models.command(short_help="Fetch models, or go on with what is unfinished.")
@click.argument("names", nargs=-1)
@click.option("--revision", metavar="NAME", help=_REVISION)
@JSON
def pull(names: tuple[str, ...], revision: str | None, as_json: bool) -> None:
    """Fetch models, `starter` too; without a name go on with what is unfinished.

    Ctrl-C stops and keeps every byte: the same command goes on inside the file.
    """
    from nanochat.commands.pull import check_has_revisions, pull_all, pull_starter

    paths = Paths.find()
    check_has_revisions(names, revision)
    from_hub = [(full_name(name), revision or "main") for name in names if not starter.is_named(name)]
    rows = [starter_row(pull_starter(paths))] if any(map(starter.is_named, names)) else []
    ended = pull_all(from_hub, paths) if from_hub or not names else ()
    rows += [download_row(one) for one in ended]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            if row["state"] == State.READY:
                click.echo(sanitize_line(f"{row['name']} is ready: {row['path']}"))
        if not rows:
            click.echo("nothing is unfinished; `nanochat models pull NAME` fetches a model")
    errors = [one.error for one in ended if one.error is not None]
    for error in errors[1:]:
        click.echo(f"nanochat: {sanitize_line(str(error))}", err=True)
    if errors:
        raise errors[0]


@models.command(short_help="Compare a model's files with the hub's list.")
@click.argument("name")
@click.option(
    "--local", is_flag=True, help="Compare with what was recorded at the download; do not ask the hub."
)
@JSON
def verify(name: str, local: bool, as_json: bool) -> None:
    """Hash every file of a model and compare with the hub's list."""
    from nanochat.modelhub.verification import verify as check

    paths = Paths.find()
    model = on_this_machine(name, paths)
    shown = redraws(sys.stderr) and not as_json

    def seen(done: int, total: int) -> None:
        if shown:
            click.echo(f"\r{done / (total or 1):4.0%} of {size(total)}", nl=False, err=True)

    found = check(model, paths.data, ask_hub=not local, seen=seen)
    if shown:
        click.echo("\r\x1b[K", nl=False, err=True)
    if as_json:
        print_json(asdict(found) | {"good": found.good})
    else:
        for word, names in (
            ("damaged", found.damaged),
            ("missing", found.missing),
            ("unknown", found.unknown),
        ):
            for file in names:
                click.echo(sanitize_line(f"{word}: {file}"))
        verdict = (
            "is whole"
            if found.good
            else "is not whole"
            if found.damaged or found.missing
            else "cannot be checked"
        )
        text = (
            f"{found.name} {verdict}: {len(found.checked)} files, {size(found.size)}, against {found.against}"
        )
        click.echo(sanitize_line(text))
    if found.damaged or found.missing:
        raise InvalidModel(
            f"{found.name} is damaged: `nanochat models pull {found.name}` fetches only what is wrong"
        )


@models.command(short_help="Remove a model, or what downloads left.")
@click.argument("name", required=False)
@click.option("--revision", metavar="COMMIT", help="Only the version whose commit begins so.")
@click.option("--leftovers", is_flag=True, help="Remove what unfinished downloads left.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@JSON
def rm(name: str | None, revision: str | None, leftovers: bool, yes: bool, as_json: bool) -> None:
    """Remove a model from this machine, or what unfinished downloads left."""
    from nanochat.commands import models_rm

    paths = Paths.find()
    if leftovers == (name is not None):
        raise UsageError("give a model's name, or --leftovers")
    ask = models_rm.Ask(yes=yes, quiet=as_json)
    if name is None:
        row = models_rm.remove_leftovers(paths, ask)
    elif (unfinished := models_rm.unfinished_of(name, paths)) is not None:
        row = models_rm.cancel(unfinished, paths, ask)
    else:
        row = models_rm.remove_model(on_this_machine(name, paths), revision, paths, ask)
    if as_json:
        print_json(row)


@models.command(short_help="Make a model the default.")
@click.argument("name")
@JSON
def use(name: str, as_json: bool) -> None:
    """Make a model on this machine the default; the starter model is fetched where it is not here yet."""
    from nanochat.commands.progress_line import ProgressLine

    paths, line = Paths.find(), ProgressLine()
    try:
        model = hub.resolve(name, paths=paths, progress=line.starter)
    finally:
        line.erase()
    chosen = {"starter": hub.STARTER, "cache": model.name, "folder": str(model.path)}[model.source]
    Settings.change(paths.settings_file, default_model=chosen)
    if as_json:
        return print_json({"default": chosen, "path": str(model.path)})
    click.echo(sanitize_line(f"{model.name} is the default model now"))


def _unfinished(paths: Paths) -> tuple[Download, ...]:
    from nanochat.modelhub.downloads import Downloads

    queue = Downloads(paths.data, cache_folder())
    try:
        return queue.restore(start=False)
    finally:
        queue.close()


def _print_lines(title: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo(title)
    for line in lines:
        click.echo(line)

"""Removing in a terminal: say what goes, what stays and what that frees; ask; then do it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import click

from nanochat.errors import UsageError
from nanochat.hub import LocalModel, cache_folder
from nanochat.modelhub.download import Download
from nanochat.modelhub.downloads import Downloads
from nanochat.modelhub.inventory import leftovers
from nanochat.modelhub.removal import plan, remove
from nanochat.modelhub.text import columns, size
from nanochat.sanitize import sanitize_line
from nanochat.settings import Paths, Settings
from nanochat.transfer.journal import Journal
from nanochat.transfer.leftovers import clean


@dataclass(frozen=True, slots=True)
class Ask:
    """How consent is given: by `--yes`, or by an answer in the terminal."""

    yes: bool
    quiet: bool

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.quiet:
            click.echo(sanitize_line(text))

    def consents(self, question: str) -> bool:
        """Whether the user agrees. UsageError where nobody can be asked."""
        if self.yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError("this removes files and there is no terminal to ask in: add --yes")
        return click.confirm(question, default=False, err=True)


def remove_model(model: LocalModel, commit: str | None, paths: Paths, ask: Ask) -> dict[str, Any]:
    """Remove a model, or one version of it."""
    planned = plan(model, cache_folder(), commit)
    for gone in planned.commits:
        ask.say(f"{planned.name} at {gone[:12]}")
    ask.say(f"frees {size(planned.freed)} in {planned.path}")
    if planned.shared:
        stays = ", ".join(one[:12] for one in planned.kept_commits) or "other models"
        ask.say(f"{size(planned.shared)} stay: {stays} use them too")
    chosen = Settings.load(paths.settings_file).default_model
    was_default = chosen in (model.name, str(model.path)) and not planned.kept_commits
    if was_default:
        ask.say("it is the default model; the starter model will be")
    row = {
        "name": planned.name,
        "commits": planned.commits,
        "kept_commits": planned.kept_commits,
        "freed": planned.freed,
        "shared": planned.shared,
    }
    if not ask.consents(f"Remove {planned.name}?"):
        return row | {"removed": False}
    remove(planned, cache_folder(), paths.data)
    if was_default:
        Settings.change(paths.settings_file, default_model=None)
    ask.say(f"{planned.name} is removed")
    return row | {"removed": True}


def remove_leftovers(paths: Paths, ask: Ask) -> dict[str, Any]:
    """Remove what unfinished downloads left and nobody goes on with."""
    found = leftovers(paths)
    total = sum(one.size for one in found)
    row = {
        "leftovers": [
            {"name": one.repo_id, "path": str(one.path), "size": one.size, "what": one.what} for one in found
        ],
        "freed": total,
    }
    if not found:
        ask.say("there are no leftovers")
        return row | {"removed": False}
    for line in columns(
        [[one.repo_id, size(one.size), one.what, one.path.name[:16]] for one in found], right=(1,)
    ):
        ask.say(line)
    if not ask.consents(f"Remove these {len(found)} leftovers ({size(total)})?"):
        return row | {"removed": False}
    freed = clean(cache_folder(), found)
    ask.say(f"{size(freed)} freed")
    return row | {"freed": freed, "removed": True}


def unfinished_of(name: str, paths: Paths) -> Download | None:
    """The unfinished download of a model of which nothing whole is here."""
    entries = Journal(paths.data / "downloads").entries()
    ids = [entry.id for entry in entries if entry.repo_id.lower() == name.lower()]
    whole = any((cache_folder() / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))
    if not ids or whole:
        return None
    queue = Downloads(paths.data, cache_folder())
    try:
        return next((one for one in queue.restore(start=False) if one.id == ids[0]), None)
    finally:
        queue.close()


def cancel(one: Download, paths: Paths, ask: Ask) -> dict[str, Any]:
    """Give an unfinished download up and remove its parts."""
    ask.say(f"{one.repo_id} is not finished: {size(one.done)} of {size(one.total or 0)} are here")
    row = {"name": one.repo_id, "freed": one.done}
    if not ask.consents("Give it up and remove them?"):
        return row | {"removed": False}
    queue = Downloads(paths.data, cache_folder())
    try:
        queue.restore(start=False)
        queue.cancel(one.id)
        queue.wait(one.id, 60)
    finally:
        queue.close()
    ask.say(f"{one.repo_id} is removed")
    return row | {"removed": True}

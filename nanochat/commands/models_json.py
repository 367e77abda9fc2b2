"""The rows of `nanochat models --json`: the same key for the same thing, whichever command prints it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nanochat.modelhub import starter
from nanochat.modelhub.catalog import Listing
from nanochat.modelhub.download import Download, State


def listing_row(one: Listing) -> dict[str, Any]:
    """A model on the hub."""
    row = asdict(one)
    row["name"] = row.pop("repo_id")
    return row


def download_row(one: Download) -> dict[str, Any]:
    """A download; `path` is the model's folder once it is whole."""
    return {
        "name": one.repo_id,
        "revision": one.revision,
        "commit": one.commit,
        "state": str(one.state),
        "done": one.done,
        "total": one.total,
        "path": str(one.folder) if one.folder else None,
        "note": one.note,
    }


def starter_row(folder: Path) -> dict[str, Any]:
    """The starter model, as a download that is done."""
    total = sum(file.stat().st_size for file in folder.iterdir())
    known = {"name": starter.NAME, "revision": None, "commit": None, "state": str(State.READY)}
    return known | {"done": total, "total": total, "path": str(folder), "note": ""}


def print_json(value: object) -> None:
    """For programs, in ASCII: a terminal may be what reads it."""
    click.echo(json.dumps(value, indent=2))

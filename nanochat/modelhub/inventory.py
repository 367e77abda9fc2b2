"""What there is to choose from without asking the network: models here and recommended ones, each with its fit."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from nanochat import hub
from nanochat.errors import ModelError
from nanochat.hub import LocalModel, cache_folder
from nanochat.modelhub import catalog, starter
from nanochat.modelhub.catalog import Listing
from nanochat.modelhub.fit import Fit, Ruler
from nanochat.modelhub.shape import Shape
from nanochat.modelhub.text import Here
from nanochat.settings import Paths, Settings
from nanochat.transfer.journal import Journal
from nanochat.transfer.leftovers import Leftover, find
from nanochat.transfer.records import Records
from nanochat.transfer.repository import Repository


@dataclass(frozen=True, slots=True)
class Inventory:
    """One look at this machine."""

    here: tuple[Here, ...]
    recommended: tuple[tuple[Listing, Fit | None], ...]
    """Those of the curated list that are not here."""
    ruler: Ruler
    """What they were measured with; it measures others the same way."""
    default: str
    """The default model's name, or its folder."""

    @classmethod
    def take(cls, paths: Paths, settings: Settings, *, held: int = 0) -> Inventory:
        """Look at the disk and at the memory that is free now. Blocks for some milliseconds a model.

        Args:
            held: bytes of a loaded model that makes room when another is chosen.
        """
        ruler = Ruler.of(paths, settings, held=held)
        default = settings.default_model or starter.NAME
        models = hub.local_models(paths)
        own = _own_folder(settings.default_model)
        here = tuple(_here(model, default, paths, ruler) for model in [*models, *own])
        names = {one.model.name for one in here}
        listed = [one for one in catalog.recommended() if one.repo_id not in names]
        return cls(here, tuple((one, ruler.fit(one.repo_id, one.shape)) for one in listed), ruler, default)


def leftovers(paths: Paths) -> list[Leftover]:
    """What unfinished downloads left in the cache, ours and other tools', and nobody goes on with."""
    entries = Journal(paths.data / "downloads").entries()
    return find(cache_folder(), {etag for entry in entries for etag in entry.etags})


def disk_free(folder: Path) -> int:
    """Bytes that are free on the disk that a folder is, or would be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def origin_of(model: LocalModel, paths: Paths) -> tuple[str, bool | None]:
    """(licence, gated), as noted at the download, else as the curated list says; "" and None when not known."""
    if model.source == "starter":
        return "apache-2.0", False
    if model.source == "cache":
        note = Records(paths.data / "verified", Repository(cache_folder(), model.name)).origin(
            model.path.name
        )
        if note is not None:
            return note
        listed = next((one for one in catalog.recommended() if one.repo_id == model.name), None)
        if listed is not None:
            return listed.licence, listed.gated
    return "", None


def _own_folder(name: str) -> list[LocalModel]:
    """The user's own folder, where one is the default model; nothing when it is gone."""
    if not name or not Path(os.path.expanduser(name)).is_absolute():
        return []
    try:
        return [hub.resolve(name)]
    except ModelError:
        return []


def _here(model: LocalModel, default: str, paths: Paths, ruler: Ruler) -> Here:
    shape = Shape.in_folder(model.path)
    licence, gated = origin_of(model, paths)
    named = model.name if model.source != "folder" else str(model.path)
    is_default = default in (named, hub.STARTER) if model.source == "starter" else default == named
    parameters = shape.parameters if shape else None
    return Here(model, is_default, parameters, licence, gated, ruler.fit(model.name, shape))

"""The facts of one model, from this machine or from the hub, with the arithmetic of whether it fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from nanochat.commands.model_names import on_this_machine
from nanochat.errors import ModelNotFound
from nanochat.hub import LocalModel, cache_folder
from nanochat.modelhub import catalog
from nanochat.modelhub.fit import Fit, Ruler
from nanochat.modelhub.inventory import origin_of
from nanochat.modelhub.shape import Shape
from nanochat.modelhub.text import amount, size
from nanochat.settings import Paths, Settings
from nanochat.transfer.headers import dtypes, local_tensors
from nanochat.transfer.records import Records
from nanochat.transfer.repository import COMMIT, Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to know about a model. Sizes in bytes."""

    name: str
    where: str
    """A folder on this machine, or the hub."""
    revision: str | None
    """What was asked for of the hub: a branch, a tag or a commit."""
    commit: str | None
    parameters: int | None
    dtypes: dict[str, int]
    context: int | None
    on_disk: int | None
    download_size: int | None
    files: tuple[tuple[str, int], ...]
    licence: str
    gated: bool | None
    verified: str | None
    """When every file was last seen to have its hash."""
    problem: str | None
    """Why it cannot be fetched or run."""
    fit: Fit | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        row = asdict(self)
        if self.fit is not None:
            row["fit"] |= {"text": self.fit.text, "arithmetic": self.fit.arithmetic()}
        return row

    def lines(self) -> list[str]:
        """For people."""
        stored = ", ".join(f"{amount(count)} in {name}" for name, count in self.dtypes.items())
        rows = [
            ("name", self.name),
            ("where", self.where),
            ("revision", self.revision),
            ("commit", self.commit),
            ("parameters", amount(self.parameters) + (f" ({stored})" if stored else "")),
            ("context", f"{self.context:,} tokens" if self.context else None),
            ("on disk", size(self.on_disk) if self.on_disk is not None else None),
            (
                "download",
                f"{size(self.download_size)} in {len(self.files)} files" if self.download_size else None,
            ),
            ("licence", self.licence or None),
            ("gated", None if self.gated is None else "yes" if self.gated else "no"),
            ("verified", self.verified),
            ("problem", self.problem),
        ]
        lines = [f"{name:<13} {value}" for name, value in rows if value is not None]
        if self.fit is not None:
            lines += ["", *self.fit.arithmetic()]
        return lines


def facts_of(name: str, revision: str, paths: Paths) -> Facts:
    """The facts of a model that is here, else of one on the hub. Blocks.

    Raises ModelNotFound, Offline, DownloadError.
    """
    ruler = Ruler.of(paths, Settings.load(paths.settings_file))
    model = _local(name, paths)
    if model is not None and revision in ("main", model.path.name):
        return local_facts(model, paths, ruler)
    return remote_facts(name, revision, ruler)


def _local(name: str, paths: Paths) -> LocalModel | None:
    try:
        return on_this_machine(name, paths)
    except ModelNotFound:
        if "/" not in name or name.startswith(("/", ".", "~")):
            raise
        return None


def local_facts(model: LocalModel, paths: Paths, ruler: Ruler) -> Facts:
    """The facts of a model on this machine. Blocks: reads the headers of its weights."""
    shape = Shape.in_folder(model.path)
    commit = model.path.name if model.source == "cache" and COMMIT.fullmatch(model.path.name) else None
    at = None
    if commit is not None:
        at = Records(paths.data / "verified", Repository(cache_folder(), model.name)).verified_at(commit)
    licence, gated = origin_of(model, paths)
    missing = f"{model.missing} of its weight files are missing: pull it again" if model.missing else None
    return Facts(
        name=model.name,
        where=str(model.path),
        revision=None,
        commit=commit,
        parameters=shape.parameters if shape else None,
        dtypes=dtypes(local_tensors(model.path)),
        context=model.context or None,
        on_disk=model.size,
        download_size=None,
        files=tuple(
            sorted((path.name, path.stat().st_size) for path in model.path.iterdir() if path.is_file())
        ),
        licence=licence,
        gated=gated,
        verified=datetime.fromtimestamp(at).isoformat(" ", "minutes") if at else None,
        problem=missing,
        fit=ruler.fit(model.name, shape),
    )


def remote_facts(name: str, revision: str, ruler: Ruler) -> Facts:
    """The facts of a model on the hub, its weights unfetched. Blocks. Raises Offline, ModelNotFound, DownloadError."""
    found = catalog.describe(name, revision, cache_folder())
    return Facts(
        name=name,
        where="the hub",
        revision=revision,
        commit=found.commit,
        parameters=found.shape.parameters if found.shape else sum(found.dtypes.values()) or None,
        dtypes=found.dtypes,
        context=found.shape.context if found.shape else None,
        on_disk=None,
        download_size=found.download_size,
        files=found.files,
        licence=found.licence,
        gated=found.gated,
        verified=None,
        problem=found.refusal or found.denied,
        fit=ruler.fit(name, found.shape),
    )

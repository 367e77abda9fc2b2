"""Models to choose from: the curated list, which works offline, and the hub's search."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from nanochat.modelhub import starter
from nanochat.modelhub.shape import Shape
from nanochat.modelhub.starter_wheel import WHEEL_SIZE
from nanochat.sanitize import sanitize_line
from nanochat.transfer.child import ask
from nanochat.transfer.repository import check_repo_id, check_revision

CONNECT_WITHIN = 2.8
"""Seconds until a search says "offline"; the child's own start is within it."""
ANSWER_WITHIN = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One model that could be fetched. Sizes in bytes; what is not known is None or empty."""

    repo_id: str
    revision: str = "main"
    family: str = ""
    parameters: int | None = None
    download_size: int | None = None
    licence: str = ""
    context: int | None = None
    gated: bool = False
    downloads: int | None = None
    shape: Shape | None = None
    note: str = ""

    @property
    def only_weights(self) -> str:
        """Why no more than its weights is compared with the memory; empty where the whole is."""
        if self.shape is not None or not self.parameters:
            return ""
        why = (
            "its configuration is shown once you have access"
            if self.gated
            else "its configuration could not be read"
        )
        return f"only its weights are compared with the memory: {why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Everything about a repository that can be known without its weights."""

    repo_id: str
    commit: str
    licence: str
    gated: bool
    private: bool
    files: tuple[tuple[str, int], ...]
    """What a download would fetch."""
    download_size: int | None
    dtypes: dict[str, int]
    """Parameters by the dtype in which they are stored."""
    shape: Shape | None
    refusal: str | None
    """Why this engine does not run it."""
    denied: str | None
    """Why this user may not fetch it, and what to do."""


STARTER = Listing(
    repo_id=starter.NAME,
    family="SmolLM2",
    parameters=134_515_008,
    download_size=WHEEL_SIZE,
    licence="apache-2.0",
    context=8192,
    shape=Shape(
        parameters=134_515_008,
        layers=30,
        kv_heads=3,
        head_dim=64,
        hidden=576,
        intermediate=1536,
        vocabulary=49_152,
        context=8192,
    ),
    note="the starter model: comes without the hub",
)


@cache
def recommended() -> tuple[Listing, ...]:
    """The curated list, smallest first."""
    return read_list(_assets() / "models.toml")


def read_list(path: Path) -> tuple[Listing, ...]:
    """A list of models in TOML; ValueError or KeyError when it is damaged."""
    rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["model"]
    found = [_listing(row) for row in rows]
    return tuple(sorted(found, key=lambda listing: listing.parameters or 0))


def _listing(row: dict[str, Any]) -> Listing:
    shape = Shape(
        parameters=row["parameters"],
        layers=row["layers"],
        kv_heads=row["kv_heads"],
        head_dim=row["head_dim"],
        hidden=row["hidden"],
        intermediate=row["intermediate"],
        vocabulary=row["vocabulary"],
        context=row["context"],
    )
    return Listing(
        repo_id=check_repo_id(row["id"]),
        revision=check_revision(row.get("revision", "main")),
        family=row["family"],
        parameters=row["parameters"],
        download_size=row["size"],
        licence=row["licence"],
        context=row["context"],
        gated=row.get("gated", False),
        shape=shape,
        note=row.get("note", ""),
    )


def _assets() -> Path:
    """In the wheel beside the code, in the source tree beside the package."""
    installed = Path(str(files("nanochat"))) / "assets"
    return installed if installed.is_dir() else installed.parents[1] / "assets"


def search(text: str, limit: int = 20) -> tuple[Listing, ...]:
    """Models on the hub whose name holds `text` and that this engine runs, most downloaded first.

    Blocks. Raises Offline within three seconds when there is no network, DownloadError when the hub fails.
    """
    question = json.dumps({"what": "search", "text": text, "limit": limit})
    rows = ask(
        "nanochat.modelhub.lookup", question, connect_within=CONNECT_WITHIN, answer_within=ANSWER_WITHIN
    )
    return tuple(
        Listing(
            repo_id=sanitize_line(row["repo_id"]),
            parameters=row["parameters"] or None,
            download_size=row["download_size"] or None,
            licence=sanitize_line(row["licence"]),
            context=shape.context if shape else None,
            gated=row["gated"],
            downloads=row["downloads"],
            shape=shape,
        )
        for row in cast("list[dict[str, Any]]", rows)
        for shape in (Shape.from_json(row.get("shape")),)
    )


def describe(repo_id: str, revision: str, cache_folder: Path) -> Description:
    """Ask the hub about one repository: its files, sizes, licence and shape, without fetching weights.

    Blocks. Raises Offline, ModelNotFound, AccessDenied, DownloadError.
    """
    question = json.dumps(
        {
            "what": "describe",
            "repo_id": check_repo_id(repo_id),
            "revision": check_revision(revision),
            "cache": str(cache_folder),
        }
    )
    answer = ask(
        "nanochat.modelhub.lookup", question, connect_within=CONNECT_WITHIN, answer_within=ANSWER_WITHIN
    )
    facts = cast("dict[str, Any]", answer)
    return Description(
        repo_id=repo_id,
        commit=facts["commit"],
        licence=sanitize_line(facts["licence"]),
        gated=facts["gated"],
        private=facts["private"],
        files=tuple((sanitize_line(name), size) for name, size in facts["files"]),
        download_size=facts["download_size"],
        dtypes=facts["dtypes"],
        shape=Shape.from_json(facts["shape"]),
        refusal=facts["refusal"],
        denied=facts["denied"],
    )

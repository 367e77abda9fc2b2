"""Is every byte of a model what it should be? Each file is hashed and compared with the hub's list or a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nanochat.errors import NanochatError
from nanochat.hub import LocalModel, cache_folder
from nanochat.modelhub import starter
from nanochat.transfer.child import ask
from nanochat.transfer.part import hash_of
from nanochat.transfer.records import Records
from nanochat.transfer.repository import COMMIT, ETAG, RemoteFile, Repository

CONNECT_WITHIN, ANSWER_WITHIN = 2.8, 30.0
INDEX = "model.safetensors.index.json"

Seen = Callable[[int, int], None]
"""Called with (bytes hashed, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. File names, relative to the model's folder."""

    name: str
    checked: tuple[str, ...]
    damaged: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    """Files for which nobody ever recorded a hash."""
    against: str
    """What they were compared with, in words."""
    size: int

    @property
    def good(self) -> bool:
        """Nothing is damaged or missing, and at least one file could be compared."""
        return not self.damaged and not self.missing and bool(self.checked)


def verify(
    model: LocalModel, data: Path, *, ask_hub: bool = True, seen: Seen = lambda _done, _all: None
) -> Verification:
    """Hash every file of a model on this machine. Reads all of it: seconds per gigabyte; blocks.

    Args:
        data: nanochat's data folder, where verified files are noted.
        ask_hub: compare with the hub's list when the network is there; else with what was recorded at the download.
    """
    if model.source == "starter":
        return _verify_starter(model)
    repository = _repository(model)
    if repository is None:
        names = tuple(sorted(path.name for path in model.path.iterdir() if path.is_file()))
        return Verification(
            model.name, (), (), (), names, "nothing: this folder came without hashes", model.size
        )
    return _verify_snapshot(model, repository, Records(data / "verified", repository), ask_hub, seen)


def _verify_starter(model: LocalModel) -> Verification:
    damaged = tuple(starter.verify(model.path))
    names = tuple(sorted(path.name for path in model.path.iterdir() if path.name not in damaged))
    return Verification(model.name, names, damaged, (), (), "the hashes noted when it was made", model.size)


def _repository(model: LocalModel) -> Repository | None:
    """The cache folder of a model that came from a hub."""
    if model.source != "cache" or not COMMIT.fullmatch(model.path.name):
        return None
    return Repository(cache_folder(), model.name)


def _verify_snapshot(
    model: LocalModel, repository: Repository, records: Records, ask_hub: bool, seen: Seen
) -> Verification:
    commit = model.path.name
    listing, against = _listing(repository, commit, ask_hub)
    here = {path.relative_to(model.path).as_posix(): path for path in model.path.rglob("*") if path.is_file()}
    links = {p.relative_to(model.path).as_posix() for p in model.path.rglob("*") if p.is_symlink()}
    needed = _named_weights(model.path) | set(records.files(commit)) | links
    missing = sorted(name for name in needed if name not in here)
    total, before = sum(path.stat().st_size for path in here.values()), 0
    checked, damaged, unknown = list[str](), list[str](), list[str]()
    for name, path in sorted(here.items()):
        file = listing.get(name) or _by_blob_name(name, path)
        if file is None:
            unknown.append(name)
            continue
        start = before
        same = hash_of(path, file, lambda count, start=start: seen(start + count, total)) == file.etag
        before += path.stat().st_size
        seen(before, total)
        (checked if same else damaged).append(name)
        if same:
            records.note_blob(file.etag)
        else:
            records.forget_blob(file.etag)
    if not damaged and not missing and checked:
        records.note_commit(commit, {n: f.etag for n, f in listing.items() if n in checked})
    return Verification(
        model.name, tuple(checked), tuple(damaged), tuple(missing), tuple(unknown), against, total
    )


def _listing(repository: Repository, commit: str, ask_hub: bool) -> tuple[dict[str, RemoteFile], str]:
    """Name -> size and hash of the commit's files: from the hub, or from what a download left."""
    if ask_hub:
        question = json.dumps({"what": "files", "repo_id": repository.repo_id, "revision": commit})
        try:
            rows = ask(
                "nanochat.modelhub.lookup",
                question,
                connect_within=CONNECT_WITHIN,
                answer_within=ANSWER_WITHIN,
            )
            files = [RemoteFile(*row) for row in cast("list[tuple[str, int, str, str | None]]", rows)]
            return {file.name: file for file in files}, "the hub's list"
        except NanochatError as error:
            reason = f" (the hub could not be asked: {error})"
    else:
        reason = ""
    try:
        tree: dict[str, Any] = json.loads((repository.folder / "trees" / f"{commit}.json").read_bytes())[
            "files"
        ]
        listing = {
            name: RemoteFile(name, int(entry["size"]), str(entry["blob_id"]), entry.get("lfs_sha256"))
            for name, entry in tree.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, f"the hashes in the cache's file names{reason}"
    return listing, f"the list kept from the download{reason}"


def _by_blob_name(name: str, path: Path) -> RemoteFile | None:
    """In the cache a file is stored under its own hash."""
    etag = path.readlink().name if path.is_symlink() else ""
    if not ETAG.fullmatch(etag):
        return None
    return RemoteFile(name, path.stat().st_size, etag, etag if len(etag) == 64 else None)


def _named_weights(folder: Path) -> set[str]:
    try:
        names: list[Any] = list(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {str(name) for name in names}

"""Removing a model: what would go, what is shared and stays, and how many bytes that frees; then doing it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.errors import ModelNotFound, UsageError
from nanochat.hub import LocalModel
from nanochat.transfer.leftovers import is_locked, unfinished_bytes
from nanochat.transfer.records import Records
from nanochat.transfer.repository import Repository


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal would do. Bytes."""

    name: str
    path: Path
    commits: tuple[str, ...]
    """The versions that go."""
    kept_commits: tuple[str, ...]
    """Versions of the same model that stay."""
    freed: int
    shared: int
    """Of the files that go, what other versions or other models use too: it stays on disk."""


def plan(model: LocalModel, cache: Path, commit: str | None = None) -> Removal:
    """What removing a model (or, with `commit`, one of its versions) would do. Nothing is changed.

    Raises UsageError for a folder that is not nanochat's to remove, ModelNotFound for a version that is not here.
    """
    if model.source == "folder":
        raise UsageError(
            f"{model.path} is a folder of your own: nanochat removes only what it or the hub's tools fetched"
        )
    if model.source == "starter":
        size = sum(path.stat().st_size for path in model.path.rglob("*") if path.is_file())
        return Removal(model.name, model.path, (), (), size, 0)
    repository = Repository(cache, model.name)
    scan = _scan(cache, model.name)
    revisions = {revision.commit_hash: revision for repo in scan.repos for revision in repo.revisions}
    chosen = [found for found in revisions if commit is None or found.startswith(commit)]
    if not chosen:
        raise ModelNotFound(
            f"{model.name} has no version {commit} here; there are {', '.join(sorted(revisions))}"
        )
    strategy = scan.delete_revisions(*chosen)
    paths = {file.blob_path: file.size_on_disk for found in chosen for file in revisions[found].files}
    size = sum(paths.values())
    kept = tuple(sorted(found for found in revisions if found not in chosen))
    unfinished = unfinished_bytes(repository) if not kept else 0
    return Removal(
        model.name,
        repository.folder,
        tuple(sorted(chosen)),
        kept,
        strategy.expected_freed_size + unfinished,
        max(size - strategy.expected_freed_size, 0),
    )


def remove(removal: Removal, cache: Path, data: Path) -> None:
    """Carry a plan out. UsageError while a file of the model is being fetched: the hub's own removal takes no locks."""
    if not removal.commits:
        shutil.rmtree(removal.path)
        return
    repository = Repository(cache, removal.name)
    locks = cache / ".locks" / repository.folder_name
    busy = [path.stem for path in locks.glob("*.lock") if is_locked(repository, path.stem)]
    if busy:
        raise UsageError(f"{removal.name} is being downloaded right now: cancel that first")
    _scan(cache, removal.name).delete_revisions(*removal.commits).execute()
    if not removal.kept_commits:
        Records(data / "verified", repository).path.unlink(missing_ok=True)
        shutil.rmtree(locks, ignore_errors=True)


def _scan(cache: Path, name: str) -> Any:
    """The hub client's view of the cache, narrowed to one model: copies of a repository share commit hashes."""
    from huggingface_hub import scan_cache_dir

    found = scan_cache_dir(cache)
    repos = frozenset(repo for repo in found.repos if repo.repo_type == "model" and repo.repo_id == name)
    if not repos:
        raise ModelNotFound(f"the hub's tools find no whole {name} in {cache}: remove the folder by hand")
    return replace(found, repos=repos)

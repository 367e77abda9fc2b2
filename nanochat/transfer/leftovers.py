"""What unfinished downloads leave in the cache, ours and other tools', and how to take it away safely."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from nanochat.transfer.repository import ETAG, PART, Repository
from nanochat.transfer.xet import FOLDER as XET_FOLDER

QUIET = 3600.0
"""Seconds without a write after which a file that another tool may be writing counts as left over."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something in the cache that no model needs."""

    repo_id: str
    path: Path
    size: int
    what: str


def repositories(cache: Path) -> Iterator[Repository]:
    """Every model repository below the cache."""
    for folder in sorted(cache.glob("models--*")):
        if folder.is_dir():
            yield Repository(cache, folder.name.removeprefix("models--").replace("--", "/"))


def referenced(repository: Repository) -> set[str]:
    """The blobs that some snapshot links to."""
    found: set[str] = set()
    for root, _, names in os.walk(repository.folder / "snapshots"):
        for name in names:
            path = Path(root) / name
            if path.is_symlink():
                found.add(Path(os.readlink(path)).name)
    return found


def discard(repository: Repository, etags: Iterable[str]) -> int:
    """Remove the parts of these blobs, and the blobs that no snapshot uses. Bytes freed.

    What another process is fetching right now stays: it holds the lock.
    """
    used, freed = referenced(repository), 0
    for etag in etags:
        lock = repository.lock(etag)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            unwanted = [repository.part(etag)] + ([] if etag in used else [repository.blob(etag)])
            freed += sum(_remove(path) for path in unwanted)
        finally:
            lock.release()
    tidy(repository)
    return freed


def tidy(repository: Repository) -> None:
    """Remove what is empty: listings of commits without a snapshot, then folders, the repository's last."""
    if any(_names(repository.folder / "blobs")):
        return
    snapshots = set(_names(repository.folder / "snapshots"))
    for tree in (repository.folder / "trees").glob("*.json"):
        if tree.stem not in snapshots:
            tree.unlink(missing_ok=True)
    for name in ("nanochat-staging", XET_FOLDER):
        shutil.rmtree(repository.folder / name, ignore_errors=True)
    for folder in (
        *(repository.folder / n for n in ("blobs", "trees", "snapshots", "refs")),
        repository.folder,
    ):
        with suppress(OSError):
            folder.rmdir()


def find(cache: Path, in_use: set[str]) -> list[Leftover]:
    """Everything left over in the cache; `in_use` names the blobs of downloads that are to go on."""
    return [leftover for repository in repositories(cache) for leftover in _find_in(repository, in_use)]


def _find_in(repository: Repository, in_use: set[str]) -> Iterator[Leftover]:
    used = referenced(repository)
    for path in sorted((repository.folder / "blobs").glob("*")):
        etag = path.name.partition(".")[0]
        ours, part = path.name.endswith(PART), path.name.endswith(".incomplete")
        if etag in in_use or not ETAG.fullmatch(etag) or (not part and etag in used):
            continue
        stat = path.lstat()
        if not ours and time.time() - stat.st_mtime < QUIET:
            continue
        if not is_locked(repository, etag):
            what = "an unfinished download" if part else "a file that no model uses"
            yield Leftover(repository.repo_id, path, stat.st_size, what)
    for name in ("nanochat-staging", XET_FOLDER):
        folder = repository.folder / name
        if folder.exists() and time.time() - folder.stat().st_mtime > QUIET:
            yield Leftover(repository.repo_id, folder, _size_of(folder), "an unfinished step")


def unfinished_bytes(repository: Repository) -> int:
    """Bytes of unfinished files in a repository's folder."""
    return sum(path.lstat().st_size for path in repository.folder.glob("blobs/*.incomplete"))


def clean(cache: Path, leftovers: Iterable[Leftover]) -> int:
    """Remove leftovers. Bytes freed."""
    freed = 0
    touched: dict[str, Repository] = {}
    for leftover in leftovers:
        repository = touched.setdefault(leftover.repo_id, Repository(cache, leftover.repo_id))
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path, ignore_errors=True)
            freed += leftover.size
        elif not is_locked(repository, leftover.path.name.partition(".")[0]):
            freed += _remove(leftover.path)
    for repository in touched.values():
        tidy(repository)
    return freed


def is_locked(repository: Repository, etag: str) -> bool:
    """Whether some process is fetching the blob right now."""
    if not (repository.cache / ".locks" / repository.folder_name / f"{etag}.lock").exists():
        return False
    lock = repository.lock(etag)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _remove(path: Path) -> int:
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

"""One repository's folder in the Hugging Face cache: names, locks, and publishing without a broken moment.

Layout, as huggingface_hub writes it: `blobs/<etag>`, `snapshots/<commit>/<file>` -> `../../blobs/<etag>`,
`refs/<revision>` (40 hex digits, no newline), `trees/<commit>.json`; locks in `<cache>/.locks/<folder>/`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from filelock import FileLock

from nanochat.errors import InvalidModel, UsageError
from nanochat.transfer.durable import sync, write_whole

ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
PART = ".nanochat.incomplete"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a commit as the hub lists it. Large files have a sha256, small ones git's sha1 of a blob."""

    name: str
    size: int
    blob_id: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        """The name of its blob in the cache, and the hash that its content must have."""
        return self.sha256 or self.blob_id


def check_repo_id(repo_id: str) -> str:
    """`org/name`, or UsageError."""
    if not REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or len(repo_id) > 96:
        raise UsageError(f"{repo_id!r} is not the name of a repository; those look like org/name")
    return repo_id


def check_revision(revision: str) -> str:
    """A branch, tag or commit that is also a safe relative path (it becomes one, below `refs/`), or UsageError."""
    if not re.fullmatch(r"[\w][\w./-]{0,199}", revision) or not _is_inside(revision):
        raise UsageError(
            f"{revision!r} is not a revision; those look like main, v1.0 or a commit's 40 hex digits"
        )
    return revision


def check_file(file: RemoteFile, repo_id: str) -> RemoteFile:
    """Refuse (InvalidModel) a name that would leave the folder, and a hash that is none."""
    if not _is_inside(file.name) or any(ord(sign) < 32 for sign in file.name):
        raise InvalidModel(
            f"{repo_id} names a file {file.name!r}, which lies outside its folder; nothing was written. "
            "Do not use this repository."
        )
    if not ETAG.fullmatch(file.etag) or file.size < 0:
        raise InvalidModel(f"{repo_id}: the hub gives no usable size and hash for {file.name!r}")
    return file


def _is_inside(name: str) -> bool:
    """Whether a relative path stays below its folder, on every system."""
    windows = PureWindowsPath(name)
    parts = name.replace("\\", "/").split("/")
    plain = all(part not in ("", ".", "..") and len(part) <= 200 for part in parts)
    return plain and not windows.drive and not windows.root and not PurePosixPath(name).is_absolute()


@dataclass(frozen=True, slots=True)
class Repository:
    """The folder of `repo_id` below `cache`. Nothing is created before `prepare`."""

    cache: Path
    repo_id: str

    @property
    def folder_name(self) -> str:
        """`models--org--name`."""
        return "models--" + self.repo_id.replace("/", "--")

    @property
    def folder(self) -> Path:
        """Everything of this repository but its locks."""
        return self.cache / self.folder_name

    def blob(self, etag: str) -> Path:
        """Where the file with this hash lies once it is whole and verified."""
        return self.folder / "blobs" / etag

    def part(self, etag: str) -> Path:
        """Where its bytes gather; the name is one that the hub's own tools know as unfinished."""
        return self.folder / "blobs" / f"{etag}{PART}"

    def snapshot(self, commit: str) -> Path:
        """The folder that programs are given."""
        return self.folder / "snapshots" / commit

    def lock(self, etag: str) -> FileLock:
        """The hub client's own lock of a blob: whoever fetches the file holds it."""
        home = self.cache / ".locks" / self.folder_name
        home.mkdir(parents=True, exist_ok=True)
        return FileLock(home / f"{etag}.lock", mode=0o664)

    def growth(self, etag: str) -> int:
        """Bytes in the largest unfinished copy of a blob, whoever writes it."""
        sizes = [0]
        for path in self.folder.glob(f"blobs/{etag}*.incomplete"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        return max(sizes)

    def present(self, etags: Iterable[str]) -> int:
        """Bytes of these blobs that are here, whole or in parts."""
        count = 0
        for etag in etags:
            for path in (self.blob(etag), self.part(etag)):
                with suppress(FileNotFoundError):
                    count += path.stat().st_size
                    break
        return count

    def prepare(self, commit: str, files: Iterable[RemoteFile]) -> None:
        """Create the folders, and write the commit's whole listing: with it nobody takes a part for the whole."""
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
        listing: dict[str, dict[str, object]] = {}
        for file in files:
            listing[file.name] = {"size": file.size, "blob_id": file.blob_id}
            if file.sha256 is not None:
                listing[file.name] |= {"lfs_sha256": file.sha256, "lfs_size": file.size}
        tree = self.folder / "trees" / f"{commit}.json"
        if not tree.exists():
            write_whole(tree, json.dumps({"format_version": 1, "files": listing}, indent=1, sort_keys=True))

    def publish(self, commit: str, revision: str, files: Mapping[str, str]) -> Path:
        """Make the verified blobs a snapshot: `files` maps names to blobs. The ref comes last.

        A new snapshot appears in one rename. In one that another tool began, links are added, config.json last.
        """
        target = self.snapshot(commit)
        target.parent.mkdir(parents=True, exist_ok=True)
        names = sorted(files, key=lambda name: name == "config.json")
        if not target.exists():
            # Beside `snapshots`, at the same depth as a snapshot: the relative links are right before the move.
            staged = self.folder / "nanochat-staging" / f"{commit}.{os.getpid()}"
            shutil.rmtree(staged, ignore_errors=True)
            for name in names:
                self._link(staged / name, files[name])
            try:
                staged.rename(target)
            except OSError:
                if not target.exists():  # else another process was first, with the same content
                    raise
                shutil.rmtree(staged)
            with suppress(OSError):
                staged.parent.rmdir()
        for name in names:
            self._link(target / name, files[name])
        sync(target)
        sync(target.parent)
        if not COMMIT.fullmatch(revision):
            write_whole(self.folder / "refs" / revision, commit)
        return target

    def _link(self, link: Path, etag: str) -> None:
        """A relative link to the blob; whatever else has the name is replaced in one step."""
        up = len(link.parent.relative_to(self.folder).parts)
        target = "/".join([*[".."] * up, "blobs", etag])
        if link.is_symlink() and os.readlink(link) == target:
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{link.name}.{os.getpid()}.nanochat")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        os.replace(fresh, link)

"""Which blobs on this disk were seen to have the hash that their name says: small notes, beside the cache."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.transfer.durable import write_whole
from nanochat.transfer.repository import Repository


@dataclass(frozen=True, slots=True)
class Records:
    """The notes of one repository, in `<folder>/models--org--name.json`.

    A note holds size, time of change and inode: a file that was written since is no longer known. Losing a note
    costs one more hashing, nothing else.
    """

    folder: Path
    repository: Repository

    @property
    def path(self) -> Path:
        """Where the notes lie."""
        return self.folder / f"{self.repository.folder_name}.json"

    def knows(self, etag: str) -> bool:
        """Whether the blob was verified and has not been touched since."""
        return self._read()["blobs"].get(etag) == self._stamp(etag) is not None

    def note_blob(self, etag: str) -> None:
        """The blob has just been verified."""
        notes = self._read()
        notes["blobs"][etag] = self._stamp(etag)
        self._write(notes)

    def forget_blob(self, etag: str) -> None:
        """The blob was found damaged, or removed."""
        notes = self._read()
        if notes["blobs"].pop(etag, None) is not None:
            self._write(notes)

    def note_commit(self, commit: str, files: dict[str, str], origin: tuple[str, bool] | None = None) -> None:
        """A whole snapshot has been verified: the name of each file and its hash; `origin` is (licence, gated)."""
        notes = self._read()
        known = notes["commits"].get(commit, {})
        known |= {"verified": int(time.time()), "files": files}
        if origin is not None:
            known |= {"licence": origin[0], "gated": origin[1]}
        notes["commits"][commit] = known
        self._write(notes)

    def origin(self, commit: str) -> tuple[str, bool] | None:
        """(licence, gated) as the hub said at the download; None when nanochat did not fetch it."""
        note = self._read()["commits"].get(commit, {})
        return (str(note["licence"]), bool(note["gated"])) if "licence" in note else None

    def verified_at(self, commit: str) -> float | None:
        """When the snapshot was last verified as a whole; None when it never was, or a file changed since."""
        note = self._read()["commits"].get(commit)
        if note is None or not all(self.knows(etag) for etag in note["files"].values()):
            return None
        return float(note["verified"])

    def files(self, commit: str) -> dict[str, str]:
        """Name -> hash of every file that nanochat fetched for a commit; empty when it fetched none."""
        note = self._read()["commits"].get(commit)
        return dict(note["files"]) if note is not None else {}

    def _stamp(self, etag: str) -> list[int] | None:
        try:
            stat = self.repository.blob(etag).stat()
        except OSError:
            return None
        return [stat.st_size, stat.st_mtime_ns, stat.st_ino]

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            notes = json.loads(self.path.read_text(encoding="utf-8"))
            return {"blobs": dict(notes["blobs"]), "commits": dict(notes["commits"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"blobs": {}, "commits": {}}

    def _write(self, notes: dict[str, dict[str, Any]]) -> None:
        write_whole(self.path, json.dumps(notes))

"""A user's machine for the tests of downloads: a cache, a data folder, and what must always be true of them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakehub import Hub
from fakerepo import Repo

from nanochat.errors import NanochatError
from nanochat.modelhub.fetch import Fetch
from nanochat.transfer.events import Event, Policy, Ready, Spec
from nanochat.transfer.repository import Repository

QUICK = Policy(
    connect_timeout=2,
    read_timeout=0.5,
    tries=3,
    first_delay=0.01,
    longest_delay=0.02,
    lock_timeout=10,
    workers=2,
)
NEEDED = ("README", ".bin", "consolidated", "original/")
"""Parts of the names that no download may fetch."""


@dataclass
class Home:
    """Folders of one user. `fetch` runs a download in this process, without a child."""

    root: Path
    events: list[Event] = field(default_factory=list)

    @classmethod
    def at(cls, root: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Home:
        """Make the environment point to `root` and to `hub`; no token of the developer's is seen."""
        for name in list(os.environ):
            if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(root / "huggingface"))
        monkeypatch.setenv("NANOCHAT_HOME", str(root / "nanochat"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(root / "huggingface" / "token"))
        return cls(root)

    @property
    def cache(self) -> Path:
        return self.root / "huggingface" / "hub"

    @property
    def data(self) -> Path:
        return self.root / "nanochat" / "data"

    def spec(self, repo_id: str = "org/tiny", revision: str = "main", policy: Policy = QUICK) -> Spec:
        return Spec(repo_id, revision, str(self.cache), str(self.data / "verified"), policy=policy)

    def fetch(self, spec: Spec | None = None) -> Path:
        """Download here and now; the snapshot's folder."""
        self.events = []
        Fetch(spec or self.spec(), self.events.append).run()
        (ready,) = [event for event in self.events if isinstance(event, Ready)]
        return Path(ready.folder)

    def fails(self, spec: Spec | None = None) -> NanochatError:
        """Download here and now; the error with which that must end."""
        with pytest.raises(NanochatError) as caught:
            self.fetch(spec)
        return caught.value

    def repository(self, repo_id: str = "org/tiny") -> Repository:
        return Repository(self.cache, repo_id)

    def is_new(self, repo: Repo, revision: str = "main") -> bool:
        """Whether the ref names this repository's commit; then the snapshot must be whole, each file with its hash."""
        folder = self.repository(repo.id).folder
        ref = folder / "refs" / revision
        if not ref.exists() or ref.read_text() != repo.commit:
            return False
        self.assert_whole(folder / "snapshots" / repo.commit, repo)
        return True

    def assert_whole(self, snapshot: Path, repo: Repo) -> None:
        names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if not path.is_dir()}
        wanted = {name for name in repo.files if not any(part in name for part in NEEDED)}
        assert names == wanted
        for name in names:
            file, path = repo.files[name], snapshot / name
            assert path.is_symlink() and os.readlink(path).startswith("../")
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
            assert path.resolve().name == file.etag

    def assert_nothing_broken(self, *repos: Repo) -> None:
        """Every snapshot is whole, every blob has its hash, every ref has a snapshot, every listing is JSON."""
        for repo in repos:
            folder = self.repository(repo.id).folder
            known = {other.commit: other for other in repos if other.id == repo.id}
            for snapshot in (folder / "snapshots").glob("*"):
                self.assert_whole(snapshot, known[snapshot.name])
            for ref in (folder / "refs").glob("*"):
                assert (folder / "snapshots" / ref.read_text()).is_dir()
            for tree in (folder / "trees").glob("*.json"):
                json.loads(tree.read_text())
            etags = {file.etag: file.sha256 for one in known.values() for file in one.files.values()}
            for blob in (folder / "blobs").glob("*"):
                if not blob.name.endswith(".incomplete"):
                    assert hashlib.sha256(blob.read_bytes()).hexdigest() == etags[blob.name]

    def files(self) -> set[str]:
        """Every file below the root that is not a lock, nor the hub client's own note of who runs it."""
        found = (path for path in self.root.rglob("*") if not path.is_dir())
        names = {path.relative_to(self.root).as_posix() for path in found}
        return {name for name in names if not name.endswith((".lock", ".agent_harnesses.json"))}

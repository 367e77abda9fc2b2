"""The child process of one download: `python -m nanochat.modelhub.fetch SPEC`, which answers with lines of JSON.

It can be killed at any moment: every byte it has written is of use to the next one, and the cache holds the old
good state until the new one is whole. It ends when its standard input closes, that is, when its parent is gone.
"""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanochat.errors import DownloadError, ModelNotFound, NanochatError
from nanochat.modelhub.shape import Shape
from nanochat.transfer.blob import XetOnly
from nanochat.transfer.events import CannotPause, Event, Failed, Note, Ready, Resolved, Spec, to_line
from nanochat.transfer.part import disk_error
from nanochat.transfer.records import Records
from nanochat.transfer.remote import HubClient, RemoteModel, open_hub
from nanochat.transfer.repository import RemoteFile, Repository, check_repo_id, check_revision
from nanochat.transfer.selection import CONFIG, INDEX, refuse_by_listing, select
from nanochat.transfer.store import BlobStore
from nanochat.transfer.tally import Tally
from nanochat.transfer.verdict import judge

MAX_CONFIG = 4 << 20
MAX_INDEX = 64 << 20
REPORT_EVERY = 0.1
SPARE_DISK = 1 << 20

Emit = Callable[[Event], None]


@dataclass
class Fetch:
    """One download from its name to the published snapshot."""

    spec: Spec
    emit: Emit
    error: NanochatError | None = None
    xet: list[RemoteFile] = field(default_factory=list[RemoteFile])
    shape: dict[str, Any] | None = None

    def run(self) -> None:
        """Fetch, verify and publish; NanochatError says why not."""
        spec = self.spec
        repository = Repository(Path(spec.cache), check_repo_id(spec.repo_id))
        check_revision(spec.revision)
        hub = open_hub(spec.policy)
        model = self._resolve(hub)
        records = Records(Path(spec.records), repository)
        store = BlobStore(repository, records, hub, model.commit, spec.policy)
        files = self._choose(model, store)
        tally = Tally(files)
        here = _already_here(repository, tally)
        listing = [(file.name, file.size, file.etag) for file in files]
        self.emit(Resolved(model.commit, listing, tally.total, here, self.shape))
        self._check_disk(tally.total - here)
        repository.prepare(model.commit, model.files)
        for _ in range(3):  # a blob can vanish meanwhile, when somebody else cancels or cleans up
            self._bring_all(store, tally)
            if all(repository.blob(etag).exists() for etag in tally.files):
                break
        names = {file.name: file.etag for file in files}
        folder = repository.publish(model.commit, spec.revision, names)
        records.note_commit(model.commit, names, (model.licence, model.gated))
        self.emit(tally.progress())
        self.emit(Ready(str(folder), model.commit))

    def _resolve(self, hub: HubClient) -> RemoteModel:
        """The commit to fetch: the one that an earlier run began, if the hub still has it."""
        spec = self.spec
        try:
            model = hub.model(spec.repo_id, spec.commit or spec.revision)
        except ModelNotFound:
            if spec.commit is None:
                raise
            model = hub.model(spec.repo_id, spec.revision)
        if (
            model.gated
        ):  # everybody sees the listing of a gated model; a mirror may not know this question at all
            hub.check_access(spec.repo_id)
        return model

    def _choose(self, model: RemoteModel, store: BlobStore) -> list[RemoteFile]:
        """What to fetch. Refusals come here, before anything is written."""
        refuse_by_listing(model.repo_id, [file.name for file in model.files])
        files = {file.name: file for file in model.files}
        with store.session() as session:
            config = store.small(session, files[CONFIG], MAX_CONFIG)
            if model.commit != self.spec.commit:  # else it was judged before the interruption
                self.shape = asdict(Shape.of(judge(model.repo_id, config)))
            index = store.small(session, files[INDEX], MAX_INDEX) if INDEX in files else None
        return select(model.repo_id, files, index)

    def _check_disk(self, needed: int) -> None:
        folder = Path(self.spec.cache)
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free - self.spec.reserved
        spare = SPARE_DISK + needed // 100
        if needed and needed + spare > free:
            raise DownloadError(
                f"not enough disk: {self.spec.repo_id} needs {_size(needed)} more and {_size(max(free, 0))} is free in "
                f"{folder}. Free {_size(needed + spare - free)} (`nanochat models rm`), or set HF_HOME to a larger disk"
            )

    def _bring_all(self, store: BlobStore, tally: Tally) -> None:
        """Fetch with a few threads, small files first; the first error stops all of them."""
        waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in sorted(tally.files.values(), key=lambda file: file.size):
            waiting.put(file)
        count = min(self.spec.policy.workers, len(tally.files))
        threads = [
            threading.Thread(target=self._work, args=(store, waiting, tally), daemon=True)
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        note = ""
        while any(thread.is_alive() for thread in threads) and self.error is None:
            for thread in threads:
                thread.join(REPORT_EVERY / len(threads))
            self.emit(tally.progress())
            if tally.waiting() != note:
                note = tally.waiting()
                self.emit(Note(note))
        if self.error is not None:
            raise self.error
        if self.xet:
            from nanochat.transfer.xet import fetch_by_hub_client

            self.emit(
                CannotPause("only Xet serves a part of this model: this download cannot pause, only stop")
            )
            fetch_by_hub_client(store, self.xet, tally, lambda: self.emit(tally.progress()))
            self.xet.clear()

    def _work(self, store: BlobStore, waiting: queue.SimpleQueue[RemoteFile], tally: Tally) -> None:
        with store.session() as session:
            while not store.stopped.is_set():
                try:
                    file = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    store.bring(session, file, tally)
                except XetOnly:
                    self.xet.append(file)
                except NanochatError as error:
                    self._stop(store, error)
                except OSError as error:
                    missing = tally.total - tally.progress().done
                    self._stop(store, disk_error(error, store.repository.folder, missing))
                except Exception as error:
                    self._stop(store, DownloadError(f"a fault of nanochat: {type(error).__name__}: {error}"))
                    raise

    def _stop(self, store: BlobStore, error: NanochatError) -> None:
        self.error = self.error or error
        store.stopped.set()


def _already_here(repository: Repository, tally: Tally) -> int:
    """Bytes that need not be fetched: whole blobs, and what earlier runs left of others."""
    here = 0
    for etag, file in tally.files.items():
        part = repository.part(etag)
        present = file.size if repository.blob(etag).exists() else part.stat().st_size if part.exists() else 0
        tally.at(file, present)
        here += min(present, file.size)
    return here


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def run_child(work: Callable[[Emit], None]) -> int:
    """Do the work of a child process. Its error becomes its last line; its parent's end is its own."""
    lock = threading.Lock()

    def emit(event: Event) -> None:
        with lock:
            sys.stdout.write(to_line(event))
            sys.stdout.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(emit)
        return 0
    except NanochatError as error:
        emit(Failed(type(error).__name__, str(error)))
    except OSError as error:
        emit(Failed("DownloadError", f"{type(error).__name__}: {error}"))
    return 4


def _end_with_parent() -> None:
    """End this process when its standard input closes: nobody is left to want the result."""
    while os.read(0, 4096):
        pass
    os._exit(9)


if __name__ == "__main__":
    code = run_child(lambda emit: Fetch(Spec.from_json(sys.argv[1]), emit).run())
    os._exit(code)  # threads may still hang in a read; nothing that they hold needs an end

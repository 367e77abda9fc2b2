"""The queue of downloads: add, pause, resume, cancel. Each runs in a child process; this side never waits for one.

Poll `Downloads.all()` at any rate, or pass `on_change`, which is called from a thread and must only ring a bell.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nanochat.errors import UsageError
from nanochat.modelhub.download import RESTING, RUNNING, Download, Job, State
from nanochat.transfer.child import Child
from nanochat.transfer.events import Event, Policy, Spec
from nanochat.transfer.journal import Entry, Journal
from nanochat.transfer.leftovers import discard
from nanochat.transfer.repository import Repository, check_repo_id, check_revision

AT_ONCE = 2
JOURNAL_EVERY = 5.0

__all__ = ["RESTING", "RUNNING", "Download", "Downloads", "Policy", "State"]


class Downloads:
    """A queue of downloads into the Hugging Face cache at `cache`; what is unfinished survives in `data`.

    Thread-safe; no method but `wait` and `close` blocks. Several processes may have a queue over the same
    folders: a download runs in one of them, and a file is fetched by one.
    """

    def __init__(
        self,
        data: Path,
        cache: Path,
        *,
        at_once: int = AT_ONCE,
        policy: Policy | None = None,
        on_change: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal = Journal(data / "downloads")
        self.records = data / "verified"
        self.cache = cache
        self._at_once, self._policy, self._clock = at_once, policy or Policy(), clock
        self._on_change = on_change or (lambda: None)
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, Job] = {}
        self._written: dict[str, float] = {}
        self._closed = False

    # -- what a user does

    def restore(self, *, start: bool = True) -> tuple[Download, ...]:
        """Take in what earlier runs left unfinished. With `start`, those that nobody paused go on."""
        with self._changed:
            for entry in self.journal.entries():
                if entry.id in self._jobs or (claim := self.journal.claim(entry)) is None:
                    continue
                resting = State.QUEUED if start else State.INTERRUPTED
                state = State.PAUSED if entry.paused else resting
                self._jobs[entry.id] = Job.of(self._counted(entry), state, claim)
            self._fill()
        self._ring()
        return self.all()

    def add(self, repo_id: str, revision: str = "main") -> Download:
        """Queue a download; one that is known already goes on where it stopped.

        Raises UsageError for a name that is none, and for one that is still being removed.
        """
        entry = Entry(check_repo_id(repo_id), check_revision(revision))
        with self._changed:
            known = self._jobs.get(entry.id)
            begun = known is not None and known.state not in (State.READY, State.CANCELLED)
            if not begun:
                self._enqueue(entry)
        if begun:
            return self.resume(entry.id)
        self._ring()
        return self.get(entry.id)

    def pause(self, download_id: str) -> Download:
        """Stop at once and keep every byte. UsageError when it cannot pause."""
        with self._changed:
            job = self._job(download_id)
            if job.state in RUNNING and not job.can_pause:
                raise UsageError(
                    f"{job.entry.repo_id} cannot pause: only Xet serves it. Cancel it, or let it finish"
                )
            if job.state in RUNNING or job.state is State.QUEUED:
                job.rest(State.PAUSED)
                self._write(job, paused=True)
                self._fill()
        self._ring()
        return self.get(download_id)

    def resume(self, download_id: str) -> Download:
        """Go on with one that is paused, interrupted or failed."""
        with self._changed:
            job = self._job(download_id)
            if job.state in (State.PAUSED, State.INTERRUPTED, State.FAILED):
                job.state, job.note, job.error = State.QUEUED, "", None
                self._write(job, paused=False)
                self._fill()
        self._ring()
        return self.get(download_id)

    def cancel(self, download_id: str) -> Download:
        """Stop at once and remove what was fetched; `wait` returns when that is gone."""
        with self._changed:
            job = self._job(download_id)
            if job.state not in (State.READY, State.CANCELLED):
                job.rest(State.CANCELLED)
                if not job.busy:
                    job.busy = True
                    threading.Thread(target=self._settle, args=(job,), daemon=True).start()
                self._fill()
        self._ring()
        return self.get(download_id)

    def forget(self, download_id: str) -> None:
        """Drop a finished one from the list."""
        with self._changed:
            job = self._job(download_id)
            if job.state in (State.READY, State.CANCELLED) and not job.busy:
                del self._jobs[download_id]
        self._ring()

    # -- what a screen reads

    def all(self) -> tuple[Download, ...]:
        """Every download, in the order in which they were added."""
        with self._changed:
            return tuple(job.view(self._clock()) for job in self._jobs.values())

    def get(self, download_id: str) -> Download:
        """One download."""
        with self._changed:
            return self._job(download_id).view(self._clock())

    def wait(self, download_id: str, timeout: float | None = None) -> Download:
        """Block until it rests (see `RESTING`) and its process is gone, or the time is over."""
        with self._changed:
            job = self._job(download_id)
            self._changed.wait_for(lambda: job.state in RESTING and not job.busy, timeout)
            return job.view(self._clock())

    def close(self, timeout: float = 5.0) -> None:
        """Stop everything and keep every byte: what was running goes on after the next `restore`."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                if job.state in RUNNING or job.state is State.QUEUED:
                    job.rest(State.INTERRUPTED)
                    self._write(job)
            self._changed.wait_for(lambda: not any(job.busy for job in self._jobs.values()), timeout)
            for job in self._jobs.values():
                self._release(job)

    # -- inside

    def _job(self, download_id: str) -> Job:
        job = self._jobs.get(download_id)
        if job is None:
            raise UsageError(f"there is no download {download_id!r}")
        return job

    def _enqueue(self, entry: Entry) -> None:
        """A new job, or what the journal knows of an earlier one."""
        known = self._jobs.get(entry.id)
        if known is not None and known.busy:
            raise UsageError(f"{entry.repo_id} is still being removed; try again in a moment")
        unfinished = next((one for one in self.journal.entries() if one.id == entry.id), entry)
        claim = self.journal.claim(entry)
        job = Job.of(replace(self._counted(unfinished), paused=False), State.QUEUED, claim)
        self._jobs[entry.id] = job
        self._write(job)
        self._fill()

    def _counted(self, entry: Entry) -> Entry:
        """The entry with the bytes that are really here: the journal is written only now and then."""
        here = Repository(self.cache, entry.repo_id).present(entry.etags)
        return replace(entry, done=min(max(entry.done, here), entry.total or 0))

    def _ring(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._on_change()

    def _fill(self) -> None:
        """Start what is queued, as far as places are free."""
        for job in self._jobs.values():
            running = sum(1 for other in self._jobs.values() if other.state in RUNNING)
            if running >= self._at_once or self._closed:
                return
            if job.state is State.QUEUED and not job.busy:
                self._start(job)

    def _start(self, job: Job) -> None:
        entry = job.entry
        others = (other for other in self._jobs.values() if other is not job and other.state in RUNNING)
        spec = Spec(
            entry.repo_id,
            entry.revision,
            str(self.cache),
            str(self.records),
            entry.commit,
            sum((other.entry.total or 0) - other.done for other in others),
            self._policy,
        )
        job.begin()
        job.child = Child(
            "nanochat.modelhub.fetch",
            spec.to_json(),
            lambda event: self._on_event(job, event),
            lambda status, errors: self._on_end(job, status, errors),
        )

    def _write(self, job: Job, paused: bool | None = None) -> None:
        flag = job.entry.paused if paused is None else paused
        job.entry = replace(job.entry, done=job.done, paused=flag)
        self._written[job.entry.id] = self._clock()
        if job.claim is not None:
            self.journal.write(job.entry)

    def _release(self, job: Job) -> None:
        if job.claim is not None:
            job.claim.release()
            job.claim = None

    def _on_event(self, job: Job, event: Event) -> None:
        with self._changed:
            if job.state not in RUNNING:  # the last words of a child that was stopped
                return
            due = self._clock() - self._written.get(job.entry.id, 0.0) > JOURNAL_EVERY
            if job.take(event, self._clock()) or due:
                self._write(job)
        self._ring()

    def _on_end(self, job: Job, status: int, errors: str) -> None:
        with self._changed:
            job.end(status, errors)
        self._settle(job)

    def _settle(self, job: Job) -> None:
        """After the process: remove what a cancelled download fetched, bring the journal up to date."""
        if job.state is State.CANCELLED:
            discard(Repository(self.cache, job.entry.repo_id), job.entry.etags)
        with self._changed:
            over = job.state in (State.READY, State.CANCELLED)
            if job.claim is not None and (over or (job.state is State.FAILED and job.entry.total is None)):
                self.journal.remove(job.entry)
            elif job.state is State.FAILED:
                self._write(job)
            if over:
                self._release(job)
            job.busy = False
            self._fill()
        self._ring()

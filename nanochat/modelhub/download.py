"""One download: its states, the frozen picture that others see of it, and how events of its process move it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from filelock import FileLock

from nanochat.errors import DownloadError, NanochatError
from nanochat.modelhub.shape import Shape
from nanochat.transfer.child import Child, end_text
from nanochat.transfer.events import CannotPause, Event, Failed, Note, Progress, Ready, Resolved
from nanochat.transfer.journal import Entry
from nanochat.transfer.pace import Pace


class State(StrEnum):
    """Where a download stands."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    READY = "ready"
    PAUSED = "paused"
    """By the user: it waits until the user goes on with it."""
    INTERRUPTED = "interrupted"
    """By the end of the process that fetched it: the next start goes on with it."""
    FAILED = "failed"
    CANCELLED = "cancelled"


RUNNING = (State.RESOLVING, State.DOWNLOADING, State.VERIFYING)
RESTING = (State.READY, State.PAUSED, State.INTERRUPTED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A download as it stood at one moment. Sizes in bytes, times in seconds."""

    id: str
    repo_id: str
    revision: str
    commit: str | None
    state: State
    done: int
    """Never falls while the same commit is fetched."""
    total: int | None
    """None until it is resolved."""
    files_done: int
    files_total: int
    speed: float | None
    """Bytes per second over the last ten seconds."""
    seconds_left: float | None
    checked: int
    """While verifying: bytes hashed of what was here before."""
    note: str
    """What it waits for (a retry, another process), or why it failed."""
    error: NanochatError | None
    can_pause: bool
    folder: Path | None
    """The model's folder, when ready."""
    shape: Shape | None
    """What decides the memory that it will take, once it is resolved."""

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return self.done / self.total if self.total else float(self.state is State.READY)


@dataclass
class Job:
    """A download's mutable side; the queue that owns it guards it with its lock."""

    entry: Entry
    state: State
    claim: FileLock | None
    """The right to write the journal's entry; None while another process has it."""
    done: int = 0
    files_done: int = 0
    files_total: int = 0
    checked: int = 0
    note: str = ""
    error: NanochatError | None = None
    can_pause: bool = True
    folder: Path | None = None
    child: Child | None = None
    busy: bool = False
    """A process runs for it, or what it fetched is being removed."""
    pace: Pace = field(default_factory=Pace)

    @classmethod
    def of(cls, entry: Entry, state: State, claim: FileLock | None) -> Job:
        """A job that goes on where the journal's entry says."""
        return cls(entry, state, claim, done=entry.done, files_total=len(entry.etags))

    def begin(self) -> None:
        """A process is about to start."""
        self.state, self.busy = State.RESOLVING, True
        self.pace, self.note, self.error, self.can_pause = Pace(), "", None, True

    def rest(self, state: State) -> None:
        """Stop for now, or for good. The process, if there is one, is killed."""
        self.state, self.note = state, ""
        if self.child is not None:
            self.child.kill()

    def take(self, event: Event, now: float) -> bool:
        """Move by an event of the process; whether it is worth a line in the journal."""
        match event:
            case Resolved():
                same = event.commit == self.entry.commit
                etags = sorted({etag for _, _, etag in event.files})
                self.done, self.files_total = max(self.done, event.done) if same else event.done, len(etags)
                shape = event.shape or self.entry.shape
                self.entry = replace(
                    self.entry, commit=event.commit, total=event.total, etags=etags, shape=shape
                )
                self.state = State.DOWNLOADING
                return True
            case Progress():
                self.done, self.files_done = max(self.done, event.done), max(self.files_done, event.files)
                self.checked = event.checked
                self.pace.add(now, event.received)
                self.state = State.VERIFYING if event.verifying else State.DOWNLOADING
            case Note():
                self.note = event.text
            case CannotPause():
                self.can_pause, self.note = False, event.text
            case Ready():
                self.state, self.folder, self.note = State.READY, Path(event.folder), ""
                self.done = self.entry.total or self.done
            case Failed():
                self.state, self.error, self.note = State.FAILED, event.error(), event.text
            case _:
                pass
        return False

    def end(self, status: int, errors: str) -> None:
        """The process is gone; without a last word of its own that is a failure."""
        self.child = None
        if self.state in RUNNING:
            self.error = DownloadError(end_text(status, errors))
            self.state, self.note = State.FAILED, str(self.error)

    def view(self, now: float) -> Download:
        """The frozen copy that others see."""
        moving = self.state is State.DOWNLOADING
        missing = (self.entry.total or 0) - self.done
        return Download(
            id=self.entry.id,
            repo_id=self.entry.repo_id,
            revision=self.entry.revision,
            commit=self.entry.commit,
            state=self.state,
            done=self.done,
            total=self.entry.total,
            files_done=self.files_done,
            files_total=self.files_total,
            speed=self.pace.speed(now) if moving else None,
            seconds_left=self.pace.seconds_left(now, missing) if moving else None,
            checked=self.checked,
            note=self.note,
            error=self.error,
            can_pause=self.can_pause,
            folder=self.folder,
            shape=Shape.from_json(self.entry.shape),
        )

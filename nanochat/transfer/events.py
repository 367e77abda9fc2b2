"""What a download's child process is told, and the lines that it answers: one JSON object each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nanochat.errors import (
    AccessDenied,
    DownloadError,
    InvalidModel,
    ModelNotFound,
    NanochatError,
    Offline,
    UnsupportedModel,
    UsageError,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient a transfer is. Times in seconds, `slowest` in bytes per second."""

    connect_timeout: float = 10.0
    read_timeout: float = 10.0
    tries: int = 8
    """Failures in a row, without a byte in between, before the download says so and stops."""
    first_delay: float = 1.0
    longest_delay: float = 30.0
    longest_retry_after: float = 300.0
    slow_window: float = 30.0
    slowest: int = 1024
    lock_timeout: float = 120.0
    """How long another process may hold a file's lock without its part growing."""
    workers: int = 4


@dataclass(frozen=True, slots=True)
class Spec:
    """One download, as the child is asked for it."""

    repo_id: str
    revision: str
    cache: str
    """The Hugging Face cache folder (`.../hub`)."""
    records: str
    """The folder of the records of verified files."""
    commit: str | None = None
    """The commit that an interrupted download had begun; `revision` still names the ref to write."""
    reserved: int = 0
    """Bytes of free disk that other running downloads are going to use."""
    policy: Policy = field(default_factory=Policy)

    def to_json(self) -> str:
        """One argument of the child's command line; it never holds a token."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The reverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        policy = Policy(**data.pop("policy"))
        return cls(**data, policy=policy)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What will be fetched is fixed: the commit, each file's size and the name of its blob."""

    commit: str
    files: list[tuple[str, int, str]]
    total: int
    done: int
    shape: dict[str, Any] | None = None
    """What decides the memory that the model takes (`shape.Shape`)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. Bytes: here (resumed ones included), received by this process, hashed of what was here before."""

    done: int
    received: int
    files: int
    """Files that are whole and verified; files with the same content count once."""
    checked: int = 0
    verifying: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """What the transfer is waiting for, or nothing when it goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class CannotPause:
    """From here on the transfer is the hub client's own, which starts files over."""

    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Every file is verified and published in this folder."""

    folder: str
    commit: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The download ended. `kind` is the name of the error's class."""

    kind: str
    text: str

    def error(self) -> NanochatError:
        """The error again, as the type that the child raised."""
        return KINDS.get(self.kind, DownloadError)(self.text)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a lookup: any JSON value."""

    value: Any


Event = Resolved | Progress | Note | CannotPause | Ready | Failed | Answer
EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Resolved, Progress, Note, CannotPause, Ready, Failed, Answer)
}
KINDS: dict[str, type[NanochatError]] = {
    kind.__name__: kind
    for kind in (
        AccessDenied,
        DownloadError,
        InvalidModel,
        ModelNotFound,
        Offline,
        UnsupportedModel,
        UsageError,
    )
}


def to_line(event: Event) -> str:
    """One line of the child's standard output."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n"


def from_line(line: str) -> Event | None:
    """The event on a line; None when the line is no event (a library that printed something)."""
    try:
        data = json.loads(line)
        kind = EVENTS[data.pop("event")]
        event = kind(**data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if isinstance(event, Resolved):
        return replace(event, files=[(name, size, etag) for name, size, etag in event.files])
    return event

"""What the history hands out: frozen records of chats and messages, and the hash that names a message."""

from __future__ import annotations

import array
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

HASH_DOMAIN = b"nanochat message 1"
NONCE_BYTES = 8

_MOST = 1e15  # of anything that is counted or timed


class Role(StrEnum):
    """Who wrote a message. `ROOT` is the silent first node of a tree; it is never shown."""

    ROOT = "root"
    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"


class Status(StrEnum):
    """How a message ended. A reply that still runs is no message yet: see `Running`."""

    DONE = "done"
    STOPPED = "stopped"  # by the user; the text is kept
    FAILED = "failed"  # by the engine; `error` says why
    INTERRUPTED = "interrupted"  # its process died; the text is what was last saved


class TitleBy(StrEnum):
    """Where a chat's title comes from; a later one in this list replaces an earlier one."""

    NONE = "none"
    FIRST = "first"  # the first line of the first message
    AUTO = "auto"  # written by the model
    USER = "user"


def storable(text: str) -> str:
    """`text` as it can be stored: unchanged, but lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def pack_ids(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian int32, four bytes each."""
    packed = array.array("i", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """The ids that `pack_ids` packed."""
    ids = array.array("i")
    ids.frombytes(packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return tuple(ids)


def message_id(*, parent: str, role: str, content: str, reasoning: str, packed_ids: bytes, nonce: str) -> str:
    """The name of a message: 64 hex digits of a sha256 over where it hangs and what it says.

    Hashed, each field led by its length (8 bytes, little-endian): the parent's id (32 bytes; empty for a
    root), the role, the content and the reasoning in UTF-8, the token ids as `pack_ids` packs them, and the
    nonce. The nonce is drawn for each attempt, so the same answer given twice is kept twice. Model,
    parameters, figures, status and times are notes beside the message and are not part of its name.
    """
    digest = hashlib.sha256(HASH_DOMAIN)
    fields = (bytes.fromhex(parent), role.encode(), content.encode(), reasoning.encode(), packed_ids)
    for part in (*fields, bytes.fromhex(nonce)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, immutable once written.

    `variant` of `variants` counts it among its siblings that this chat shows, from 1. `metrics` is what
    `RequestMetrics.as_dict()` gave. `packed_ids` holds the token ids as they are stored; `token_ids` unpacks.
    """

    id: str
    parent: str
    role: Role
    content: str
    reasoning: str = ""
    packed_ids: bytes = b""
    nonce: str = ""
    model: str = ""
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: Status = Status.DONE
    finish_reason: str = ""
    error: str = ""
    created: float = 0.0
    variant: int = 1
    variants: int = 1

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids that the model wrote; empty where none are known."""
        return unpack_ids(self.packed_ids)

    @property
    def figures(self) -> dict[str, float]:
        """Those of the metrics that are numbers: an imported chat may hold anything."""
        return {
            name: value
            for name, value in self.metrics.items()
            if isinstance(value, (int, float)) and -_MOST < value < _MOST
        }

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return int(self.figures.get("cached_tokens", 0))

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that were computed."""
        return int(self.figures.get("prefill_tokens", 0))

    def expected_id(self) -> str:
        """What the id must be, from the message itself."""
        return message_id(
            parent=self.parent, role=self.role, content=self.content, reasoning=self.reasoning,
            packed_ids=self.packed_ids, nonce=self.nonce,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A reply that is being written: it has no hash yet and waits outside the tree under a temporary id."""

    id: str
    chat: str
    parent: str
    model: str
    params: Mapping[str, Any]
    content: str
    reasoning: str
    packed_ids: bytes
    started: float
    mine: bool  # false: another live nanochat writes it

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids so far."""
        return unpack_ids(self.packed_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One chat as a list shows it. `messages` counts every variant; `head` is the message it stands at."""

    id: str
    title: str
    title_by: TitleBy
    pinned: bool
    created: float
    updated: float
    deleted: float | None
    head: str
    root: str
    settings: Mapping[str, Any]
    draft: str
    messages: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """From `first_kept` on the messages are in the context; the `turns` before it were dropped by the user's
    choice."""

    first_kept: str
    turns: int
    created: float


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat as its tab shows it: the path from the first message to the head, in order."""

    chat: Chat
    messages: tuple[Message, ...]
    running: tuple[Running, ...]
    dropped: tuple[Dropped, ...]

    @property
    def in_context(self) -> tuple[Message, ...]:
        """The messages that the user did not drop: from the latest mark on this path on.

        A mark at the first message takes all of them in again.
        """
        places = {message.id: place for place, message in enumerate(self.messages)}
        start = next(
            (places[mark.first_kept] for mark in reversed(self.dropped) if mark.first_kept in places), 0
        )
        return self.messages[start:]


@dataclass(frozen=True, slots=True)
class Tab:
    """An open tab: a chat, or none yet (`chat` is `None`), with its unsent text."""

    chat: str | None
    draft: str = ""
    active: bool = False


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of text around a match; `spans` are the matches in it as [start, end) character offsets."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """One message that a search found."""

    message: str
    role: Role
    created: float
    snippet: Snippet


@dataclass(frozen=True, slots=True)
class Found:
    """One chat that a search found: its title with the matches in it, and its newest messages that match."""

    chat: Chat
    title: Snippet
    hits: tuple[Hit, ...]

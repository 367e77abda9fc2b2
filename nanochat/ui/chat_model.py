"""A model as a chat needs it: turns become prompt ids, text is counted, reasoning is told from the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nanochat.storage.records import Message


@dataclass(frozen=True, slots=True)
class Piece:
    """Newly readable text of a reply: what belongs to the answer, and what to the reasoning before it."""

    text: str = ""
    reasoning: str = ""


class ReplyReader(Protocol):
    """Splits one reply's text as it comes, cut anywhere."""

    @property
    def reasoned(self) -> bool:
        """Whether the reply has a block of reasoning, if only an empty one."""
        ...

    def push(self, text: str) -> Piece:
        """Take in the next piece; a marker that is not whole yet is held back."""
        ...

    def finish(self) -> Piece:
        """What was held back."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and how the reply to it is read."""

    ids: tuple[int, ...]
    reader: ReplyReader
    skip_special_tokens: bool = True


class ChatModel(Protocol):
    """What is known of a model's language. Every method may block for some milliseconds: call from a worker."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Its own sampling values, from its `generation_config.json`."""
        ...

    @property
    def can_think(self) -> bool:
        """Whether its reasoning can be turned on and off."""
        ...

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        ...

    def prompt(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0,
        partial: Sequence[int] = (), begin: str = "",
    ) -> Asked:  # fmt: skip
        """What asks for the next reply to `messages`.

        `started` is when the chat began, for templates that write a date; `partial` are ids that the reply already
        begins with, and `begin` a text that it shall begin with.
        Raises NanochatError when the template cannot say this.
        """
        ...

    def warm(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> tuple[int, ...]:
        """The ids that the turn after `messages` will begin with, where they are not in the cache yet; else none."""
        ...

    def tokens(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> int:
        """How many tokens a chat has that stands so, without a next reply. Raises NanochatError as `prompt` does."""
        ...

    def first_kept(
        self, messages: Sequence[Message], limit: int, *, system_prompt: str, thinking: bool | None,
        started: float = 0.0,
    ) -> int | None:  # fmt: skip
        """How many of the oldest messages must go so that the prompt has at most `limit` tokens; None: it cannot."""
        ...

"""A model as a chat needs it: turns become prompt ids, text is counted, reasoning is told from the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nanochat.history_records import Message


@dataclass(frozen=True, slots=True)
class Piece:
    """Newly readable text of a reply: what belongs to the answer, and what to the reasoning before it."""

    text: str = ""
    reasoning: str = ""


class ReplyReader(Protocol):
    """Splits one reply's text as it comes, cut anywhere."""

    def push(self, text: str) -> Piece:
        """Take in the next piece; a marker that is not whole yet is held back."""
        ...

    def finish(self) -> Piece:
        """What was held back."""
        ...


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
        self,
        messages: Sequence[Message],
        *,
        system_prompt: str,
        thinking: bool | None,
        partial: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """The ids that ask for the next reply to `messages`; `partial` are ids that the reply already begins with.

        Raises NanochatError when the template cannot say this.
        """
        ...

    def warm(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None
    ) -> tuple[int, ...]:
        """The ids that the turn after `messages` will begin with; they are put into the cache in idle time."""
        ...

    def reader(self, *, thinking: bool | None, partial: str = "", partial_reasoning: str = "") -> ReplyReader:
        """A reader for a reply, which goes on after what has come already."""
        ...

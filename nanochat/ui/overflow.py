"""When a chat is longer than the model's context: how much too long, and where it may be cut. No Textual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanochat.history_records import Message, Role

RESERVE = 256  # tokens that a reply should have at least
WARN_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Overflow:
    """A prompt that does not fit. Tokens."""

    prompt: int
    limit: int
    context: int


def measure(prompt: int, partial: int, context: int) -> Overflow | None:
    """None when prompt and a reply of some length fit; a reply that goes on (`partial`) needs room for one token."""
    reserve = 1 if partial else min(RESERVE, context // 8)
    limit = context - reserve
    return None if prompt <= limit else Overflow(prompt, limit, context)


def cuts(messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Where the oldest turns may be dropped: (index of the first message kept, turns dropped), the fewest first.

    A turn begins with a message of the user's, and so does what is kept.
    """
    starts = [index for index, message in enumerate(messages) if message.role is Role.USER]
    for turns, index in enumerate(starts[1:], start=1):
        yield index, turns

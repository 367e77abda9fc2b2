"""When a chat is longer than the model's context: how much too long. No Textual."""

from __future__ import annotations

from dataclasses import dataclass

RESERVE = 256  # tokens that a reply should have at least
WARN_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Overflow:
    """A prompt that does not fit. Tokens; `alone` says that its last message does not without those before it either."""

    prompt: int
    limit: int
    context: int
    alone: bool = False


def measure(prompt: int, partial: int, context: int) -> Overflow | None:
    """None when prompt and a reply of some length fit; a reply that goes on (`partial`) needs room for one token."""
    reserve = 1 if partial else min(RESERVE, context // 8)
    limit = context - reserve
    return None if prompt <= limit else Overflow(prompt, limit, context)

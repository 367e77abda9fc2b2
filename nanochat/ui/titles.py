"""Titles of chats, made by the model itself: what it is asked, and what is left of its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nanochat.engine.sampling_params import SamplingParams
from nanochat.history_records import Message, Role
from nanochat.sanitize import sanitize

TITLE_PARAMS = SamplingParams(temperature=0.0, max_tokens=24, stop=("\n",), min_tokens=1)
LONGEST = 60

_SHARE = 1200  # characters of each message that the model reads for a title
_LEAD = re.compile(r"^(?:the\s+)?(?:title|chat title|conversation title|subject)\s*[:\-–]\s*", re.IGNORECASE)
_MARKS = re.compile(r"[*_`#]+")


def title_request(exchange: Sequence[Message]) -> tuple[Message, ...]:
    """One message that asks for a title of this exchange."""
    talk = "\n".join(
        f"{'User' if m.role is Role.USER else 'Assistant'}: {m.content[:_SHARE]}" for m in exchange
    )
    ask = f"{talk}\n\nGive this conversation a title of two to six words. Answer with the title only."
    return (Message(id="", parent="", role=Role.USER, content=ask),)


def clean_title(answer: str) -> str:
    """The title in a model's answer; "" when there is none that could stand in a list."""
    line = next((line.strip() for line in sanitize(answer).splitlines() if line.strip()), "")
    line = _LEAD.sub("", _MARKS.sub("", line)).strip(" \"'“”‘’.,:;!-")
    if len(line.split()) > 12 or len(line) < 2:
        return ""
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"

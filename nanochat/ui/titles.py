"""Titles of chats, made by the model itself: what it is asked, and what is left of its answer."""

from __future__ import annotations

import re

from nanochat.engine.sampling_params import SamplingParams
from nanochat.sanitize import sanitize
from nanochat.storage.records import Message, Role

LEAD = 'Title: "'
"""What the answer begins with: a small model then writes a title and not an essay (tried with 135M parameters)."""

TITLE_PARAMS = SamplingParams(temperature=0.0, max_tokens=24, stop=('"', "\n"))
LONGEST = 60

_SHARE = 1200  # characters of the message that the model reads for a title
_FEWEST_WORDS = 3  # of a message that says what a chat is about
_MARKS = re.compile(r"[*_`#]+")


def title_request(question: Message) -> tuple[Message, ...]:
    """One message that asks for a title of a chat that begins with `question`; none where it says too little."""
    if len(question.content.split()) < _FEWEST_WORDS:
        return ()
    ask = f"User: {question.content[:_SHARE]}\n\nGive this conversation a title of two to six words."
    return (Message(id="", parent="", role=Role.USER, content=ask),)


def clean_title(answer: str) -> str:
    """The title in a model's answer; "" when there is none that could stand in a list."""
    line = next((line.strip() for line in sanitize(answer).splitlines() if line.strip()), "")
    line = _MARKS.sub("", line).strip(" \"'“”‘’.,:;!-")
    if len(line.split()) > 12 or len(line) < 2:
        return ""
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"

"""Text from outside made safe for a terminal or a widget: the one place that decides which characters may pass.

Every character is judged alone, so a stream may be cleaned piece by piece: cleaning the pieces and joining
them is cleaning the whole. Nothing that a reader could see is dropped: of an escape sequence only the escape
goes, and its parameters show that there was one.
"""

from __future__ import annotations

import re

_FORBIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f"  # C0 except tab and line feed: ESC starts every terminal command, CR overwrites a line
    "\x7f-\x9f"  # DEL and C1: 0x9b is ESC [ in one byte
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u206a-\u206f"  # bidirectional marks, overrides, isolates
    "\ufff9-\ufffb"  # interlinear annotation
    "\U000e0000-\U000e007f"  # tags: invisible text
    "]+"
)
_SURROGATES = re.compile("[\ud800-\udfff]")  # undecodable bytes of a file name; no terminal can print them
_BREAKS = re.compile("[\n\t\x0b\x0c\x85\u2028\u2029]+|\r\n?")


def sanitize(text: str) -> str:
    """`text` without control characters (line feed and tab stay), bidirectional controls and invisible tags."""
    if text.isascii() and text.isprintable():
        return text
    return _SURROGATES.sub("\ufffd", _FORBIDDEN.sub("", text))


def sanitize_line(text: str) -> str:
    """The same for what must stay on one line, such as a file name or an error: breaks and tabs become spaces."""
    return sanitize(_BREAKS.sub(" ", text))

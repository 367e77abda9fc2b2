"""The texts that end a reply, as a line that is typed and shown: a comma between them, \\n and \\t for newline and tab."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TEXT = re.compile(r"(?:\\.|[^\\,])+", re.DOTALL)
_INNER = re.compile(
    r"\s*((?:\\.|[^\\])*?)\s*", re.DOTALL
)  # without the spaces around it that no backslash keeps
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_MEANS = {"n": "\n", "t": "\t"}  # behind a backslash; any other character there is itself
_WRITTEN = {"\n": "\\n", "\t": "\\t", "\\": "\\\\", ",": "\\,"}


def read(line: str) -> tuple[str, ...]:
    """The texts of a line; every line can be read. Spaces around a text are no part of it without a backslash."""
    if (len(line) - len(line.rstrip("\\"))) % 2:
        line += "\\"  # the last one has nothing to stand before
    inner = (_INNER.fullmatch(text) for text in _TEXT.findall(line))
    texts = (_ESCAPED.sub(lambda pair: _MEANS.get(pair[1], pair[1]), text[1]) for text in inner if text)
    return tuple(filter(None, texts))


def write(texts: Iterable[str]) -> str:
    """The line that `read` gives these texts for."""
    return ",".join(map(_written, texts))


def _written(text: str) -> str:
    escaped = "".join(_WRITTEN.get(char, char) for char in text)
    return re.sub(r"^\s+|\s+$", lambda spaces: "".join(f"\\{space}" for space in spaces[0]), escaped)

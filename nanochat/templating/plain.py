"""Plain data that scripts hand to a template: tools, variables of its own, what a message has besides its text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, cast

from nanochat.errors import UsageError

_DEEPEST = 64
_SURROGATES = re.compile("[\ud800-\udfff]")
# Words of tool calls and of JSON Schema, which templates look for.
_WORDS = frozenset((
    "type", "function", "name", "description", "parameters", "properties", "required", "items", "enum", "default", "arguments",
    "id", "text", "tool_calls", "object", "array", "string", "number", "integer", "boolean", "null", "anyOf", "allOf", "oneOf",
    "title", "format", "additionalProperties",
))  # fmt: skip


def mended(text: str) -> str:
    """A text without half characters, which are left of undecodable bytes."""
    return _SURROGATES.sub("\ufffd", text)


@dataclass(frozen=True, slots=True)
class Plain:
    """A dictionary of texts, numbers, lists and dictionaries: as JSON, so that nobody can change it and it can be hashed.

    Templates get copies, never an object of the script's: the sandbox knows what plain values can do, and nothing else.
    """

    json: str

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> Plain:
        """What a script gave under `name`.

        Raises:
            UsageError: there is something else in it.
        """
        return cls(json.dumps(_copied(given, name, 0)))

    def copy(self, rewrite: Callable[[str], str]) -> dict[str, Any]:
        """A copy with every text rewritten, also the keys; not those of the dictionary itself, which are names."""
        return {name: _rewritten(value, rewrite) for name, value in self._values().items()}

    def texts(self) -> list[str]:
        """The texts that `copy` rewrites."""
        return list(_texts(list(self._values().values())))

    def names(self) -> list[str]:
        """Those that a template may put inside of its own signs, as in `"<" ~ key ~ ">"`."""
        return [text for text in self.texts() if text not in _WORDS]

    def _values(self) -> dict[str, Any]:
        return json.loads(self.json)


def _copied(value: Any, name: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise UsageError(f"{name} goes deeper than {_DEEPEST} levels")
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return mended(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        return {_key(key, name): _copied(item, name, depth + 1) for key, item in entries.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item, name, depth + 1) for item in cast("list[Any]", value)]
    raise UsageError(f"{name} may hold texts, numbers, lists and dicts, not a {type(value).__name__}")


def _key(key: object, name: str) -> str:
    if not isinstance(key, str):
        raise UsageError(f"the keys of {name} are texts, not {key!r:.80}")
    return mended(key)


def _rewritten(value: Any, rewrite: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, list):
        return [_rewritten(item, rewrite) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {rewrite(key): _rewritten(item, rewrite) for key, item in entries.items()}
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield key
            yield from _texts(item)

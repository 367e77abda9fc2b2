"""What scripts give as prompts: texts, token ids, dicts of vLLM's shape, one or many of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from nanochat.engine.request import token_ids
from nanochat.errors import UsageError

Prompt = str | Sequence[int] | dict[str, Any]
Prompts = Prompt | Sequence[Prompt]

_KEYS = ("prompt", "prompt_token_ids")
_SHAPES = 'a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}'


class Given(NamedTuple):
    """One prompt: its text, its token ids, or both; the ids count."""

    text: str | None = None
    ids: Sequence[int] | None = None


def read_prompts(prompts: Prompts) -> list[Given]:
    """One prompt or many, each looked at. What is made on demand is made here.

    Raises:
        UsageError: one of them is no prompt.
    """
    given = _plain(prompts)
    if isinstance(given, (str, Mapping)):
        return [_read(given)]
    if isinstance(given, (bytes, bytearray)) or not isinstance(given, Iterable):
        raise UsageError(f"a prompt is {_SHAPES}, not {_told(given)}")
    many = list(given)
    return [_read(many)] if many and _is_id(many[0]) else [_read(item) for item in many]


def _read(prompt: object) -> Given:
    if isinstance(prompt, str):
        return Given(_text(prompt))
    if not isinstance(prompt, Mapping):
        return Given(ids=_ids(prompt))
    unread = [str(key) for key, value in prompt.items() if key not in _KEYS and not _is_nothing(value)]
    if unread:
        raise UsageError(
            f"a prompt has {', '.join(unread)}: models here read {_SHAPES}, and nothing else: leave it out"
        )
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if (text is None and ids is None) or not (text is None or isinstance(text, str)):
        what = (
            f"not one with the keys {', '.join(map(str, prompt))}" if text is None else f"not {_told(text)}"
        )
        raise UsageError(f"a prompt is {_SHAPES}, {what}")
    return Given(None if text is None else _text(text), None if ids is None else _ids(ids))


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"a prompt has a half character at {error.start}: {text[error.start]!r}") from error
    return text


def _ids(values: object) -> Sequence[int]:
    values = _plain(values)
    if isinstance(values, (str, bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
        raise UsageError(f"a prompt is {_SHAPES}, not {_told(values)}")
    return token_ids(values)


def _plain(values: object) -> object:
    """Arrays and tensors as lists."""
    tolist = getattr(values, "tolist", None)
    return tolist() if callable(tolist) else values


def _is_id(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, (str, Mapping, list, tuple)) and not value)


def _told(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"

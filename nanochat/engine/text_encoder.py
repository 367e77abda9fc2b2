"""Encoding a piece of text on its own as it would be encoded inside a longer one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from itertools import pairwise
from threading import Lock
from typing import Any, cast

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

_PARTS = ("normalizer", "pre_tokenizer")


class Place(Enum):
    """What stands before a piece of text. Some tokenizers put a space there, depending on it."""

    START = "start"  # nothing: the start of the input
    AFTER_TOKEN = "after token"  # an added token
    INSIDE = "inside"  # other text


class TextEncoder:
    """Text to ids with the model and pipeline of `source`, but with only some added tokens parsed.

    The model is shared with `source`, so an encoder costs next to nothing. Nothing that a caller can see
    changes after construction, so threads may share it.

    Args:
        source: a tokenizer with all its added tokens.
        parsed: the added tokens to recognise in text, by id.
        forbidden: ids that never come out. Without parsing them, a Unigram model, or a BPE model that looks
            up whole words first, may still find `</s>` in its vocabulary: such a hit is spelled in pieces.
    """

    def __init__(self, source: Backend, parsed: dict[int, AddedToken], forbidden: frozenset[int]) -> None:
        self._source = source
        self._parsed = parsed
        self._forbidden = forbidden
        self._backends: dict[Place, Backend] = {}
        self._renamed: dict[int, int] = {}  # id in our backends -> the model's id, where they differ
        self._lock = Lock()

    def encode(self, text: str, place: Place) -> list[int]:
        """Ids of `text` as they are where it stands at `place`; nothing is added around it."""
        ids: list[int] = []
        pieces = [(text, place)]  # a stack: the next piece is last
        while pieces:
            piece, where = pieces.pop()
            encoding = self._backend(where).encode(piece, add_special_tokens=False)
            found = (
                [self._renamed.get(index, index) for index in encoding.ids] if self._renamed else encoding.ids
            )
            if self._forbidden.isdisjoint(found):
                ids += found
            elif len(piece) == 1:
                ids += [index for index in found if index not in self._forbidden]  # it has no other spelling
            else:
                spans = (
                    span
                    for span, index in zip(encoding.offsets, found, strict=True)
                    if index in self._forbidden
                )
                pieces += reversed(_cut(piece, where, [start + 1 for start, _ in spans]))
        return ids

    def _backend(self, place: Place) -> Backend:
        backend = self._backends.get(place)
        if backend is None:
            with self._lock:
                backend = self._build(place)
                self._backends[place] = backend
        return backend

    def _build(self, place: Place) -> Backend:
        backend = Backend(self._source.model)
        pipeline = _pipeline(self._source, place)
        for part in _PARTS:
            if (component := getattr(pipeline, part)) is not None:
                setattr(backend, part, component)
        for index, token in sorted(self._parsed.items()):
            backend.add_tokens([token])
            given = backend.token_to_id(token.content)
            if given is not None and given != index:
                self._renamed[given] = index
        return backend


def _cut(piece: str, place: Place, at: Iterable[int]) -> list[tuple[str, Place]]:
    """`piece` in pieces that are all shorter than it, cut at some offsets."""
    cuts = [0, *sorted({cut if cut < len(piece) else len(piece) - 1 for cut in at}), len(piece)]
    spans = [(start, end) for start, end in pairwise(cuts) if start < end]
    return [(piece[start:end], Place.INSIDE if start else place) for start, end in spans]


def _pipeline(source: Backend, place: Place) -> Backend:
    """A backend whose normalizer and pre-tokenizer do to a whole text what `source` does at `place`."""
    holder = Backend(models.BPE())
    for part in _PARTS:
        if (component := getattr(source, part)) is not None:
            setattr(holder, part, component)
    if place is Place.START:
        return holder
    state = json.loads(holder.to_str())
    for part in _PARTS:
        state[part] = _without_prefix(state[part], place)
    return Backend.from_str(json.dumps(state))


def _without_prefix(component: Any, place: Place) -> Any:
    """A component's JSON without what puts a space before the text, as far as that holds at `place`."""
    if isinstance(component, list):
        edited = [_without_prefix(item, place) for item in cast("list[Any]", component)]
        return [item for item in edited if item is not None]
    if not isinstance(component, dict):
        return component
    component = cast("dict[str, Any]", component)
    inside, kind = place is Place.INSIDE, component.get("type")
    if kind == "Metaspace" and (inside or component.get("prepend_scheme") == "first"):
        return component | {"prepend_scheme": "never"}
    if kind == "Prepend" and inside:
        return None
    if kind == "ByteLevel" and inside:
        return component | {"add_prefix_space": False}
    return {name: _without_prefix(value, place) for name, value in component.items()}

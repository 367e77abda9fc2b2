"""Texts that a reply must not hold, as the tokens that spell them; vLLM's `bad_words`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nanochat.errors import InvalidSampling

if TYPE_CHECKING:
    from nanochat.engine.tokenizer import Tokenizer

Spellings = tuple[tuple[int, ...], ...]


def spell(words: Iterable[str], tokenizer: Tokenizer, vocabulary: int) -> Spellings:
    """The tokens of each word, at the beginning of a text and after a blank.

    Raises:
        InvalidSampling: a word has no tokens.
    """
    spellings: dict[tuple[int, ...], None] = {}
    for word in words:
        begun = word.lstrip() or word
        ways = [
            tuple[int, ...](tokenizer.backend.encode(text, add_special_tokens=False).ids)
            for text in (begun, f" {begun}")[: 2 if word.strip() else 1]
        ]
        if not ways[0]:
            raise InvalidSampling(f"bad_words holds {word!r}, of which the model's tokenizer makes nothing")
        # What has a token that the model cannot draw will not come.
        spellings |= dict.fromkeys(ids for ids in ways if max(ids) < vocabulary)
    return tuple(spellings)


def completing(spellings: Spellings, tokens: Sequence[int], begin: int) -> set[int]:
    """The tokens each of which would now complete one of `spellings` within `tokens[begin:]`."""
    found: set[int] = set()
    for ids in spellings:
        start = len(tokens) - len(ids) + 1
        if len(ids) == 1 or (start >= begin and tuple(tokens[start:]) == ids[:-1]):
            found.add(ids[-1])
    return found

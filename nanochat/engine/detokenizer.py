"""Incremental detokenization: ids in as they are sampled, text out as soon as it is final.

The promise: whatever the chunking, the pieces concatenate to `tokenizer.decode(reply ids)`, cut at the
first stop string; no piece is ever taken back, and no part of a stop string gets out. The prompt does not
matter to that: a tokenizer that strips the space before the first word strips it from the reply.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_MAX_UNSETTLED = (
    32  # tokens; only a decoder chain around ByteLevel that emits nothing but broken bytes meets it
)


class TextStream(Protocol):
    """Ids to text, one id at a time; text that comes out is final."""

    def push(self, index: int) -> str:
        """Take one id, return the text that has become final."""
        ...

    def finish(self) -> str:
        """Return what was held because a later id might have changed it."""
        ...


class ByteStream:
    """For byte-level vocabularies: every token is a run of bytes, and UTF-8 says where characters end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """Take one id, return the characters that it completes."""
        return self._decoder.decode(self._bytes_of(index))

    def finish(self) -> str:
        """One U+FFFD if a character is incomplete, else nothing."""
        return self._decoder.decode(b"", True)


class WindowStream:
    """For every other vocabulary: decode a short window of ids with the ids before it as context.

    `_ids[:_read]` is released text that serves as context: it holds at least one token with text (or is
    empty, at the reply's start), so a decoder that strips the start of a text strips it there and not
    from what follows. `_ids[_read:]` is not released yet. A run of byte tokens (`<0xE4>`) is decoded as a
    whole, valid or not, so it stays until another kind of token ends it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._read = 0
        self._context = ""  # the text of _ids[:_read]

    def push(self, index: int) -> str:
        """Take one id, return the text that it settles."""
        if self._tokenizer.token(index) is None:
            return ""  # outside the vocabulary: decodes to nothing, and ends no run of bytes
        self._ids.append(index)
        return "" if index in self._tokenizer.byte_ids else self._release(final=False)

    def finish(self) -> str:
        """Everything held."""
        return self._release(final=True) if self._read < len(self._ids) else ""

    def _release(self, *, final: bool) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=False)
        if len(text) <= len(self._context) or not text.startswith(self._context):
            return text[len(self._context) :] if final else ""
        broken = text.endswith(_REPLACEMENT) and self._tokenizer.holds_bytes
        if broken and not final and len(self._ids) - self._read < _MAX_UNSETTLED:
            return ""
        fresh = text[len(self._context) :]
        del self._ids[: self._read]
        self._read = len(self._ids)
        self._context = self._tokenizer.decode(self._ids, skip_special_tokens=False)
        return fresh


class StopMatcher:
    """Finds the first stop string to be completed in a text that arrives in pieces (Knuth-Morris-Pratt).

    `held` is the longest end of the text so far that a stop string starts with.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        # The longest first: of two that end at the same character the longer one is met, so none leaks.
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self.held = 0

    def feed(self, text: str, *, counts: bool) -> tuple[str, int] | None:
        """Read on; the stop string met and how many characters of `text` it took, or `None`.

        With `counts` false (before min_tokens) complete stop strings are passed over.
        """
        for read, character in enumerate(text, 1):
            met = None
            for which, stop in enumerate(self._stops):
                borders, size = self._borders[which], self._matched[which]
                while size and (size == len(stop) or stop[size] != character):
                    size = borders[size]
                size += stop[size] == character
                self._matched[which] = size
                if size == len(stop) and met is None:
                    met = stop
            if met is not None and counts:
                return met, read
        # A stop string that was complete and did not count is text: hold only what may still grow.
        self.held = max(
            (
                borders[size] if size == len(stop) else size
                for stop, borders, size in zip(self._stops, self._borders, self._matched, strict=True)
            ),
            default=0,
        )
        return None


class IncrementalDetokenizer:
    """The text of one reply as it grows.

    Args:
        tokenizer: the model's.
        params: `stop`, `include_stop_str_in_output`, `skip_special_tokens` and `min_tokens` count here. A
            stop string counts when the token that completes it comes after the first `min_tokens` tokens.
        prompt_ids: the prompt; it has no influence (see the module's docstring).

    Attributes:
        stopped: the stop string that was met, or `None`.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_ids: Sequence[int] = ()) -> None:
        del prompt_ids
        self._stream: TextStream = ByteStream(tokenizer) if tokenizer.byte_level else WindowStream(tokenizer)
        self._skipped = tokenizer.special_ids if params.skip_special_tokens else frozenset[int]()
        self._matcher = StopMatcher(params.stop_strings) if params.stop_strings else None
        self._keep_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._tokens = 0
        self._held = ""  # final, but perhaps the start of a stop string
        self._released: list[str] = []
        self.stopped: str | None = None

    @property
    def text(self) -> str:
        """All text released so far."""
        if len(self._released) > 1:
            self._released = ["".join(self._released)]
        return self._released[0] if self._released else ""

    def push(self, ids: Sequence[int]) -> str:
        """Take the reply's next ids; return the text that became final. Nothing after a stop string."""
        fresh = ""
        for index in ids:
            self._tokens += 1
            if index not in self._skipped and self.stopped is None and (text := self._stream.push(index)):
                fresh += self._pass(text)
        return self._release(fresh)

    def finish(self) -> str:
        """The reply is over: release what was held. A stop string may still be met in it."""
        if self.stopped is not None:
            return ""
        fresh = self._pass(self._stream.finish())
        held, self._held = self._held, ""
        return self._release(fresh if self.stopped is not None else fresh + held)

    def _pass(self, text: str) -> str:
        """What of the held text and `text` may go out."""
        if self._matcher is None:
            return text
        met = self._matcher.feed(text, counts=self._tokens > self._min_tokens)
        whole = self._held + text
        if met is not None:
            self.stopped, read = met
            end = len(self._held) + read
            self._held = ""
            return whole[: end if self._keep_stop else end - len(self.stopped)]
        cut = len(whole) - self._matcher.held
        self._held = whole[cut:]
        return whole[:cut]

    def _release(self, text: str) -> str:
        if text:
            self._released.append(text)
        return text


def _borders(pattern: str) -> list[int]:
    """For each length, the longest proper prefix of pattern[:length] that also ends it."""
    borders = [0, 0]
    for end in range(1, len(pattern)):
        size = borders[end]
        while size and pattern[size] != pattern[end]:
            size = borders[size]
        borders.append(size + (pattern[size] == pattern[end]))
    return borders

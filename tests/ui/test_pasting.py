"""Pastes as terminals send them: one text each, whatever is in it and however it is cut."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from textual import events

from nanochat.ui.pasting import END, START, PasteParser

HOSTILE = "red \x1b[31m text\r\x1b[200~ \x1b]0;title\x07 [/markup] \x1b[A\x1b"


def heard(*pieces: str) -> list[str]:
    """What the application hears: keys by their names, pastes in full."""
    parser = PasteParser()
    messages = itertools.chain.from_iterable(list(parser.feed(piece)) for piece in pieces)
    return [
        f"paste {message.text!r}" if isinstance(message, events.Paste) else message.key
        for message in messages
        if isinstance(message, (events.Paste, events.Key))
    ]


@settings(max_examples=60)
@given(st.sets(st.integers(1, 80)))
def test_a_paste_with_escapes_in_it_is_one_text_and_no_keys_however_it_is_cut(cuts: set[int]) -> None:
    data = f"a{START}{HOSTILE}{END}\x1b[Ab{START}{END}c"
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(ends)]
    assert heard(*pieces) == ["a", f"paste {HOSTILE!r}", "up", "b", "c"]


def test_what_is_typed_is_heard_as_ever() -> None:
    assert heard("hi\r", "\x1b[", "A", "\x1b[2", "00", "~x", END) == ["h", "i", "enter", "up", "paste 'x'"]

"""What reaches a terminal from outside."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.sanitize import sanitize, sanitize_line

BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


@given(anything)
def test_nothing_that_steers_a_terminal_passes(text: str) -> None:
    for character in sanitize(text):
        assert unicodedata.category(character) not in ("Cc", "Cs") or character in "\n\t"
        assert unicodedata.bidirectional(character) not in BIDIRECTIONAL
        assert not 0xE0000 <= ord(character) <= 0xE007F


@given(anything, st.lists(st.integers(0, 60)))
def test_a_stream_cut_anywhere_is_cleaned_like_the_whole(text: str, cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(marks)]
    assert "".join(map(sanitize, pieces)) == sanitize(text)


@given(anything)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert sanitize(sanitize(text)) == sanitize(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"])))
def test_what_can_be_seen_is_kept(text: str) -> None:
    assert sanitize(text) == text


@given(anything)
def test_a_line_stays_one_line(text: str) -> None:
    line = sanitize_line(text)
    assert len(line.splitlines()) <= 1
    assert "\t" not in line
    line.encode("utf-8")  # no lone surrogate is left


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J\x1b[Hgone", "[2J[Hgone"),
        ("\x9b31mred", "31mred"),
        ("\x1b]52;c;cm0gLXJm\x07", "]52;c;cm0gLXJm"),
        ("100%\rdone", "100%done"),
        ("abc\u202egnp.exe", "abcgnp.exe"),
        ("hi\U000e0068\U000e0069", "hi"),
        ("a\x7f\x08b", "ab"),
        ("one\ttwo\nthree\n", "one\ttwo\nthree\n"),
        ("日本語 🏳️‍🌈 é", "日本語 🏳️‍🌈 é"),
        ("bad\udcffname", "bad\ufffdname"),
    ],
)
def test_known_tricks(hostile: str, shown: str) -> None:
    assert sanitize(hostile) == shown

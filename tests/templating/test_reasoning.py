"""Reasoning and answer: told apart while they stream in, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.templating.reasoning import Markers, ReasoningSplitter, find_markers, overlap

THINK = Markers("<think>", "</think>")
OSS = Markers(
    "<|channel|>analysis<|message|>",
    "<|start|>assistant<|channel|>final<|message|>",
    "<|channel|>final<|message|>",
)
OSS_SPECIAL = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")


def split(text: str, size: int = 1, markers: Markers | None = THINK, **options: object) -> tuple[str, str]:
    splitter = ReasoningSplitter(markers, **options)  # type: ignore[arg-type]
    parts = [splitter.push(text[at : at + size]) for at in range(0, len(text), size)] + [splitter.finish()]
    return "".join(part.reasoning for part in parts), "".join(part.answer for part in parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
        ("\n <think>Hm</think>Yes", ("Hm", "Yes")),
        ("<think>\n\n</think>\n\nYes.", ("", "Yes.")),
        ("Yes.", ("", "Yes.")),
        ("  Yes.\n", ("", "  Yes.\n")),
        ("<thin ice", ("", "<thin ice")),
        ("<think", ("", "<think")),
        ("Say <think>x</think>.", ("", "Say <think>x</think>.")),
        ("<think>a</think>b<think>c</think>", ("a", "b<think>c</think>")),
        ("<think>cut off\n", ("cut off", "")),
        ("<think>a </thin b</think> c ", ("a </thin b", "c ")),
        ("<think>a\n\nb</think>c\n\nd\n", ("a\n\nb", "c\n\nd\n")),
        ("", ("", "")),
        ("\n", ("", "\n")),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_reply_is_split_in_any_pieces(text: str, expected: tuple[str, str], size: int) -> None:
    assert split(text, size) == expected


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_block_that_the_template_opened_needs_no_opening(size: int) -> None:
    assert split("\nHm.\n</think>\n\nYes.", size, opened=True) == ("Hm.", "Yes.")
    assert split("</think>Yes.", size, opened=True) == ("", "Yes.")
    assert split("no end", size, opened=True) == ("no end", "")


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_markers_of_special_tokens_are_taken_out(size: int) -> None:
    whole = OSS.open + "Hm.<|end|>" + OSS.close + "Yes <|x|>.<|return|>"
    assert split(whole, size, OSS, dropped=OSS_SPECIAL) == ("Hm.", "Yes <|x|>.")
    assert split("<|channel|>final<|message|>Yes.<|return|>", size, OSS, dropped=OSS_SPECIAL) == ("", "Yes.")


@given(
    text=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "think", ">", "/", " ", "\n", "a"]), max_size=9
    ).map("".join)
)
def test_the_pieces_do_not_matter(text: str) -> None:
    for opened in (False, True):
        assert split(text, 1, opened=opened) == split(text, 1000, opened=opened)


@given(text=st.text("<think>/ \na", max_size=20))
def test_nothing_but_markers_and_blank_space_is_lost(text: str) -> None:
    reasoning, answer = split(text)
    kept = "".join((reasoning + answer).split())
    assert kept in ("".join(text.split()), "".join(text.replace("<think>", "", 1).replace("</think>", "", 1).split()),
                    "".join(text.replace("<think>", "", 1).split()))  # fmt: skip


@given(text=st.text(max_size=20))
def test_without_markers_everything_is_the_answer(text: str) -> None:
    assert split(text, 2, None) == ("", text)


def test_the_reader_knows_whether_the_model_is_thinking() -> None:
    splitter = ReasoningSplitter(THINK)
    seen = []
    for piece in ("<th", "ink>", "Hm", "</think", ">", "Yes"):
        splitter.push(piece)
        seen.append((splitter.thinking, splitter.reasoned))
    assert seen == [(False, False), (True, True), (True, True), (True, True), (False, True), (False, True)]


def test_text_comes_out_as_soon_as_it_is_certain() -> None:
    splitter = ReasoningSplitter(THINK)
    parts = [
        splitter.push(piece) for piece in ("<think>a", " b", " ", "c<", "d", "</think>", "\n", "e", "<think>")
    ]
    assert [part.reasoning for part in parts] == ["a", " b", "", " c", "<d", "", "", "", ""]
    assert [part.answer for part in parts] == ["", "", "", "", "", "", "", "e", "<think>"]


def test_markers_are_found_in_the_template_before_the_vocabulary() -> None:
    assert find_markers(["... [/THINK] ..."], ["<think>", "</think>"]) == Markers("[THINK]", "[/THINK]")
    assert find_markers(["nothing"], ["<think>", "</think>"]) == THINK
    assert find_markers(["nothing"], ["<think>"]) is None
    assert find_markers(["ends </think>"], []) == THINK


@given(text=st.text("ab", max_size=8), markers=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_overlap_is_the_longest_end_that_may_grow(text: str, markers: list[str]) -> None:
    ends = [
        size
        for size in range(1, len(text) + 1)
        for m in markers
        if size < len(m) and m.startswith(text[-size:])
    ]
    assert overlap(text, markers) == max(ends, default=0)

"""Incremental detokenization: what is out is final, and the pieces are the whole."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, tokenizer

from nanochat.engine.detokenizer import IncrementalDetokenizer
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.tokenizer import Tokenizer

every_kind = pytest.mark.parametrize("kind", KINDS)
TEXT = "Héllo 你好 😀👩‍👩‍👧 ﷽ \ufffd wörld ’tis\n\n  x"


def replies(kind: str) -> st.SearchStrategy[list[int]]:
    """Any ids at all, with bytes of broken characters, markers and ids outside the vocabulary."""
    tok = tokenizer(kind)
    sensible = st.sampled_from([TEXT, "a b", "�", "café", " x", "<|im_end|>", "</s>"]).map(
        lambda text: tok.encode(text, special=False)
    )
    anything = st.lists(st.integers(0, tok.vocab_size + 3), max_size=6)
    some_bytes = st.lists(st.sampled_from(sorted(tok.byte_ids) or [0]), max_size=5)
    return st.lists(st.one_of(sensible, anything, some_bytes), max_size=6).map(
        lambda parts: list(chain(*parts))
    )


def pieces(tok: Tokenizer, params: SamplingParams, ids: list[int], step: int = 1) -> list[str]:
    detokenizer = IncrementalDetokenizer(tok, params, ())
    out = [detokenizer.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    return [*out, detokenizer.finish()]


def cut_at_stop(text: str, stops: tuple[str, ...], start: int = 0) -> tuple[str, str | None]:
    """The definition: the stop string that is complete first; of several that end there, the longest."""
    for end in range(start + 1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


@every_kind
@settings(max_examples=120)
@given(data=st.data(), step=st.integers(1, 4), skip=st.booleans())
def test_the_pieces_are_the_whole(kind: str, data: st.DataObject, step: int, skip: bool) -> None:
    tok = tokenizer(kind)
    ids = data.draw(replies(kind))
    params = SamplingParams(skip_special_tokens=skip)
    assert "".join(pieces(tok, params, ids, step)) == tok.decode(ids, skip_special_tokens=skip)


def test_the_starter_models_pieces_are_the_whole(starter_model: Path) -> None:
    tok = Tokenizer.from_folder(starter_model)
    draw = Random(7)
    for _ in range(60):
        ids = [draw.randrange(tok.vocab_size + 2) for _ in range(40)]
        ids += tok.encode(TEXT, special=False)[: draw.randrange(60)]
        for skip in (True, False):
            params = SamplingParams(skip_special_tokens=skip)
            assert "".join(pieces(tok, params, ids)) == tok.decode(ids, skip_special_tokens=skip)


@every_kind
@settings(max_examples=100)
@given(data=st.data(), step=st.integers(1, 3), keep=st.booleans())
def test_no_part_of_a_stop_string_ever_leaks(kind: str, data: st.DataObject, step: int, keep: bool) -> None:
    tok = tokenizer(kind)
    ids = data.draw(replies(kind))
    whole = tok.decode(ids)
    spans = st.tuples(st.integers(0, max(0, len(whole) - 1)), st.integers(1, 9))
    inside = spans.map(lambda span: whole[span[0] : span[0] + span[1]] or "x")
    stops = tuple(
        data.draw(
            st.lists(st.one_of(inside, st.text("ab x", min_size=1, max_size=4)), min_size=1, max_size=3)
        )
    )
    detokenizer = IncrementalDetokenizer(tok, SamplingParams(stop=stops, include_stop_str_in_output=keep), ())
    expected, met = cut_at_stop(whole, stops)
    expected += met or "" if keep else ""
    released = ""
    for at in range(0, len(ids), step):
        released += detokenizer.push(ids[at : at + step])
        assert expected.startswith(released)
        assert detokenizer.text == released
    released += detokenizer.finish()
    assert (released, detokenizer.stopped) == (expected, met)
    assert detokenizer.push(ids) == "" or met is None


@every_kind
def test_text_goes_out_with_the_token_that_completes_it(kind: str) -> None:
    tok = tokenizer(kind)
    detokenizer = IncrementalDetokenizer(tok, SamplingParams(), ())
    ids = [i for i in tok.encode("the quick fox and hello world", special=False) if i not in tok.byte_ids]
    for count, index in enumerate(ids, 1):
        detokenizer.push((index,))
        assert detokenizer.text == tok.decode(ids[:count])


def test_only_what_may_grow_to_a_stop_string_is_held() -> None:
    tok = tokenizer("byte_level")
    detokenizer = IncrementalDetokenizer(tok, SamplingParams(stop=["abab!", "bz"]), ())
    seen = [detokenizer.push(tok.encode(letter, special=False)) for letter in "xabababc"]
    assert seen == ["x", "", "", "", "", "ab", "", "ababc"]


def test_a_split_emoji_comes_whole_or_at_the_end_as_one_sign() -> None:
    for kind in ("byte_level", "sentencepiece_first"):
        tok = tokenizer(kind)
        ids = tok.encode("😀 a", special=False)
        assert len(ids) >= 5
        whole = pieces(tok, SamplingParams(), ids)
        assert "\ufffd" not in "".join(whole)
        assert "".join(whole) == "😀 a"
    tok = tokenizer("byte_level")
    out = pieces(tok, SamplingParams(), tok.encode("ok😀", special=False)[:-1])
    assert "".join(out[:-1]) == "ok"
    assert out[-1] == "\ufffd"


def test_a_real_replacement_character_is_text_like_any_other() -> None:
    for kind in ("byte_level", "sentencepiece_first", "gemma_like"):
        tok = tokenizer(kind)
        assert (
            "".join(pieces(tok, SamplingParams(), tok.encode("a\ufffd\ufffd", special=False)))
            == "a\ufffd\ufffd"
        )


def test_special_tokens_are_left_out_or_kept_as_asked() -> None:
    tok = tokenizer("sentencepiece_legacy")
    ids = [*tok.encode("hello", special=False), tok.added_tokens["</s>"], *tok.encode("world", special=False)]
    assert "".join(pieces(tok, SamplingParams(), ids)) == "hello world"
    assert "".join(pieces(tok, SamplingParams(skip_special_tokens=False), ids)) == "hello</s> world"


def test_a_byte_run_goes_on_across_a_token_that_is_left_out() -> None:
    tok = tokenizer("gemma_like")
    ids = tok.encode("ö", special=False)
    assert len(ids) == 2
    ids.insert(1, tok.added_tokens["</s>"])
    assert "".join(pieces(tok, SamplingParams(), ids)) == "ö"


@settings(max_examples=60)
@given(
    minimum=st.integers(0, 8),
    text=st.text("ab", min_size=1, max_size=10),
    stop=st.text("ab", min_size=1, max_size=3),
)
@example(minimum=2, text="aaaa", stop="aa")
def test_a_stop_string_before_min_tokens_does_not_count(minimum: int, text: str, stop: str) -> None:
    tok = tokenizer("gemma_like")
    ids = [tok.encode(letter, special=False)[0] for letter in text]
    params = SamplingParams(stop=stop, min_tokens=minimum)
    detokenizer = IncrementalDetokenizer(tok, params, ())
    expected, met = cut_at_stop(text, (stop,), start=minimum)
    for count, index in enumerate(ids, 1):
        detokenizer.push((index,))
        if detokenizer.stopped is None:  # all is out but the longest start of the stop string
            held = next(size for size in range(len(stop) - 1, -1, -1) if text[:count].endswith(stop[:size]))
            assert detokenizer.text == text[: count - held]
    detokenizer.finish()
    assert (detokenizer.text, detokenizer.stopped) == (expected, met)


def test_a_long_reply_costs_the_same_per_token_as_a_short_one() -> None:
    """Counted, not timed: no decode call ever sees more than a few ids."""
    tok = tokenizer("sentencepiece_first")
    longest = 0
    decode = tok.decode

    def watched(ids: list[int], skip_special_tokens: bool = True) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids, skip_special_tokens)

    tok.decode = watched  # type: ignore[method-assign]
    try:
        detokenizer = IncrementalDetokenizer(tok, SamplingParams(stop="never met"), ())
        for index in tok.encode(TEXT * 50, special=False):
            detokenizer.push((index,))
    finally:
        del tok.decode
    assert longest < 40

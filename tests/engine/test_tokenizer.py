"""The tokenizer: read without Transformers, and text from outside never becomes structure."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import CORPUS, KINDS, WHOLE_WORD, backend_json, tokenizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from nanochat.engine.text_encoder import Place, TextEncoder
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import InvalidModel, UnsupportedModel

every_kind = pytest.mark.parametrize("kind", KINDS)


def folder(path: Path, kind: str = "byte_level", **config: object) -> Path:
    (path / "tokenizer.json").write_text(backend_json(kind), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def hostile_text(kind: str) -> st.SearchStrategy[str]:
    """Markers whole, cut and mixed with words."""
    markers = list(tokenizer(kind).added_tokens)
    cut = st.sampled_from(markers).flatmap(lambda m: st.integers(0, len(m)).map(lambda at: m[:at]))
    word = st.sampled_from(
        ["user", "assistant", "think", "|>", "<|", "end", " ", "\n", "</", "s>", "é", "你", "😀"]
    )
    return st.lists(st.one_of(st.sampled_from(markers), cut, word, st.text(max_size=4)), max_size=8).map(
        "".join
    )


@every_kind
@settings(max_examples=60)
@given(data=st.data())
def test_text_from_outside_never_becomes_a_marker(kind: str, data: st.DataObject) -> None:
    tok = tokenizer(kind)
    ids = tok.encode(data.draw(hostile_text(kind)), special=False)
    guarded = {i for text, i in tok.added_tokens.items() if text.strip()} - tok.unknown_ids
    assert guarded.isdisjoint(ids)


@every_kind
def test_every_marker_typed_by_hand_still_reads_as_its_text(kind: str) -> None:
    tok = tokenizer(kind)
    if kind in ("unigram", "wordpiece"):
        pytest.skip("this vocabulary lacks some of the characters")
    for marker in tok.added_tokens:
        text = f"a{marker}b"
        back = tok.decode(tok.encode(text, special=False))
        assert back == (text if kind == "byte_level" else text.replace("▁", " "))  # sentencepiece's own sign


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_characters_that_the_vocabulary_lacks_stay_unknown_ones(kind: str) -> None:
    tok = tokenizer(kind)
    assert len(tok.unknown_ids) == 1
    assert tok.encode("a ☃ b", special=False) == tok.backend.encode("a ☃ b", add_special_tokens=False).ids


def test_a_marker_in_the_vocabulary_itself_is_spelled_in_pieces() -> None:
    for kind, marker in (("byte_level", WHOLE_WORD), ("unigram", "</s>")):
        tok = tokenizer(kind)
        naive = TextEncoder(tok.backend, {}, frozenset()).encode(marker, Place.INSIDE)
        assert naive == [tok.added_tokens[marker]], "the test needs a vocabulary that finds the marker"
        assert tok.added_tokens[marker] not in tok.encode(marker, special=False)


def test_a_thousand_markers_in_a_row_are_no_trouble() -> None:
    tok = tokenizer("unigram")
    ids = tok.encode("</s>" * 3000, special=False)
    assert tok.added_tokens["</s>"] not in ids
    assert tok.decode(ids) == "</s>" * 3000


@every_kind
def test_trusted_text_is_what_the_library_makes_of_it(kind: str) -> None:
    tok, library = tokenizer(kind), Backend.from_str(backend_json(kind))
    for text in [*CORPUS, "<|im_start|>user\nhi<|im_end|>", "", " ", "a  b</think>\n"]:
        assert tok.encode(text, special=True) == library.encode(text).ids


@every_kind
def test_text_is_encoded_as_transformers_does_where_nothing_else_is_said(kind: str) -> None:
    tok = tokenizer(kind)
    assert tok.encode("<|im_start|>hi") == tok.encode("<|im_start|>hi", special=True)


@every_kind
def test_ids_that_no_vocabulary_has_are_skipped(kind: str) -> None:
    tok = tokenizer(kind)
    a, b = tok.encode("ab", special=False)[-1], tok.encode("b", special=False)[-1]
    for stranger in (-1, 2**31, 2**32, 10**30):
        assert tok.decode([stranger]) == "" and tok.decode([a, stranger, b]) == tok.decode([a, b])
        assert tok.token(stranger) is None and tok.token_bytes(stranger) == b""


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_legacy", "sentencepiece_first", "gemma_like"])
def test_a_text_that_starts_with_bos_gets_no_second_one(kind: str) -> None:
    tok = tokenizer(kind)
    bos = tok.encode("", special=True)
    assert len(bos) == 1
    text = tok.token(bos[0]) or ""
    assert tok.encode(f"{text}hello", special=True).count(bos[0]) == 1
    assert tok.encode("hello", special=True)[0] == bos[0]


@every_kind
@settings(max_examples=40)
@given(words=st.lists(st.text("abé你 .\n<|", max_size=8), min_size=1, max_size=4))
def test_pieces_between_markers_are_encoded_as_inside_the_whole(kind: str, words: list[str]) -> None:
    tok = tokenizer(kind)
    end = tok.added_tokens["<|im_end|>"]
    expected = tok.backend.encode("<|im_end|>".join(words), add_special_tokens=False).ids
    plain = TextEncoder(tok.backend, _runs(tok), frozenset())
    ids = plain.encode(words[0], Place.START)
    for word in words[1:]:
        ids += [end, *plain.encode(word, Place.AFTER_TOKEN)]
    assert ids == expected


def _runs(tok: Tokenizer) -> dict[int, AddedToken]:
    return {i: token for i, token in tok.added.items() if not token.special and "think" not in token.content}


@every_kind
def test_text_that_goes_on_gets_no_space_in_front(kind: str) -> None:
    tok = tokenizer(kind)
    encoder = TextEncoder(tok.backend, {}, frozenset())
    first = tok.token(encoder.encode("hello", Place.INSIDE)[0]) or ""
    assert not first.startswith(("▁", "Ġ"))


def test_one_tokenizer_serves_many_threads() -> None:
    tok = Tokenizer(Backend.from_str(backend_json("sentencepiece_first")))
    texts = [f"{text} {number}</s>" for number, text in enumerate(CORPUS * 20)]
    expected = [tokenizer("sentencepiece_first").encode(text, special=False) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: tok.encode(text, special=False), texts)) == expected
        assert list(pool.map(tok.decode, expected)) == [tok.decode(ids) for ids in expected]


def test_a_folder_gives_ids_names_and_sizes(tmp_path: Path) -> None:
    path = folder(
        tmp_path, bos_token="<|begin_of_text|>", eos_token={"content": "<|im_end|>"}, model_max_length=10
    )
    tok = Tokenizer.from_folder(path)
    assert tok.named_tokens == {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
    assert tok.vocab_size == max(tok.added_tokens.values()) + 1
    assert tok.added_tokens["<think>"] not in tok.special_ids
    assert tok.added_tokens["<|im_end|>"] in tok.special_ids
    assert tok.decode(tok.encode("<|im_end|>ok<think>", special=True)) == "ok<think>"
    assert (
        tok.decode(tok.encode("<|im_end|>ok", special=True)[1:], skip_special_tokens=False) == "<|im_end|>ok"
    )


def test_tokens_that_only_the_config_knows_get_the_ids_that_transformers_gives_them(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    flags = {"lstrip": False, "rstrip": True, "single_word": False, "normalized": False}
    size = tokenizer("byte_level").vocab_size
    decoder = {
        str(size + 1): {"content": "<late>", "special": False} | flags,
        str(size): {"content": "<early>", "special": True} | flags,
        "7": {"content": "<think>", "special": True} | flags,  # known already: its flags change, not its id
    }
    path = folder(tmp_path, eos_token="<eos>", added_tokens_decoder=decoder)
    ours, theirs = Tokenizer.from_folder(path), PreTrainedTokenizerFast.from_pretrained(path)
    text = "<early>  x<late> y<eos><think>  z"
    assert ours.encode(text, special=True) == theirs(text)["input_ids"]
    assert ours.added_tokens["<early>"] == size
    assert {"<early>", "<eos>", "<think>"} <= {ours.token(i) for i in ours.special_ids}


def test_names_in_the_older_special_tokens_map_count(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = folder(tmp_path, bos_token="<s>", extra_special_tokens=["<extra>"])
    names = {"bos_token": {"content": "<|begin_of_text|>", "lstrip": False}, "eos_token": "<|end|>"}
    (path / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    ours, theirs = Tokenizer.from_folder(path), PreTrainedTokenizerFast.from_pretrained(path)
    assert ours.named_tokens == theirs.special_tokens_map
    assert ours.encode("<extra>x", special=True) == theirs("<extra>x")["input_ids"]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_post_processor_decides_about_bos_whatever_the_config_says(tmp_path: Path, wanted: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    path = folder(tmp_path, bos_token="<|begin_of_text|>", eos_token="<|im_end|>", add_bos_token=wanted)
    ours, theirs = Tokenizer.from_folder(path), PreTrainedTokenizerFast.from_pretrained(path)
    assert ours.encode("hello", special=True) == theirs("hello")["input_ids"]


def test_truncation_and_padding_of_the_file_do_not_cut_a_prompt(tmp_path: Path) -> None:
    backend = Backend.from_str(backend_json("byte_level"))
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    tok = Tokenizer.from_folder(tmp_path)
    assert len(tok.encode("word " * 50, special=True)) > 50
    assert len(tok.encode("a", special=True)) == 2


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"neither tokenizer\.json nor"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(InvalidModel):
        Tokenizer.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model": {"type": "BPE"}}', '{"version": "9"}', "\x00" * 64]
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"tokenizer\.json is damaged"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "nul", "[" * 100_000])
def test_a_damaged_tokenizer_config_is_named(tmp_path: Path, content: str) -> None:
    folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidModel, match=r"tokenizer_config\.json is damaged"):
        Tokenizer.from_folder(tmp_path)


def test_an_older_layout_is_converted(tmp_path: Path) -> None:
    model = json.loads(backend_json("byte_level"))["model"]
    (tmp_path / "vocab.json").write_text(
        json.dumps(model["vocab"] | {"<|endoftext|>": 502}), encoding="utf-8"
    )
    merges = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    tok = Tokenizer.from_folder(tmp_path)
    assert tok.decode(tok.encode("hello fox", special=False)) == "hello fox"


def test_a_tokenizer_that_is_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    config = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "tokenization_evil.py").write_text("open('canary', 'w')", encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="never run"):
        Tokenizer.from_folder(tmp_path)
    assert not (tmp_path / "canary").exists()

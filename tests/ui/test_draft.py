"""Unsent text: folded pastes, files in messages, and what was sent before."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import UsageError
from nanochat.ui.attachments import attach, dropped_file, suggest, unfound
from nanochat.ui.draft import Draft, wants_folding
from nanochat.ui.input_history import InputHistory


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5), st.text(alphabet="ab \n"))
def test_what_is_folded_is_sent_whole_whatever_it_contains(pastes: list[str], between: str) -> None:
    draft = Draft()
    draft.text = between.join(draft.fold(paste, tokens=7) for paste in pastes)
    assert draft.full == between.join(pastes)


def test_a_label_says_lines_and_tokens_and_equal_pastes_have_labels_of_their_own() -> None:
    draft = Draft()
    paste = "\n".join(["x"] * 412)
    assert draft.fold(paste, tokens=10143) == "[pasted 412 lines · 10,143 tokens]"
    assert draft.fold(paste, tokens=10143) == "[pasted 412 lines · 10,143 tokens #2]"


def test_a_label_that_the_user_typed_stands_for_nothing() -> None:
    assert Draft("[pasted 412 lines · 10,143 tokens]").full == "[pasted 412 lines · 10,143 tokens]"


def test_a_long_saved_draft_comes_back_folded_and_whole() -> None:
    saved = "line\n" * 100
    draft = Draft.of(saved)
    assert wants_folding(saved)
    assert len(draft.text) < 60
    assert draft.full == saved


def test_a_mentioned_file_is_sent_below_the_message(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print(1)\n```\nnot the end\n")
    text, files = attach("explain @a.py, please", tmp_path)
    assert [file.name for file in files] == ["a.py"]
    assert text == "explain @a.py, please\n\na.py:\n````\nprint(1)\n```\nnot the end\n````"


def test_a_mention_that_names_no_file_is_left_alone(tmp_path: Path) -> None:
    assert attach("thank you @someone", tmp_path) == ("thank you @someone", ())
    assert attach("mail a@b.c", tmp_path) == ("mail a@b.c", ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("see @nots.md, please", "@nots.md: no such file"),
        ("@src/mian.py?", "@src/mian.py: no such file"),
        ('(so) @"my notes.txt": read it', "@my notes.txt: no such file"),
        ("@/no/such/file", "@/no/such/file: no such file"),
        ("@~/nothing_is_here.csv", "@~/nothing_is_here.csv: no such file"),
        ("all of @src/ and", "@src/: a folder, not a file"),
        ("@src/Makefile", "@src/Makefile: no such file"),
        ("@" + "x" * 300 + ".py", "@" + "x" * 300 + ".py: no such file"),
    ],
)
def test_a_mention_that_reads_as_a_path_and_names_no_file_is_told(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "src").mkdir()
    assert unfound(text, tmp_path) == (said,)


@pytest.mark.parametrize(
    "text",
    [
        "thank you @someone, and @some.one too",
        "mail a@b.md or <x@y.txt>",
        "@app.route('/x.html')\n@functools.cache\n@pytest.mark.slow\n@Component({})\ndef f(): ...",
        "npm i @types/node @angular/core@17.1.0 @babel/preset-env",
        "@import 'x.css'; @media (x) {}; load('@rules_python//python:defs.bzl')",
        'var s = @"C:/x.txt"; [a b:@"y.txt"]',
        "```sh\ncurl -d @data.json x\n```\nwhat does it do?",
        "@ @. @/ @~ @src @README @notes.txt, @src/main.py",
    ],
)
def test_what_begins_with_an_at_sign_and_is_no_path_is_not_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "src").mkdir()
    for name in ("src/main.py", "notes.txt"):
        (tmp_path / name).touch()
    assert unfound(text, tmp_path) == ()


def test_a_mention_that_is_being_typed_is_told_once_no_path_begins_so(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    assert unfound("see @note.m", tmp_path, typing="note.m") == ()  # no path by its looks
    assert unfound("see @./no", tmp_path, typing="./no") == ()
    assert unfound("see @./nu", tmp_path, typing="./nu") == ("@./nu: no such file",)


@pytest.mark.parametrize(("data", "reason"), [(b"\0\1", "not a text file"), (b"\xff\xfe\xfa", "not UTF-8")])
def test_a_file_that_is_not_text_is_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(UsageError, match=reason):
        attach("look at @x.bin", tmp_path)


def test_a_file_that_is_too_large_is_refused_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_bytes(b"x" * 2_100_000)
    with pytest.raises(UsageError, match=r"2\.1 MB"):
        attach("@big.txt", tmp_path)


def test_a_file_dropped_on_the_terminal_is_recognised_as_terminals_write_it(tmp_path: Path) -> None:
    file = tmp_path / "my notes.txt"
    file.write_text("x")
    for paste in (f"'{file}'", str(file).replace(" ", "\\ "), file.as_uri(), f"{file}\n"):
        assert dropped_file(paste, tmp_path) == file
    assert dropped_file("my notes.txt", tmp_path) is None  # words, not a path
    assert dropped_file("/no/such/file", tmp_path) is None


def test_paths_are_suggested_from_their_start_and_hidden_ones_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").touch()
    (tmp_path / "setup.cfg").touch()
    (tmp_path / ".secret").touch()
    assert suggest("s", tmp_path) == ["setup.cfg", "src/"]
    assert suggest("src/", tmp_path) == ["src/main.py"]
    assert suggest("src/m", tmp_path) == ["src/main.py"]
    assert suggest("", tmp_path) == ["setup.cfg", "src/"]
    assert suggest(".s", tmp_path) == [".secret"]
    assert suggest("nowhere/x", tmp_path) == []


def test_the_same_twice_in_a_row_is_kept_once_and_long_texts_only_unsent() -> None:
    history = InputHistory()
    for text in ("one", "two", "two", " ", "x" * 30_000):
        history.add(text)
    assert history.entries == ["one", "two"]
    history.add("y" * 30_000, sent=False)
    assert history.entries[2:] == ["y" * 30_000]


def test_drafts_are_joined_with_their_folds_and_equal_labels_stay_apart() -> None:
    one, other = Draft(), Draft()
    one.text, other.text = one.fold("a\n" * 20), other.fold("b\n" * 20)
    both = Draft.joined(one, Draft(" "), Draft("between"), other)
    assert both.full == "\n\n".join(["a\n" * 20, "between", "b\n" * 20])
    assert Draft.joined(Draft(), one) is one
    assert Draft.joined(one, Draft("more")).text == f"{one.text}\n\nmore"


def test_a_saved_draft_that_cannot_be_shown_comes_back_folded() -> None:
    saved = "\x1b]0;title\x07"
    assert Draft.of(saved).full == saved
    assert "\x1b" not in Draft.of(saved).text


def test_what_was_sent_survives_a_restart_and_a_damaged_line(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    history = InputHistory(file)
    history.add("with\na newline")
    history.save()
    assert file.stat().st_mode & 0o077 == 0
    file.write_text(file.read_text() + "{not json\n5\n")
    again = InputHistory(file)
    again.load()
    assert again.entries == ["with\na newline"]

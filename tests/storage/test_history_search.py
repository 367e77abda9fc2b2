"""Search: every word, any part of a word, any script; any query is a query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.history import History
from nanochat.storage.records import Role, Status
from nanochat.storage.search import snippet, split


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with History.open(tmp_path_factory.mktemp("search")) as opened:
        yield opened


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[History]:
    with History.open(tmp_path) as opened:
        yield opened


def write(history: History, *messages: str, title: str = "") -> str:
    chat = history.chats.create(title=title).id
    for text in messages:
        history.messages.add(chat, Role.USER, text)
    return chat


def found(history: History, query: str) -> dict[str, list[str]]:
    return {each.chat.id: [hit.snippet.text for hit in each.hits] for each in history.search(query)}


@pytest.mark.parametrize(
    ("query", "hit"),
    [
        ("quicksort", True), ("sort", True), ("SORT pivot", True), ("pivot quicksort", True), ("QuIcK", True),
        ("quicksort bubble", False), ("quick sort", True), ("k s", True), ("漢字", True), ("字", True),
        ("straße", True), ("ДОМ", True), ("дом", True), ('"pivot"', False), ("pi*", False),
        ("NOT", False), ("", False), ("  \t ", False),
    ],
)  # fmt: skip
def test_every_word_must_be_somewhere_in_the_message(fresh: History, query: str, hit: bool) -> None:
    chat = write(fresh, "Quicksort picks a pivot. 漢字 Straße Дом", title="x")
    assert (chat in found(fresh, query)) == hit


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="\"*():^-+{}ANDORNEAR \0'", max_size=20))
def test_no_query_is_an_error(history: History, query: str) -> None:
    for each in history.search(query):
        assert each.chat


@settings(max_examples=60)
@given(text=st.text(alphabet="abcAB \n\"*(é漢字'", min_size=1, max_size=30), data=st.data())
def test_any_piece_of_a_message_finds_it(history: History, text: str, data: st.DataObject) -> None:
    chat = write(history, text)
    start = data.draw(st.integers(0, len(text) - 1))
    piece = text[start : data.draw(st.integers(start + 1, len(text)))]
    hits = {each.chat.id for each in history.search(piece, chats=9999)}
    assert (chat in hits) == bool(piece.split())
    history.chats.delete(chat)


def test_titles_are_found_and_marked(fresh: History) -> None:
    chat = write(fresh, title="About Octopuses")
    (each,) = fresh.search("octopus")
    assert each.chat.id == chat and each.hits == ()
    assert [each.title.text[start:end] for start, end in each.title.spans] == ["Octopus"]


def test_results_are_grouped_by_chat_with_the_newest_match_first(tmp_path: Path) -> None:
    ticks = iter(range(1, 999))
    with History.open(tmp_path, clock=lambda: float(next(ticks))) as history:
        old = write(history, *(f"needle {n}" for n in range(5)))
        new = write(history, "needle in here", "hay")
        results = history.search("needle", hits=2)
        assert [each.chat.id for each in results] == [new, old]
        assert [hit.snippet.text for hit in results[1].hits] == ["needle 4", "needle 3"]
        assert [each.chat.id for each in history.search("needle", chats=1)] == [new]


def test_deleted_chats_and_messages_are_not_found(fresh: History) -> None:
    chat = write(fresh, "needle one", "needle two")
    second = fresh.messages.open(chat).messages[1]
    fresh.messages.hide(chat, second.id)
    assert found(fresh, "needle") == {chat: ["needle one"]}
    fresh.chats.delete(chat)
    assert found(fresh, "needle") == {}
    fresh.chats.restore(chat)
    fresh.messages.unhide(chat, second.id)
    assert found(fresh, "needle") == {chat: ["needle two", "needle one"]}


def test_a_shared_message_is_found_in_each_chat_that_holds_it(fresh: History) -> None:
    chat = write(fresh, "needle")
    fork = fresh.chats.fork(chat, fresh.messages.open(chat).messages[0].id).id
    assert found(fresh, "needle").keys() == {chat, fork}


def test_purged_messages_leave_the_index(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        chat = write(history, "a secret needle")
        history.chats.delete(chat)
        assert history.chats.purge(days=0) == 2  # the message and the root
        assert history.check() == ()
        with history.database.read() as connection:
            rows = connection.execute(
                "SELECT count(*) FROM message_search WHERE message_search MATCH 'needle'"
            )
            assert rows.fetchone()[0] == 0


def test_replies_are_searched_once_they_are_finished(fresh: History) -> None:
    chat = write(fresh, "go")
    running = fresh.replies.begin(chat, fresh.chats.get(chat).head, model="m")
    fresh.replies.checkpoint(running.id, "a needle")
    assert found(fresh, "needle") == {}
    fresh.replies.finish(running.id, Status.DONE, "a needle")
    assert found(fresh, "needle") == {chat: ["a needle"]}


def test_a_damaged_index_can_be_rebuilt(fresh: History) -> None:
    chat = write(fresh, "needle", title="x")
    with fresh.database.write() as connection:
        row = connection.execute("SELECT seq FROM messages WHERE content = 'needle'").fetchone()
        connection.execute(
            "INSERT INTO message_search (message_search, rowid, content) VALUES ('delete', ?, 'needle')", row
        )
    assert found(fresh, "needle") == {} and fresh.check() != ()
    fresh.rebuild_search()
    assert found(fresh, "needle") == {chat: ["needle"]} and fresh.check() == ()


@given(st.text(max_size=300), st.text(min_size=1, max_size=20))
def test_spans_mark_the_words_inside_the_snippet(text: str, query: str) -> None:
    words = split(query)
    if words:
        piece = snippet(text, words)
        assert "\n" not in piece.text and len(piece.text) <= 40 + 120 + 200 + 2
        for start, end in piece.spans:
            assert 0 <= start < end <= len(piece.text)


def test_a_snippet_shows_the_first_match_in_its_surroundings() -> None:
    piece = snippet("x" * 500 + "\nNeedle " + "y" * 500, ("needle",))
    assert piece.text.startswith("…") and piece.text.endswith("…") and " Needle " in piece.text
    assert [piece.text[start:end] for start, end in piece.spans] == ["Needle"]

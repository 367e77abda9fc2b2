"""The tree of messages: nothing is overwritten, every way of changing a chat adds to it."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import ChatNotFound, HistoryError
from nanochat.history import History
from nanochat.storage.records import Message, Role, Status, message_id, pack_ids, storable, unpack_ids


def ask(history: History, chat: str, text: str, answer: str) -> tuple[Message, Message]:
    question = history.messages.add(chat, Role.USER, text)
    running = history.replies.begin(chat, question.id, model="tiny")
    return question, history.replies.finish(running.id, Status.DONE, answer, token_ids=(1, 2, 3))


def texts(history: History, chat: str) -> list[str]:
    return [message.content for message in history.messages.open(chat).messages]


def test_a_chat_reads_back_what_was_written_in_order(history: History) -> None:
    chat = history.chats.create().id
    for number in range(3):
        ask(history, chat, f"question {number}", f"answer {number}")
    assert texts(history, chat) == [f"{what} {n}" for n in range(3) for what in ("question", "answer")]


def test_a_new_chat_is_empty_and_stands_at_its_root(history: History) -> None:
    chat = history.chats.create()
    assert history.messages.open(chat.id).messages == ()
    assert (chat.head, chat.messages) == (chat.root, 0)


def test_an_id_is_the_sha256_of_its_fields_each_led_by_its_length() -> None:
    parent, nonce = "ab" * 32, "01" * 8
    fields = (bytes.fromhex(parent), b"user", "é".encode(), b"why", b"\x07\0\0\0", bytes.fromhex(nonce))
    written = b"nanochat message 1" + b"".join(len(part).to_bytes(8, "little") + part for part in fields)
    name = message_id(
        parent=parent, role="user", content="é", reasoning="why", packed_ids=pack_ids([7]), nonce=nonce
    )
    assert name == hashlib.sha256(written).hexdigest()


@given(st.text(), st.text(), st.text(), st.text())
def test_text_cannot_move_between_fields_without_changing_the_id(a: str, b: str, c: str, d: str) -> None:
    def name(content: str, reasoning: str) -> str:
        return message_id(
            parent="",
            role="user",
            content=storable(content),
            reasoning=storable(reasoning),
            packed_ids=b"",
            nonce="",
        )

    assert (name(a, b) == name(c, d)) == ((storable(a), storable(b)) == (storable(c), storable(d)))


def test_the_same_answer_given_twice_is_kept_twice(history: History) -> None:
    chat = history.chats.create().id
    question, first = ask(history, chat, "2+2?", "4")
    running = history.replies.begin(chat, question.id, model="tiny")
    second = history.replies.finish(running.id, Status.DONE, "4", token_ids=(1, 2, 3))
    assert first.id != second.id
    assert [message.id for message in history.messages.variants(chat, first.id)] == [first.id, second.id]
    assert (second.variant, second.variants) == (2, 2)


def test_an_edit_is_a_new_variant_and_the_old_one_stays(history: History) -> None:
    chat = history.chats.create().id
    question, _ = ask(history, chat, "Whats 2+2?", "4")
    edited = history.messages.edit(chat, question.id, "What is 2+2?")
    assert texts(history, chat) == ["What is 2+2?"]
    assert edited.role is Role.USER and (edited.variant, edited.variants) == (2, 2)
    history.messages.step(chat, edited.id, -1)
    assert texts(history, chat) == ["Whats 2+2?", "4"]


def test_stepping_returns_to_where_each_variant_was_last_left(history: History) -> None:
    chat = history.chats.create().id
    first, _ = ask(history, chat, "one", "1")
    ask(history, chat, "two", "2")
    second = history.messages.edit(chat, first.id, "uno")
    assert texts(history, chat) == ["uno"]
    history.messages.step(chat, second.id, -1)
    assert texts(history, chat) == ["one", "1", "two", "2"]
    history.messages.step(chat, first.id, +1)
    assert texts(history, chat) == ["uno"]


def test_stepping_stops_at_the_first_and_the_last_variant(history: History) -> None:
    chat = history.chats.create().id
    question, _ = ask(history, chat, "one", "1")
    history.messages.edit(chat, question.id, "two")
    history.messages.step(chat, question.id, -5)
    assert texts(history, chat) == ["one", "1"]
    history.messages.step(chat, question.id, +5)
    assert texts(history, chat) == ["two"]


def test_a_fork_shares_what_is_above_and_nothing_below(history: History) -> None:
    chat = history.chats.create(settings={"system_prompt": "short"}).id
    _, answer = ask(history, chat, "one", "1")
    ask(history, chat, "two", "2")
    rows = history.database.path.stat().st_size
    fork = history.chats.fork(chat, answer.id)
    assert [m.id for m in history.messages.open(fork.id).messages] == [
        m.id for m in history.messages.open(chat).messages[:2]
    ]
    assert fork.settings == {"system_prompt": "short"} and fork.title == "Fork · one"
    ask(history, fork.id, "three", "3")
    assert texts(history, fork.id) == ["one", "1", "three", "3"]
    assert texts(history, chat) == ["one", "1", "two", "2"]
    original = history.messages.open(chat).messages[2]
    assert (original.variant, original.variants) == (1, 1)  # the fork's turn is no variant here
    assert history.database.path.stat().st_size >= rows


def test_deleting_a_message_takes_what_hangs_from_it_and_undo_brings_it_back(history: History) -> None:
    chat = history.chats.create().id
    ask(history, chat, "one", "1")
    second, _ = ask(history, chat, "two", "2")
    assert history.messages.hide(chat, second.id) == history.messages.open(chat).chat.head
    assert texts(history, chat) == ["one", "1"]
    history.messages.unhide(chat, second.id)
    assert texts(history, chat) == ["one", "1", "two", "2"]


def test_undoing_the_outer_of_two_deletions_leaves_the_inner_one(history: History) -> None:
    chat = history.chats.create().id
    first, _ = ask(history, chat, "one", "1")
    second, answer = ask(history, chat, "two", "2")
    history.messages.hide(chat, answer.id)
    history.messages.hide(chat, first.id)
    assert texts(history, chat) == []
    history.messages.unhide(chat, first.id)
    assert texts(history, chat) == ["one", "1", "two"]
    history.messages.hide(chat, second.id)
    history.messages.unhide(chat, answer.id)  # brings back what it hangs from
    assert texts(history, chat) == ["one", "1", "two", "2"]


def test_going_on_under_a_deleted_message_brings_it_back(history: History) -> None:
    chat = history.chats.create().id
    question, answer = ask(history, chat, "one", "1")
    for go_on in (
        lambda: history.messages.add(chat, Role.USER, "more", parent=answer.id),
        lambda: history.messages.edit(chat, answer.id, "more"),
    ):
        history.messages.hide(chat, question.id)
        assert texts(history, chat) == []
        go_on()
        assert texts(history, chat)[0] == "one" and texts(history, chat)[-1] == "more"
        assert history.check() == ()


def test_deleting_a_variant_shows_the_other_one(history: History) -> None:
    chat = history.chats.create().id
    question, _ = ask(history, chat, "one", "1")
    again = history.replies.begin(chat, question.id, model="tiny")
    second = history.replies.finish(again.id, Status.DONE, "uno")
    history.messages.hide(chat, second.id)
    shown = history.messages.open(chat).messages
    assert [m.content for m in shown] == ["one", "1"] and shown[1].variants == 1


def test_a_message_deleted_here_stays_in_the_chat_that_shares_it(history: History) -> None:
    chat = history.chats.create().id
    question, answer = ask(history, chat, "one", "1")
    fork = history.chats.fork(chat, answer.id).id
    history.messages.hide(chat, question.id)
    assert texts(history, chat) == [] and texts(history, fork) == ["one", "1"]


def test_dropped_turns_are_marked_and_kept(history: History) -> None:
    chat = history.chats.create().id
    ask(history, chat, "one", "1")
    second, answer = ask(history, chat, "two", "2")
    history.messages.drop_before(chat, second.id, 1)
    conversation = history.messages.open(chat)
    assert [m.content for m in conversation.messages] == ["one", "1", "two", "2"]
    assert [m.content for m in conversation.in_context] == ["two", "2"]
    assert [(mark.first_kept, mark.turns) for mark in conversation.dropped] == [(second.id, 1)]
    fork = history.messages.open(history.chats.fork(chat, answer.id).id)
    assert [m.content for m in fork.in_context] == ["two", "2"]
    history.messages.drop_before(chat, conversation.messages[0].id, 0)  # a longer window: all of it again
    assert len(history.messages.open(chat).in_context) == 4


def test_the_first_line_that_says_something_names_the_chat(history: History) -> None:
    chat = history.chats.create().id
    history.messages.add(chat, Role.USER, "\n  \n  Why is the sky blue?  \nreally")
    assert history.chats.get(chat).title == "Why is the sky blue?"
    history.messages.add(chat, Role.USER, "another")
    assert history.chats.get(chat).title == "Why is the sky blue?"


def test_figures_status_and_tokens_come_back_as_they_were(history: History) -> None:
    chat = history.chats.create().id
    question = history.messages.add(chat, Role.USER, "go")
    running = history.replies.begin(
        chat, question.id, model="org/tiny", params={"temperature": 0.7, "seed": 5}
    )
    metrics = {"cached_tokens": 16, "prefill_tokens": 3, "ttft": 0.1234567890123, "decode_rate": 143.0}
    history.replies.finish(
        running.id,
        Status.STOPPED,
        "half",
        reasoning="hm",
        token_ids=(0, 5, 151643),
        metrics=metrics,
        finish_reason="abort",
    )
    reply = history.messages.open(chat).messages[1]
    assert (reply.status, reply.reasoning, reply.token_ids) == (Status.STOPPED, "hm", (0, 5, 151643))
    assert (reply.model, reply.params, reply.metrics) == (
        "org/tiny",
        {"temperature": 0.7, "seed": 5},
        metrics,
    )
    assert (reply.cached_tokens, reply.prefill_tokens, reply.finish_reason) == (16, 3, "abort")


@settings(max_examples=40)
@given(text=st.text())
def test_any_text_is_stored_exactly(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with History.open(tmp_path_factory.mktemp("any")) as history:
        chat = history.chats.create().id
        history.messages.add(chat, Role.USER, text)
        assert texts(history, chat) == [text]
        assert history.check() == ()


@pytest.mark.parametrize("text", ["a\0b", "\0", "\r\n\r", "\ufeffx", "\U0010ffff", "e\u0301", "\x1b[31m"])
def test_odd_text_is_stored_exactly(history: History, text: str) -> None:
    chat = history.chats.create().id
    history.messages.add(chat, Role.USER, text)
    assert texts(history, chat) == [text]


def test_a_lone_surrogate_becomes_the_replacement_character(history: History) -> None:
    chat = history.chats.create().id
    history.messages.add(chat, Role.USER, "a\ud800b \ud83d\ude00")
    assert texts(history, chat) == ["a\ufffdb 😀"]


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_token_ids_pack_to_four_bytes_each_and_back(ids: list[int]) -> None:
    packed = pack_ids(ids)
    assert len(packed) == 4 * len(ids) and unpack_ids(packed) == tuple(ids)
    assert packed == b"".join(each.to_bytes(4, "little") for each in ids)


def test_a_written_message_cannot_be_changed_even_by_a_statement(history: History) -> None:
    chat = history.chats.create().id
    history.messages.add(chat, Role.USER, "true")
    outside = sqlite3.connect(history.database.path)
    with pytest.raises(sqlite3.IntegrityError, match="never changed"):
        outside.execute("UPDATE messages SET content = 'false'")
    outside.close()


def test_a_message_of_another_chat_is_not_found(history: History) -> None:
    chat, other = history.chats.create().id, history.chats.create().id
    message = history.messages.add(other, Role.USER, "elsewhere")
    for call in (
        lambda: history.messages.add(chat, Role.USER, "x", parent=message.id),
        lambda: history.messages.edit(chat, message.id, "x"),
        lambda: history.messages.go(chat, message.id),
        lambda: history.messages.hide(chat, "zz"),
        lambda: history.chats.fork(chat, message.id),
        lambda: history.messages.open("nowhere"),
    ):
        with pytest.raises(ChatNotFound):
            call()
    with pytest.raises(HistoryError, match="start of a chat"):
        history.messages.hide(chat, history.chats.get(chat).root)


def test_settings_that_json_cannot_hold_are_refused_and_change_nothing(history: History) -> None:
    chat = history.chats.create(settings={"temperature": 1.0}).id
    for bad in ({"x": float("nan")}, {"x": {1, 2}}, {"x": object()}):
        with pytest.raises(HistoryError, match="cannot be stored"):
            history.chats.set_settings(chat, bad)
    assert history.chats.get(chat).settings == {"temperature": 1.0}

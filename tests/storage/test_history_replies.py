"""Replies that are being written: saved as they grow, finished once, recovered when their process is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.errors import ChatNotFound, HistoryFull
from nanochat.history import History
from nanochat.storage.records import Role, Running, Status


def begin(history: History, text: str = "go") -> tuple[str, Running]:
    chat = history.chats.create().id
    question = history.messages.add(chat, Role.USER, text)
    return chat, history.replies.begin(chat, question.id, model="tiny", params={"seed": 1})


def test_a_running_reply_is_shown_but_is_no_message_yet(history: History) -> None:
    chat, running = begin(history)
    history.replies.checkpoint(running.id, "Bec", reasoning="hm", token_ids=(4, 5))
    conversation = history.messages.open(chat)
    assert [m.content for m in conversation.messages] == ["go"]
    (shown,) = conversation.running
    assert (shown.content, shown.reasoning, shown.token_ids, shown.mine) == ("Bec", "hm", (4, 5), True)
    assert shown.parent == conversation.messages[0].id


def test_a_finished_reply_is_in_the_tree_and_nowhere_else(history: History) -> None:
    chat, running = begin(history)
    reply = history.replies.finish(running.id, Status.DONE, "Because")
    conversation = history.messages.open(chat)
    assert conversation.running == () and conversation.messages[-1] == reply
    assert (reply.model, reply.params) == ("tiny", {"seed": 1})
    with pytest.raises(ChatNotFound, match="finished already"):
        history.replies.finish(running.id, Status.DONE, "Because")
    with pytest.raises(ChatNotFound):
        history.replies.checkpoint(running.id, "Because")


def test_the_chat_does_not_move_when_the_user_went_elsewhere(history: History) -> None:
    chat, running = begin(history, "one")
    other = history.messages.edit(chat, running.parent, "two")
    reply = history.replies.finish(running.id, Status.DONE, "late")
    assert history.messages.open(chat).messages == (other,)
    history.messages.step(chat, other.id, -1)
    assert history.messages.open(chat).messages[-1].id == reply.id


def test_regenerating_stands_at_the_question_until_the_new_reply_is_there(history: History) -> None:
    chat, running = begin(history)
    history.replies.finish(running.id, Status.DONE, "first")
    again = history.replies.begin(chat, running.parent, model="tiny")
    assert [m.content for m in history.messages.open(chat).messages] == ["go"]
    second = history.replies.finish(again.id, Status.DONE, "second")
    assert [m.content for m in history.messages.open(chat).messages] == ["go", "second"]
    assert (second.variant, second.variants) == (2, 2)


def test_continuing_keeps_the_interrupted_reply_as_a_variant(history: History) -> None:
    chat, running = begin(history)
    half = history.replies.finish(running.id, Status.STOPPED, "one two", token_ids=(1, 2))
    more = history.replies.begin(
        chat, half.parent, model="tiny", content=half.content, token_ids=half.token_ids
    )
    assert (more.content, more.token_ids) == ("one two", (1, 2))
    whole = history.replies.finish(more.id, Status.DONE, "one two three", token_ids=(1, 2, 3))
    assert [m.content for m in history.messages.variants(chat, whole.id)] == ["one two", "one two three"]


def test_a_reply_to_a_message_deleted_meanwhile_comes_back_with_it(history: History) -> None:
    chat, running = begin(history)
    history.messages.hide(chat, running.parent)
    history.replies.finish(running.id, Status.DONE, "late answer")
    assert history.messages.open(chat).messages == ()
    assert history.check() == () and not history.search("late")
    history.messages.unhide(chat, running.parent)
    assert [m.content for m in history.messages.open(chat).messages] == ["go", "late answer"]


def test_what_a_closed_process_left_running_is_interrupted_with_its_text(tmp_path: Path) -> None:
    with History.open(tmp_path) as first:
        chat, running = begin(first)
        first.replies.checkpoint(running.id, "half a sent", reasoning="hm", token_ids=(7,))
    with History.open(tmp_path) as second:
        (recovered,) = second.recovered
        assert (recovered.status, recovered.content, recovered.reasoning) == (
            Status.INTERRUPTED,
            "half a sent",
            "hm",
        )
        assert (recovered.token_ids, recovered.model) == ((7,), "tiny")
        assert second.messages.open(chat).messages[-1] == recovered
        assert second.check() == ()
    with History.open(tmp_path) as third:
        assert third.recovered == ()


def test_what_a_live_process_writes_is_not_touched(tmp_path: Path) -> None:
    with History.open(tmp_path) as first:
        chat, running = begin(first)
        with History.open(tmp_path) as second:
            assert second.recovered == () and second.replies.recover() == ()
            (shown,) = second.messages.open(chat).running
            assert not shown.mine
        first.replies.finish(running.id, Status.DONE, "whole")
        assert first.messages.open(chat).messages[-1].status is Status.DONE


def test_a_process_that_outlives_another_can_recover_its_replies(tmp_path: Path) -> None:
    with History.open(tmp_path) as survivor:
        with History.open(tmp_path) as other:
            chat, running = begin(other)
            other.replies.checkpoint(running.id, "half")
        assert [message.content for message in survivor.replies.recover()] == ["half"]
        assert survivor.messages.open(chat).messages[-1].status is Status.INTERRUPTED


def test_a_reply_that_could_not_be_finished_for_want_of_space_can_be_finished_later(history: History) -> None:
    chat, running = begin(history)
    history.replies.checkpoint(running.id, "half")
    with history.database.write() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(HistoryFull, match="Free some space"):
        history.replies.finish(running.id, Status.DONE, "x" * 1_000_000)
    assert history.messages.open(chat).running[0].content == "half"
    with history.database.write() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    history.replies.finish(running.id, Status.DONE, "x" * 1_000_000)
    assert len(history.messages.open(chat).messages[-1].content) == 1_000_000

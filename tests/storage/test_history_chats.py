"""The list of chats and the open tabs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest

from nanochat.errors import ChatNotFound, UsageError
from nanochat.history import History
from nanochat.storage.chats import by_day
from nanochat.storage.records import Role, Status, Tab, TitleBy

DAY = 86_400.0


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 10, 12).timestamp()

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(tmp_path: Path, clock: Clock) -> Iterator[History]:
    with History.open(tmp_path, clock=clock) as opened:
        yield opened
        assert opened.check() == ()


def test_pinned_chats_come_first_then_the_latest_change(history: History) -> None:
    first, second, third = (history.chats.create(title=title).id for title in ("a", "b", "c"))
    history.messages.add(first, Role.USER, "x")
    history.chats.pin(second)
    assert [chat.id for chat in history.chats.list()] == [second, first, third]
    history.chats.pin(second, False)
    assert [chat.id for chat in history.chats.list()] == [first, third, second]


def test_days_follow_the_local_date_of_the_last_change(history: History, clock: Clock) -> None:
    old = history.chats.create(title="old").id
    pinned = history.chats.create(title="pinned").id
    history.chats.pin(pinned)
    clock.now += DAY
    new = history.chats.create(title="new").id
    days = by_day(history.chats.list())
    assert [(day.date, [chat.id for chat in day.chats]) for day in days] == [
        (None, [pinned]), (date(2026, 3, 11), [new]), (date(2026, 3, 10), [old]),
    ]  # fmt: skip


def test_a_title_of_the_user_is_never_replaced_by_the_model(history: History) -> None:
    chat = history.chats.create().id
    history.messages.add(chat, Role.USER, "first line")
    assert history.chats.rename(chat, "By the model", by=TitleBy.AUTO)
    assert history.chats.rename(chat, "By me")
    assert not history.chats.rename(chat, "By the model again", by=TitleBy.AUTO)
    assert (history.chats.get(chat).title, history.chats.get(chat).title_by) == ("By me", TitleBy.USER)


def test_a_fork_has_a_title_that_no_other_chat_has_and_that_no_model_replaces(history: History) -> None:
    chat = history.chats.create().id
    message = history.messages.add(chat, Role.USER, "rivers").id
    fork = history.chats.fork(chat, message)
    assert (fork.title, fork.title_by) == (
        "Fork · rivers",
        TitleBy.AUTO,
    )  # a model would find the source's again
    assert history.chats.fork(chat, message).title == "Fork 2 · rivers"
    assert history.chats.fork(fork.id, message).title == "Fork 3 · rivers"
    history.chats.rename(chat, "Mine")
    mine = history.chats.fork(chat, message)
    assert (mine.title, mine.title_by) == ("Fork · Mine", TitleBy.USER)
    assert history.chats.get(chat).title == "Mine"
    assert history.chats.fork(chat, message, title="Named").title == "Named"


def test_a_fork_of_a_chat_without_a_title_gets_one_later(history: History) -> None:
    chat = history.chats.create().id
    fork = history.chats.fork(chat, history.messages.add(chat, Role.USER, "\n").id)
    assert (fork.title, fork.title_by) == ("", TitleBy.NONE)


def test_a_deleted_chat_comes_back_whole_until_the_purge(history: History, clock: Clock) -> None:
    chat = history.chats.create(title="keep").id
    history.messages.add(chat, Role.USER, "x")
    history.chats.delete(chat)
    assert history.chats.list() == () and [c.id for c in history.chats.list(deleted=True)] == [chat]
    clock.now += 29 * DAY
    assert history.chats.purge() == 0
    history.chats.restore(chat)
    assert [c.id for c in history.chats.list()] == [chat] and len(history.messages.open(chat).messages) == 1


def test_what_is_written_in_a_deleted_chat_brings_it_back_and_a_reply_that_ends_does_not(
    history: History,
) -> None:
    """Another window may have deleted the chat that this one still shows."""
    chat = history.chats.create(title="keep").id
    asked = history.messages.add(chat, Role.USER, "first")
    reply = history.replies.begin(chat, asked.id, model="m")
    history.chats.delete(chat)
    history.replies.finish(reply.id, Status.DONE, "the answer")
    assert history.chats.list() == ()
    history.messages.add(chat, Role.USER, "second")
    assert [each.id for each in history.chats.list()] == [chat]


def test_a_deleted_chat_is_found_among_the_deleted_ones_alone(history: History) -> None:
    gone, kept = history.chats.create(title="gone").id, history.chats.create(title="kept").id
    history.chats.delete(gone)
    assert history.chats.find(gone, deleted=True).id == gone
    for chat, deleted in ((gone, False), (kept, True)):
        with pytest.raises(ChatNotFound):
            history.chats.find(chat, deleted=deleted)


def test_the_purge_takes_what_is_older_than_thirty_days_and_nothing_shared(
    history: History, clock: Clock
) -> None:
    chat = history.chats.create(title="gone").id
    shared = history.messages.add(chat, Role.USER, "shared")
    history.messages.add(chat, Role.USER, "only here")
    fork = history.chats.fork(chat, shared.id).id
    history.messages.drop_before(chat, shared.id, 1)
    history.chats.delete(chat)
    clock.now += 31 * DAY
    assert history.chats.purge() == 1
    with pytest.raises(ChatNotFound):
        history.chats.get(chat)
    assert [m.content for m in history.messages.open(fork).messages] == ["shared"]


def test_the_purge_takes_deleted_messages_and_what_hangs_from_them(history: History, clock: Clock) -> None:
    chat = history.chats.create().id
    history.messages.add(chat, Role.USER, "stays")
    gone = history.messages.add(chat, Role.USER, "goes")
    history.messages.add(chat, Role.USER, "goes too")
    history.messages.hide(chat, gone.id)
    clock.now += 31 * DAY
    assert history.chats.purge() == 2
    assert [m.content for m in history.bundle(chat).messages[1:]] == ["stays"]


def test_the_purge_waits_for_a_running_reply(history: History, clock: Clock) -> None:
    chat = history.chats.create().id
    question = history.messages.add(chat, Role.USER, "go")
    running = history.replies.begin(chat, question.id, model="m")
    history.messages.hide(chat, question.id)
    history.chats.delete(chat)
    clock.now += 31 * DAY
    assert history.chats.purge() == 0
    history.replies.finish(running.id, Status.DONE, "late")
    history.chats.restore(chat)
    history.messages.unhide(chat, question.id)
    assert [m.content for m in history.messages.open(chat).messages] == ["go", "late"]


def test_a_clock_that_goes_back_changes_no_order_in_the_tree(history: History, clock: Clock) -> None:
    chat = history.chats.create().id
    history.messages.add(chat, Role.USER, "one")
    clock.now -= 400 * DAY
    history.messages.add(chat, Role.USER, "two")
    assert [m.content for m in history.messages.open(chat).messages] == ["one", "two"]
    assert history.chats.purge() == 0


def test_an_open_purges_by_itself(tmp_path: Path, clock: Clock) -> None:
    with History.open(tmp_path, clock=clock) as history:
        history.chats.delete(history.chats.create(title="gone").id)
    clock.now += 31 * DAY
    with History.open(tmp_path, clock=clock) as history:
        assert history.chats.list(deleted=True) == ()


def test_a_chat_is_found_by_the_start_of_its_id(history: History) -> None:
    chats = [history.chats.create(title=str(number)) for number in range(40)]
    assert history.chats.find(chats[0].id).id == chats[0].id
    for start in ("", "zz", "%", "_"):
        with pytest.raises(ChatNotFound):
            history.chats.find(start)
    shared = next(a.id[0] for a in chats for b in chats if a is not b and a.id[0] == b.id[0])
    with pytest.raises(UsageError, match="Several chats"):
        history.chats.find(shared)


def test_settings_belong_to_the_chat(history: History) -> None:
    chat = history.chats.create(settings={"system_prompt": "é\n", "sampling": {"temperature": 0.5}}).id
    assert history.chats.get(chat).settings == {"system_prompt": "é\n", "sampling": {"temperature": 0.5}}
    history.chats.set_settings(chat, {"thinking": False})
    assert history.chats.get(chat).settings == {"thinking": False}


def test_open_tabs_and_unsent_texts_come_back_at_the_next_start(tmp_path: Path) -> None:
    with History.open(tmp_path) as first:
        chat = first.chats.create(title="a").id
        tabs = (
            Tab(chat, "unsent\n", False),
            Tab(None, "no chat yet", True),
            Tab(first.chats.create(title="b").id),
        )
        first.tabs.save((Tab(chat),))
        first.tabs.save(tabs)
    with History.open(tmp_path) as second:
        assert second.tabs.restore() == tabs
        assert second.chats.get(chat).draft == "unsent\n"
    with History.open(
        tmp_path
    ) as third:  # restoring took them over: they are not lost when nothing else is saved
        assert third.tabs.restore() == tabs


def test_the_unsent_text_of_a_closed_tab_stays_with_its_chat(history: History) -> None:
    chat = history.chats.create(title="a").id
    history.tabs.save((Tab(chat, "unsent"),))
    history.tabs.save(())
    assert history.messages.open(chat).chat.draft == "unsent"


def test_a_second_process_does_not_take_the_tabs_of_a_live_one(tmp_path: Path) -> None:
    with History.open(tmp_path) as first:
        chat = first.chats.create(title="a").id
        first.tabs.save((Tab(chat, "mine", True),))
        with History.open(tmp_path) as second:
            assert second.tabs.restore() == ()
            second.tabs.save((Tab(None, "other", True),))
        first.tabs.save((Tab(chat, "mine!", True),))
    with History.open(tmp_path) as third:
        assert third.tabs.restore() == (Tab(chat, "mine!", True), Tab(None, "other", False))


def test_tabs_of_deleted_chats_and_doubled_ones_are_left_out(tmp_path: Path) -> None:
    with History.open(tmp_path) as first, History.open(tmp_path) as second:
        chat, gone = first.chats.create(title="a").id, first.chats.create(title="b").id
        first.tabs.save((Tab(chat), Tab(gone)))
        second.tabs.save((Tab(chat),))
        first.chats.delete(gone)
    with History.open(tmp_path) as third:
        assert third.tabs.restore() == (Tab(chat),)


def test_the_unsent_text_of_a_tab_whose_chat_was_deleted_comes_back_in_an_empty_one(tmp_path: Path) -> None:
    with History.open(tmp_path) as first:
        gone = first.chats.create(title="b").id
        first.tabs.save((Tab(gone, "written, not sent", True),))
        first.chats.delete(gone)
    for _ in range(2):
        with History.open(tmp_path) as later:
            assert later.tabs.restore() == (Tab(None, "written, not sent", True),)

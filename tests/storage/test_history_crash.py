"""Killed at any moment, the history opens whole and holds everything that it has acknowledged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from multiprocessing.context import ForkServerContext
from pathlib import Path

import history_writer

from nanochat.history import History
from nanochat.storage.records import Role, Status


def kill_after(
    processes: ForkServerContext, folder: Path, messages: int, patience: float
) -> list[tuple[str, ...]]:
    """Let a writer write into `folder`, kill it somewhat after its `messages`th word; all that it said."""
    here, there = processes.Pipe()
    writer = processes.Process(target=history_writer.write_until_killed, args=(folder, there), daemon=True)
    writer.start()
    there.close()
    said = [here.recv() for _ in range(messages)]
    here.poll(patience)  # somewhere inside the next call, or between two
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    try:
        while True:
            said.append(here.recv())
    except (EOFError, OSError):  # a word that was cut off in the middle was not said
        here.close()
        return said


def test_after_kill_9_at_any_moment_nothing_acknowledged_is_lost(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    chance = random.Random(20260311)
    interrupted = 0
    for number in range(60):
        folder = tmp_path / str(number // 10)  # ten deaths a history, so that it stays small
        said = kill_after(processes, folder, chance.randint(1, 40), chance.random() * 0.002)
        assert said[0][0] == "chat"
        with History.open(folder) as history:
            assert history.check() == ()
            bundle = history.bundle(said[0][1])
            held = {message.id: message for message in bundle.messages}
            assert {word[1] for word in said if word[0] == "message"} <= held.keys()
            for message in history.recovered:
                interrupted += 1
                lengths = [
                    int(word[2]) for word in said if word[0] == "running" and word[1] == message.parent
                ]
                assert message.status is Status.INTERRUPTED
                assert message.content == history_writer.text_of(len(message.content))
                assert message.token_ids == tuple(range(len(message.content)))
                assert len(message.content) >= max(lengths, default=0)
            if (
                said[-1][0] == "running"
            ):  # it was writing: it must be there, as a message or still as what it was
                assert any(m.parent == said[-1][1] for m in bundle.messages)
            assert history.messages.open(said[0][1]).running == ()
            assert history.search("naïve 漢字")
    assert interrupted > 20  # the kills did fall into replies


def test_killed_while_migrating_the_history_is_the_old_one_or_the_new_one(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    template = tmp_path / "template"
    with History.open(template) as history:
        chat = history.chats.create().id
        for number in range(20):
            history.messages.add(chat, Role.USER, f"{number} {history_writer.PIECE}")
    chance, versions = random.Random(7), set[int]()
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        shutil.copytree(template, folder)
        here, there = processes.Pipe()
        child = processes.Process(target=history_writer.migrate, args=(folder, there), daemon=True)
        child.start()
        there.close()
        assert here.recv() == "opening"
        here.poll(chance.random() * 0.1)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        outside = sqlite3.connect(folder / "chats.db")
        versions.add(outside.execute("PRAGMA user_version").fetchone()[0])
        outside.close()
        with History.open(folder, migrations=history_writer.NEXT) as history:
            assert history.check() == ()
            assert len(history.messages.open(chat).messages) == 20
            assert any((folder / "backups").glob("chats-v1-*.db"))
    assert versions <= {1, 2}


def test_a_log_left_over_by_a_crash_is_read(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with History.open(first) as history:
        chat = history.chats.create().id
        history.messages.add(chat, Role.USER, "only in the log")
        assert (first / "chats.db-wal").stat().st_size > 0
        second.mkdir()
        for name in ("chats.db", "chats.db-wal"):  # what a dead machine leaves: no -shm, no owner
            shutil.copy(first / name, second / name)
    with History.open(second) as history:
        assert [m.content for m in history.messages.open(chat).messages] == ["only in the log"]
        assert history.check() == ()

"""Several threads and several processes on one history."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import history_writer
import pytest

from nanochat.errors import HistoryLocked
from nanochat.history import History
from nanochat.storage.records import Role, Status


def test_two_processes_write_at_once_and_both_are_kept(processes: ForkServerContext, tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        children = []
        for name in ("left", "right"):
            here, there = processes.Pipe()
            child = processes.Process(target=history_writer.write_messages, args=(tmp_path, name, 60, there))
            child.start()
            children.append((child, here))
        for _, here in children:
            assert here.recv() == "ready"
        assert len(history.others()) == 2 and set(history.others()) == {child.pid for child, _ in children}
        history.changed()
        for _, here in children:
            here.send("go")
        told = [here.recv() for _, here in children]
        for child, _ in children:
            child.join()
        assert history.others() == () and history.changed() and not history.changed()
        chats = {chat.title: chat.id for chat in history.chats.list()}
        for name, ids in zip(("left", "right"), told, strict=True):
            assert [message.id for message in history.messages.open(chats[name]).messages] == ids
        assert history.check() == ()


def test_a_write_waits_for_another_process_and_then_says_so(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    here, there = processes.Pipe()
    child = processes.Process(target=history_writer.hold_lock, args=(tmp_path, there))
    child.start()
    assert here.recv() == "held"
    with History.open(tmp_path, busy_seconds=0.05) as impatient:
        with pytest.raises(HistoryLocked, match="try again"):
            impatient.chats.create()
        assert impatient.chats.list() == () and not impatient.changed()  # reading does not wait
        here.send("let go")
        assert here.recv() == "released"
        impatient.chats.create()
        here.send("end")
    child.join()


def test_many_threads_share_one_history(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        start = threading.Barrier(6)

        def work(number: int) -> list[str]:
            start.wait()
            chat = history.chats.create(title=f"thread {number}").id
            ids: list[str] = []
            for turn in range(6):
                question = history.messages.add(chat, Role.USER, f"question {turn}")
                running = history.replies.begin(chat, question.id, model="m")
                history.replies.checkpoint(running.id, "half")
                ids += [question.id, history.replies.finish(running.id, Status.DONE, f"answer {turn}").id]
                assert history.search("question") and history.chats.list()
                assert [message.id for message in history.messages.open(chat).messages] == ids
            return ids

        with ThreadPoolExecutor(6) as threads:
            written = list(threads.map(work, range(6)))
        assert sum(map(len, written)) == 72 and history.check() == ()


def test_reading_does_not_wait_for_a_write_that_is_under_way(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        chat = history.chats.create(title="x").id
        with history.database.write(), ThreadPoolExecutor(1) as threads:
            assert threads.submit(history.messages.open, chat).result(timeout=5).messages == ()
            assert threads.submit(history.changed).result(timeout=5) is False


def test_an_error_inside_a_write_leaves_nothing_of_it(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        chat = history.chats.create(title="before").id
        with pytest.raises(RuntimeError), history.database.write() as connection:
            connection.execute("UPDATE chats SET title = 'after'")
            raise RuntimeError("stop")
        assert history.chats.get(chat).title == "before"
        history.chats.rename(chat, "later")


def test_only_the_user_may_read_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "chats"
    mask = os.umask(0)
    try:
        with History.open(folder) as history:
            history.chats.create(title="secret")
            backup = history.backup()
            found = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
            assert {path.name for path in found} >= {"chats.db", "chats.db-wal", "chats.db-shm", backup.name}
            for path, mode in (*found.items(), (folder, stat.S_IMODE(folder.stat().st_mode))):
                assert mode == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(mask)


def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    History.open(folder).close()
    folder.chmod(0o755)
    (folder / "chats.db").chmod(0o644)
    with History.open(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "chats.db").stat().st_mode) == 0o600


def test_an_orderly_end_leaves_no_log_and_no_owner(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        history.chats.create(title="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.db", "opening.lock", "owners"]
    assert list((tmp_path / "owners").iterdir()) == []


def test_an_owner_whose_process_id_is_used_again_is_another_owner(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        forged = (
            tmp_path / "owners" / f"{os.getpid()}-1-00000000"
        )  # our own process id, but nobody holds its lock
        forged.touch()
        assert history.others() == ()
        with History.open(tmp_path) as second:
            assert second.others() == (os.getpid(),) and not forged.exists()

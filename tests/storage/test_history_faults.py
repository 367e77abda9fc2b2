"""What can go wrong with the file, told in words, and never made worse."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import history_writer
import pytest

from nanochat.errors import (
    HistoryDamaged,
    HistoryError,
    HistoryFull,
    HistoryLocked,
    HistoryReadOnly,
    HistoryTooNew,
)
from nanochat.history import History
from nanochat.storage.files import set_aside
from nanochat.storage.records import Role
from nanochat.storage.schema import MIGRATIONS


def fill(folder: Path, messages: int = 40) -> str:
    with History.open(folder) as history:
        chat = history.chats.create().id
        for number in range(messages):
            history.messages.add(chat, Role.USER, f"{number} {history_writer.PIECE * 20}")
    return chat


def test_a_newer_history_is_refused_and_not_touched(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    outside = sqlite3.connect(tmp_path / "chats.db")
    outside.execute("PRAGMA user_version = 7")
    outside.close()
    before = (tmp_path / "chats.db").read_bytes()
    with pytest.raises(HistoryTooNew, match=r"format 7; this one knows up to 1.*Update nanochat"):
        History.open(tmp_path)
    assert (tmp_path / "chats.db").read_bytes() == before
    assert list((tmp_path / "owners").iterdir()) == []


def test_an_older_history_is_migrated_after_a_backup(tmp_path: Path) -> None:
    chat = fill(tmp_path, 5)
    with History.open(tmp_path, migrations=history_writer.NEXT) as history:
        assert len(history.messages.open(chat).messages) == 5 and history.check() == ()
    (backup,) = (tmp_path / "backups").iterdir()
    saved = sqlite3.connect(backup)
    assert saved.execute("PRAGMA user_version").fetchone()[0] == 1
    assert saved.execute("SELECT count(*) FROM messages WHERE role = 'user'").fetchone()[0] == 5
    assert saved.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    saved.close()
    with pytest.raises(HistoryTooNew):
        History.open(tmp_path)


def test_a_migration_that_fails_changes_nothing_and_names_the_backup(tmp_path: Path) -> None:
    chat = fill(tmp_path, 3)
    broken = (
        *MIGRATIONS,
        (
            "ALTER TABLE chats ADD COLUMN colour TEXT",
            "DELETE FROM messages",
            "INSERT INTO nowhere VALUES (1)",
        ),
    )
    with pytest.raises(HistoryError, match=r"as they were before.*backups/chats-v1-"):
        History.open(tmp_path, migrations=broken)
    with History.open(tmp_path) as history:
        assert len(history.messages.open(chat).messages) == 3 and history.check() == ()


def test_a_history_in_use_is_not_migrated(tmp_path: Path) -> None:
    with History.open(tmp_path), pytest.raises(HistoryLocked, match=rf"process {os.getpid()}.*Close it"):
        History.open(tmp_path, migrations=history_writer.NEXT)
    History.open(tmp_path, migrations=history_writer.NEXT).close()


def test_backups_are_whole_and_only_the_newest_five_are_kept(tmp_path: Path) -> None:
    chat = fill(tmp_path, 2)
    with History.open(tmp_path) as history:
        made = [history.backup() for _ in range(7)]
    assert sorted((tmp_path / "backups").iterdir()) == sorted(made[2:])
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(made[-1], restored / "chats.db")
    with History.open(restored) as history:
        assert len(history.messages.open(chat).messages) == 2 and history.check() == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a database at all, but long enough to be read as one" * 40,
        b"SQLite format 3\0",
        b"\0" * 8192,
    ],
)
def test_a_file_that_is_no_history_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chats.db").write_bytes(content)
    with pytest.raises(HistoryDamaged, match="There is no backup of it"):
        History.open(tmp_path)
    assert (tmp_path / "chats.db").read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "chats.db")
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    before = (tmp_path / "chats.db").read_bytes()
    with pytest.raises(HistoryDamaged, match="not nanochat's"):
        History.open(tmp_path)
    assert (tmp_path / "chats.db").read_bytes() == before


def test_a_truncated_file_is_refused_and_the_backup_named(tmp_path: Path) -> None:
    fill(tmp_path)
    with History.open(tmp_path) as history:
        backup = history.backup()
    whole = (tmp_path / "chats.db").read_bytes()
    for kept in (0, 1, 50, 100, 4096, 4097, len(whole) // 2, len(whole) - 4096):
        (tmp_path / "chats.db").write_bytes(whole[:kept])
        with pytest.raises(HistoryDamaged, match="damaged") as raised:
            History.open(tmp_path)
        assert str(backup) in str(raised.value) and "Nothing was changed" in str(raised.value)
        assert (tmp_path / "chats.db").read_bytes() == whole[:kept]


def test_a_page_of_zeros_is_refused_or_found_by_the_check(tmp_path: Path) -> None:
    fill(tmp_path / "good", 30)
    whole = (tmp_path / "good" / "chats.db").read_bytes()
    refused: list[str] = []
    for page in range(len(whole) // 4096):
        folder = tmp_path / str(page)
        folder.mkdir()
        (folder / "chats.db").write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        try:
            with History.open(folder) as history:
                assert history.check() != ()
        except HistoryDamaged as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 4096 // 2


def test_a_flipped_bit_is_refused_or_found_by_the_check_or_harms_nothing(tmp_path: Path) -> None:
    """Every message that such a history still shows is as it was written, or `check` says that it is not."""
    chat = fill(tmp_path / "good", 30)
    whole = (tmp_path / "good" / "chats.db").read_bytes()
    with History.open(tmp_path / "good") as history:
        wrote = {m.id: m.content for m in history.messages.open(chat).messages}
    chance, refused, found = random.Random(5), 0, 0
    for attempt in range(60):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        broken = bytearray(whole)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        (folder / "chats.db").write_bytes(broken)
        try:
            with History.open(folder) as history:
                if history.check():
                    found += 1
                else:
                    assert {m.id: m.content for m in history.messages.open(chat).messages} == wrote
        except HistoryError:  # never a bare error of SQLite
            refused += 1
    assert refused > 0 and found > 5


def test_the_log_of_a_damaged_file_is_kept_too(tmp_path: Path) -> None:
    """The log may hold the only good copy of a page: refusing the file must neither fold it in nor drop it."""
    with History.open(tmp_path / "source") as history:
        history.messages.add(history.chats.create().id, Role.USER, "only in the log")
        outside = sqlite3.connect(history.database.path)
        outside.execute("PRAGMA wal_checkpoint(PASSIVE)")
        outside.close()
        history.messages.add(history.chats.create().id, Role.USER, "more")
        log, content = ((tmp_path / "source" / name).read_bytes() for name in ("chats.db-wal", "chats.db"))
    refused = 0
    for number, damaged in enumerate(
        (b"x" * 8192, b"x" * 100, content[:5000], content[:100] + b"\xff" * len(content))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "chats.db").write_bytes(damaged)
        (folder / "chats.db-wal").write_bytes(log)
        try:
            History.open(folder).close()  # the log may be enough to be whole again
        except HistoryDamaged:
            refused += 1
            assert (folder / "chats.db").read_bytes() == damaged
            assert (folder / "chats.db-wal").read_bytes() == log
    assert refused > 0


def test_a_damaged_file_is_moved_aside_only_on_the_users_word(tmp_path: Path) -> None:
    (tmp_path / "chats.db").write_bytes(b"damaged")
    (tmp_path / "chats.db-wal").write_bytes(b"its log")
    with pytest.raises(HistoryDamaged):
        History.open(tmp_path)
    aside = set_aside(tmp_path)
    assert (
        aside.read_bytes() == b"damaged" and aside.with_name(aside.name + "-wal").read_bytes() == b"its log"
    )
    with History.open(tmp_path) as history:
        assert history.chats.list() == () and history.check() == ()
        with pytest.raises(HistoryLocked, match="Another nanochat"):
            set_aside(tmp_path)


def test_a_damaged_history_can_go_on_from_its_backup(tmp_path: Path) -> None:
    chat = fill(tmp_path, 3)
    with History.open(tmp_path) as history:
        assert (backup := history.backup_if_due()) is not None and history.backup_if_due() is None
        history.messages.add(chat, Role.USER, "after the backup")
    (tmp_path / "chats.db").write_bytes(b"damaged")
    with pytest.raises(HistoryDamaged, match=r"set-aside.*--restore"):
        History.open(tmp_path)
    assert set_aside(tmp_path, backup=backup).read_bytes() == b"damaged"
    with History.open(tmp_path) as history:
        assert len(history.messages.open(chat).messages) == 3 and history.check() == ()
        history.messages.add(chat, Role.USER, "more")
    assert backup.exists()


def test_a_full_disk_loses_nothing_that_was_saved_and_says_what_to_do(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        chat = history.chats.create().id
        with history.database.write() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 40}")
        saved: list[str] = []
        with pytest.raises(HistoryFull, match=r"No space.*Free some space"):
            for number in range(1_000):
                saved.append(
                    history.messages.add(chat, Role.USER, f"{number} {history_writer.PIECE * 99}").id
                )
        assert len(saved) > 5
        assert [m.id for m in history.messages.open(chat).messages] == saved
        assert history.search("漢字")
    with History.open(tmp_path) as history:
        assert [m.id for m in history.messages.open(chat).messages] == saved and history.check() == ()


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A real file system of 640 KiB; only where we may mount one."""
    folder = Path(tempfile.mkdtemp(prefix="nanochat-tiny-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=640k,mode=0700", "none", str(folder)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode
    ):
        folder.rmdir()
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_really_full_file_system_loses_nothing_that_was_saved(tiny_disk: Path) -> None:
    chat, saved = "", []
    with History.open(tiny_disk / "chats") as history:
        chat = history.chats.create().id
        with pytest.raises(HistoryFull, match="Free some space"):
            for number in range(1_000):
                saved.append(
                    history.messages.add(chat, Role.USER, f"{number} {history_writer.PIECE * 99}").id
                )
        assert len(saved) > 5 and [m.id for m in history.messages.open(chat).messages] == saved
    (tiny_disk / "filler").write_bytes(b"")
    with pytest.raises(OSError, match="No space"), (tiny_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    with pytest.raises(HistoryFull):  # a first start where there is no room
        History.open(tiny_disk / "another")
    (tiny_disk / "filler").unlink()
    with History.open(tiny_disk / "chats") as history:
        assert [m.id for m in history.messages.open(chat).messages] == saved and history.check() == ()


@pytest.mark.parametrize("present", [False, True])
def test_a_read_only_folder_is_told_in_words(present: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="nanochat-readonly-", dir="/tmp"))
    if present:
        fill(folder / "chats", 1)
        for path in (folder / "chats", *(folder / "chats").rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["history_writer"])
    here, there = context.Pipe()
    child = context.Process(target=history_writer.open_as_nobody, args=(folder / "chats", there))
    child.start()
    told = here.recv()
    child.join()
    for path in (folder, folder / "chats", folder / "chats" / "owners"):
        if path.exists():
            path.chmod(0o700)
    shutil.rmtree(folder)
    assert told[0] == "HistoryReadOnly" and "NANOCHAT_HOME" in told[1] and "cannot be written" in told[1]


def test_a_file_where_the_folder_should_be_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "chats").write_text("in the way")
    with pytest.raises(HistoryReadOnly, match="NANOCHAT_HOME"):
        History.open(tmp_path / "chats")

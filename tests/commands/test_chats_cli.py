"""`nanochat chats`, as a user calls it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nanochat.commands.chats import chats
from nanochat.errors import ChatImportError, ChatNotFound, HistoryDamaged, UsageError
from nanochat.history import History, chats_folder
from nanochat.storage.records import Role, Status

EVIL = "\x7f\x1b]52;c;aGk=\x07\x9b31m\u202eevil"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def chat() -> str:
    with History.open(chats_folder()) as history:
        chat = history.chats.create().id
        question = history.messages.add(chat, Role.USER, f"Why is the sky blue? {EVIL}")
        running = history.replies.begin(chat, question.id, model=f"org/tiny{EVIL}")
        history.replies.finish(running.id, Status.STOPPED, f"Rayleigh {EVIL} scattering", reasoning="light")
        history.chats.create(title="Another one")
    return chat


def run(*arguments: str) -> Result:
    return CliRunner().invoke(chats, arguments)


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0 and result.exception is None, result.output
    return result.stdout


def bad(kind: type[Exception], *arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, kind), (result.exception, result.output)
    return str(result.exception)


def test_list_shows_ids_titles_and_counts(chat: str) -> None:
    lines = good("list").splitlines()
    assert len(lines) == 2 and any(
        line.startswith(chat) and "2 messages" in line and "sky blue" in line for line in lines
    )
    assert len(good("list", "--limit", "1").splitlines()) == 1
    assert good() == good("list") and good("--json") == good("list", "--json")
    assert {each["id"] for each in json.loads(good("list", "--json"))} >= {chat}
    assert "No deleted chats" in good("list", "--deleted")


def test_an_empty_history_says_how_to_start() -> None:
    assert "No chats yet" in good("list")
    assert "Nothing found" in good("search", "x")
    assert "No chats to export" in run("export", "--all").stderr


def test_search_shows_the_chat_and_the_words_around_the_match(chat: str) -> None:
    found = good("search", "rayleigh", "scatt")
    assert chat in found and "Model: Rayleigh" in found
    assert json.loads(good("search", "--json", "sky"))[0]["hits"][0]["role"] == "user"
    assert "Nothing found" in good("search", '"', "AND", "(")


def test_show_prints_the_messages_by_the_start_of_an_id(chat: str) -> None:
    shown = good("show", chat[:10])
    assert (
        "Why is the sky blue?" in shown
        and "Rayleigh" in shown
        and "stopped" in shown
        and "light" not in shown
    )
    assert "light" in good("show", "--reasoning", chat)
    bad(ChatNotFound, "show", "zzzz")


@pytest.mark.parametrize(
    "command", [("list",), ("search", "sky"), ("show",), ("list", "--json"), ("search", "--json", "sky")]
)
def test_nothing_that_a_terminal_obeys_is_printed(chat: str, command: tuple[str, ...]) -> None:
    printed = good(*command, *([chat] if command == ("show",) else []))
    assert "evil" in printed
    assert not set(printed) & {"\x7f", "\x1b", "\x07", "\x9b", "\u202e"}


def test_json_and_markdown_come_back(chat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with History.open(chats_folder()) as history:
        bundle = history.bundle(chat)
    exact, readable = tmp_path / "out" / "all.json", tmp_path / "one.md"
    assert "Exported 2 chats" in good("export", "--all", "-o", str(exact))
    assert "Exported 1 chat to" in good("export", chat, "-o", str(readable))
    assert stat.S_IMODE(exact.stat().st_mode) == 0o600
    assert good("export", chat, "--format", "md").encode() == readable.read_bytes()  # through a pipe: exact
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "elsewhere"))
    assert "2 chats: 2 new, 0 here already; 2 new messages" in good("import", str(exact))
    assert "2 chats: 0 new, 2 here already; 0 new messages" in good("import", str(exact))
    assert "1 chat: 1 new" in good("import", str(readable))
    with History.open(chats_folder()) as history:
        assert history.bundle(chat) == bundle


def test_an_import_of_several_files_takes_all_or_none(
    chat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("export", chat, "-o", str(tmp_path / "good.json"))
    (tmp_path / "bad.json").write_text("{")
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "elsewhere"))
    bad(ChatImportError, "import", str(tmp_path / "good.json"), str(tmp_path / "bad.json"))
    assert "No chats yet" in good("list")


def test_several_chats_as_markdown_go_to_a_folder(chat: str, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    good("export", "--all", "--format", "md", "-o", str(folder))
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 2 and all(name.endswith(".md") and "/" not in name for name in names)
    assert any(name.startswith("Why-is-the-sky-blue") and chat in name for name in names)
    assert "give a folder" in bad(UsageError, "export", "--all")


def test_an_export_does_not_replace_a_file_unasked(chat: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.md"
    path.write_text("mine")
    assert "--force" in bad(UsageError, "export", chat, "-o", str(path))
    assert path.read_text() == "mine"
    good("export", chat, "-o", str(path), "--force")
    assert path.read_text().startswith("---\nnanochat: 1\n")
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".exporting")] == []


@pytest.mark.parametrize("arguments", [(), ("--all", "x")])
def test_an_export_needs_ids_or_all(arguments: tuple[str, ...]) -> None:
    bad(UsageError, "export", *arguments)


def test_check_says_that_all_is_well_or_what_is_not(chat: str) -> None:
    assert "All is well: 2 chats" in good("check", "--rebuild-search")
    with History.open(chats_folder()) as history, history.database.write() as connection:
        connection.execute("DROP TRIGGER messages_immutable")
        connection.execute("UPDATE messages SET content = 'forged' WHERE role = 'assistant'")
    result = run("check")
    assert isinstance(result.exception, HistoryDamaged) and "does not match its id" in result.stderr


def test_a_damaged_history_is_set_aside_only_on_the_users_word(
    chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with History.open(chats_folder()) as history:
        history.backup()
    path = chats_folder() / "chats.db"
    path.write_bytes(b"damaged")
    assert "nanochat chats set-aside" in bad(HistoryDamaged, "list")
    assert "add --yes" in bad(UsageError, "set-aside")
    with monkeypatch.context() as patch:
        patch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)
        result = CliRunner().invoke(chats, ["set-aside"], input="n\n")
    assert result.exit_code == 0 and path.read_bytes() == b"damaged"
    assert "kept at" in good("set-aside", "--restore", "--yes") and chat in good("list")
    assert "kept at" in good("set-aside", "--yes") and "No chats yet" in good("list")


def test_an_export_goes_through_links_and_into_pipes_and_replaces_neither(tmp_path: Path, chat: str) -> None:
    target, link, pipe = tmp_path / "target.md", tmp_path / "link.md", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    good("export", chat, "-o", str(link), "--force")
    assert link.is_symlink() and target.read_text() != "old"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    good("export", chat, "-o", str(pipe))
    reader.join(30)
    assert read == [target.read_text()] and pipe.is_fifo()


def test_a_deleted_chat_is_brought_back(chat: str) -> None:
    with History.open(chats_folder()) as history:
        history.chats.delete(chat)
    assert chat not in good("list")
    bad(ChatNotFound, "show", chat)
    assert chat in good("list", "--deleted")
    assert chat in good("restore", chat[:8])
    assert chat in good("list")
    bad(ChatNotFound, "restore", chat)


@pytest.mark.parametrize("title", ["", "../../etc/passwd", "a" * 500, "…/\0\n", "CON", "漢字" * 80])
def test_a_file_is_named_safely_whatever_the_title(tmp_path: Path, title: str) -> None:
    with History.open(chats_folder()) as history:
        chat = history.chats.create(title=title).id
        history.messages.add(chat, Role.USER, "x")
    folder = tmp_path / "notes"
    folder.mkdir()
    good("export", chat, "-o", str(folder))
    (made,) = folder.iterdir()
    assert made.name.endswith(f"{chat}.md") and len(made.name.encode()) <= 255


def test_help_needs_neither_torch_nor_textual() -> None:
    script = (
        "import sys, nanochat.commands.chats; print([m for m in ('torch', 'textual') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

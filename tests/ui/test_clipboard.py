"""Copying: byte-exact by OSC 52, plain, through tmux and through screen; and an honest word on the routes."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pyperclip
import pytest

from nanochat.ui import clipboard
from nanochat.ui.clipboard import Clipboard, Copied, osc52

TEXT = "def f():\n\treturn 'é'  \n\n\n"


def payload(sequence: str) -> str:
    found = re.fullmatch("\x1b\\]52;c;([A-Za-z0-9+/=]*)\x07", sequence)
    assert found is not None, repr(sequence)
    return base64.b64decode(found[1]).decode()


@pytest.fixture
def no_system_clipboard(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> None:
        raise pyperclip.PyperclipException("none here")

    monkeypatch.setattr(pyperclip, "copy", refuse)


def test_osc52_carries_the_text_byte_for_byte() -> None:
    assert payload(osc52(TEXT, {})) == TEXT


def test_in_tmux_both_the_plain_and_the_wrapped_form_are_sent() -> None:
    plain, wrapped = osc52(TEXT, {"TMUX": "/tmp/x,1,0"}).split("\x1bPtmux;")
    assert payload(plain) == TEXT
    assert wrapped.endswith("\x1b\\")
    inner = wrapped.removesuffix("\x1b\\")
    assert inner.count("\x1b") == 2 * inner.count("\x1b\x1b")  # tmux takes every ESC inside doubled
    assert inner.startswith("\x1b\x1b]52;")
    assert payload(inner.replace("\x1b\x1b", "\x1b")) == TEXT


def test_in_screen_the_sequence_comes_in_pieces_that_it_takes() -> None:
    text = TEXT * 200
    pieces = osc52(text, {"STY": "1.tty"}).removeprefix("\x1bP").removesuffix("\x1b\\").split("\x1b\\\x1bP")
    assert len(pieces) > 2
    assert all(len(piece) < 768 for piece in pieces)
    assert payload("".join(pieces)) == text


async def test_the_system_clipboard_is_used_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(pyperclip, "copy", taken.append)
    written: list[str] = []
    copied = await Clipboard(written.append, {}).copy(TEXT)
    assert taken == [TEXT]
    assert payload(written[0]) == TEXT
    assert copied == Copied(("system clipboard", "terminal (OSC 52)"), sure=True)
    assert copied.describe("python code") == "Copied python code: system clipboard, terminal (OSC 52)."


def test_quitting_does_not_wait_for_a_clipboard_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, went_on = threading.Event(), threading.Event()

    def hang(text: str) -> None:
        answered.wait(10)
        went_on.set()

    monkeypatch.setattr("pyperclip.copy", hang)
    monkeypatch.setattr(clipboard, "SECONDS", 0.01)
    copied = asyncio.run(Clipboard(lambda text: None, {}).copy("text"))
    assert "system clipboard" not in copied.routes
    assert not went_on.is_set(), "the loop ended before the clipboard answered"
    answered.set()


async def test_over_ssh_the_wrong_machines_clipboard_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(pyperclip, "copy", taken.append)
    written: list[str] = []
    copied = await Clipboard(written.append, {"SSH_TTY": "/dev/pts/1"}).copy(TEXT)
    assert taken == []
    assert copied == Copied(("terminal (OSC 52)",), sure=False)


@pytest.mark.usefixtures("no_system_clipboard")
async def test_a_text_too_long_for_a_terminal_is_not_said_to_be_copied() -> None:
    written: list[str] = []
    copied = await Clipboard(written.append, {}).copy("x" * clipboard.LONGEST_OSC52)
    assert written == []
    assert copied.routes == ()
    assert copied.describe("reply").startswith("Could not copy reply. 1333 kB is more than a terminal takes")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
@pytest.mark.usefixtures("no_system_clipboard")
async def test_tmux_has_the_text_in_its_buffer(tmp_path: Path) -> None:
    socket = tmp_path / "tmux"
    tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", "cat"], check=True)
    try:
        environ = {"TMUX": f"{socket},1,0", "PATH": os.environ["PATH"]}
        copied = await Clipboard(lambda _: None, environ).copy(TEXT)
        buffer = subprocess.run([*tmux, "show-buffer"], capture_output=True, check=True).stdout.decode()
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    assert buffer == TEXT
    assert copied == Copied(("tmux buffer", "terminal (OSC 52)"), sure=True)

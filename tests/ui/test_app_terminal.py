"""The application in a real (pseudo) terminal: it leaves it as it was, whatever ends it."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import sqlite3
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest
from busy import BUSY
from pty_child import PtyChild

from nanochat.errors import HistoryReadOnly
from nanochat.history import History
from nanochat.ui.terminal import RESTORE_SECONDS, TerminalDriver

APP = Path(__file__).with_name("scripted_app.py")
ON = {b"1049": b"\x1b[?1049h", b"1000": b"\x1b[?1000h", b"2004": b"\x1b[?2004h"}
KITTY, IN_BAND, SCREEN = b"\x1b[=25;1u", b"\x1b[?2048$p", b"\x1b[?1049$p"

Start = Callable[..., PtyChild]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: list[PtyChild] = []

    def run(fault: str = "", **variables: str) -> PtyChild:
        env = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONPATH": str(APP.parents[2])}
        env.pop("NO_COLOR", None)
        env.pop("LC_ALL", None)
        command = [sys.executable, str(APP), str(tmp_path), *([fault] if fault else [])]
        child = PtyChild(command, env=env | variables)
        children.append(child)
        return child

    yield run
    for child in children:
        child.close()


def stream(child: PtyChild) -> None:
    """Send a message and wait until the reply is streaming."""
    child.until(b"ready")
    child.write(b"hello\r")
    child.until(b"word5")


def until_suspended(child: PtyChild) -> None:
    status = Path(f"/proc/{child.process.pid}/stat")
    while status.read_text().rpartition(")")[2].split()[0] != "T":
        child.read(0.05)


def assert_restored(child: PtyChild) -> None:
    """Every mode that was switched on was switched off after it, and the line discipline is as before."""
    for mode, on in ON.items():
        off = b"\x1b[?" + mode + b"l"
        assert child.output.rfind(off) > child.output.rfind(on), mode
    assert b"\x1b[?25h" in child.output[child.output.rfind(b"\x1b[?1049l") :] + child.output[-64:]
    assert child.attributes() == child.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_and_leaves_the_terminal_as_it_was(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    child = start()
    stream(child)
    child.process.send_signal(number)
    assert child.wait() == 0
    assert_restored(child)
    with History.open(tmp_path / "data" / "chats") as history:
        (chat,) = history.chats.list()
        reply = history.messages.open(chat.id).messages[-1]
    assert reply.status == "stopped"
    assert "word5" in reply.content


def test_signals_while_it_ends_are_nothing_to_it(start: Start, tmp_path: Path) -> None:
    child = start()
    stream(child)
    child.process.terminate()
    end = monotonic() + 20
    while child.process.poll() is None:
        assert monotonic() < end, "it does not end"
        child.process.send_signal(signal.SIGTERM)
        child.read(0.001)
    log = (tmp_path / "log" / "nanochat.log").read_text()
    assert "ending on signal SIGTERM" in log
    assert "Traceback" not in log and "never awaited" not in log


def test_a_crash_of_our_own_leaves_the_terminal_as_it_was_and_keeps_the_text(
    start: Start, tmp_path: Path
) -> None:
    child = start("crash")
    child.until(b"ready")
    child.write(b"hello\r")
    assert child.wait() != 0
    assert_restored(child)
    assert b"Traceback" not in child.output
    assert child.output.rstrip().endswith(b"a fault of our own")
    with History.open(tmp_path / "data" / "chats") as history:
        assert all(reply.status == "interrupted" for reply in history.recovered)
        (chat,) = history.chats.list()
        assert history.messages.open(chat.id).messages[0].content == "hello"


def test_kill_leaves_the_screen_usable_and_loses_at_most_a_second(start: Start, tmp_path: Path) -> None:
    child = start()
    stream(child)
    child.until(b"word600")
    child.process.kill()
    child.wait()
    end = monotonic() + 5
    while child.attributes() != child.before:
        assert monotonic() < end, "the line discipline was not restored"
        child.read(0.05)
    for mode, on in ON.items():
        assert child.output.rfind(b"\x1b[?" + mode + b"l") > child.output.rfind(on), mode
    with History.open(tmp_path / "data" / "chats") as history:
        (reply,) = history.recovered
        assert reply.status == "interrupted"
        kept = max(int(number) for number in re.findall(r"word(\d+)", reply.content))
        assert kept >= 600 - 250  # 200 words a second, and a quarter for a busy machine
        assert not history.check()
    assert sqlite3.connect(tmp_path / "data" / "chats" / "chats.db").execute(
        "PRAGMA integrity_check"
    ).fetchone() == ("ok",)


def test_noise_from_c_goes_to_the_log_and_not_to_the_screen(start: Start, tmp_path: Path) -> None:
    child = start("c-noise")
    stream(child)
    child.write(b"\x11")  # ctrl+q
    child.until(b"Quit nanochat?")
    child.write(b"\r")
    assert child.wait() == 0
    assert b"NOISE" not in child.output
    assert b"NOISE FROM C" in (tmp_path / "log" / "nanochat.log").read_bytes()


def test_a_log_that_cannot_be_written_is_no_reason_not_to_chat(start: Start, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    child = start("c-noise")
    stream(child)
    child.process.terminate()
    assert child.wait() == 0
    assert_restored(child)
    assert b"NOISE" not in child.output


def test_a_home_that_cannot_be_written_is_told_in_one_line() -> None:
    env = {**os.environ, "TERM": "xterm-256color", "NANOCHAT_HOME": "/sys/nanochat"}
    child = PtyChild([sys.executable, "-m", "nanochat"], env=env)
    try:
        assert child.wait() == HistoryReadOnly.exit_code
        last = child.output.rstrip().splitlines()[-1]
        assert b"The chats at /sys/nanochat/data/chats/chats.db cannot be written" in last
        assert b"set NANOCHAT_HOME to another folder" in last
        assert_restored(child)
    finally:
        child.close()


def test_ctrl_z_suspends_and_comes_back(start: Start) -> None:
    child = start()
    stream(child)
    child.write(b"\x1b")
    child.until(b"stopped")
    child.write(b"\x1a")
    child.until(b"\x1b[?1049l")
    until_suspended(child)
    assert_restored(child)
    end = len(child.output)
    os.kill(child.process.pid, signal.SIGCONT)
    child.until(b"\x1b[?1049h", since=end)
    child.until(b"essage", since=end)
    child.until(b"hello", since=end)


EDITOR = """#!/bin/sh
trap 'echo CAUGHT' INT
test -t 0 && test -t 1 && test -t 2 && echo 'ON ITS OUTPUT' && echo 'ON ITS ERRORS' >&2
read written || read written
printf '%s' "$written" > "$1"
stty raw -echo
"""


def test_an_editor_has_the_terminal_and_ctrl_c_to_itself_and_gives_it_back(
    start: Start, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text(EDITOR)
    editor.chmod(0o700)
    child = start(EDITOR=str(editor), VISUAL="")
    child.until(b"ready")
    ours, begun = child.attributes(), len(child.output)
    child.write(b"\x0f")  # ctrl+o
    child.until(b"ON ITS OUTPUT")
    child.until(b"ON ITS ERRORS")
    assert 0 < child.output.find(b"\x1b[?1049l", begun) < child.output.find(b"ON ITS OUTPUT")
    assert child.attributes() == child.before
    child.write(b"\x03")  # ctrl+c
    child.until(b"CAUGHT")
    ended = len(child.output)
    child.write(b"from the editor\r")
    child.until(ON[b"1049"], since=ended)
    anew = child.output.find(ON[b"1049"], ended)
    child.until(b"from the editor", since=anew)
    child.until(b"ready", since=anew)
    assert child.attributes() == ours
    child.process.terminate()
    assert child.wait() == 0
    assert_restored(child)
    log = (tmp_path / "log" / "nanochat.log").read_text()
    assert "SIGTERM" in log and "ON ITS" not in log and "SIGINT" not in log


def test_after_sigstop_the_terminal_is_ours_again_and_has_one_reader(start: Start) -> None:
    child = start()
    stream(child)
    child.write(b"\x1b")
    child.until(b"stopped")
    ours, tasks = child.attributes(), Path(f"/proc/{child.process.pid}/task")
    threads = len(list(tasks.iterdir()))
    os.kill(child.process.pid, signal.SIGSTOP)
    until_suspended(child)
    termios.tcsetattr(child.slave, termios.TCSANOW, child.before)
    end = len(child.output)
    os.kill(child.process.pid, signal.SIGCONT)
    child.until(ON[b"1049"], since=end)
    child.until(b"hello", since=end)
    assert child.attributes() == ours
    assert len(list(tasks.iterdir())) <= threads


def test_a_terminal_that_is_attached_anew_gets_the_whole_screen_and_its_modes(start: Start) -> None:
    child = start()
    stream(child)
    child.write(b"\x1b")
    child.until(b"stopped")
    drawn = len(child.output)
    child.process.send_signal(signal.SIGWINCH)
    child.until(ON[b"1049"], since=drawn)
    anew = child.output.find(ON[b"1049"], drawn)
    child.until(b"hello", since=anew)
    child.until(b"essage", since=anew)
    child.until(KITTY, since=anew)
    child.until(IN_BAND, since=anew)
    for on in ON.values():
        assert child.output.find(on, drawn) >= 0


def test_a_terminal_of_another_size_gets_its_modes_and_the_screen_when_it_shows_its_main_one(
    start: Start,
) -> None:
    child = start()
    stream(child)
    child.write(b"\x1b")
    child.until(b"stopped")
    drawn = len(child.output)
    child.resize(30, 100)
    child.until(SCREEN, since=drawn)
    child.until(b"\x1b[30;1H", since=child.output.find(b"\x1b[?1047h", drawn))
    assert child.output.find(b"\x1b[30;1H", drawn) > child.output.find(b"\x1b[?1047h", drawn) > 0
    asked = len(child.output)
    for mode in (ON[b"1000"], ON[b"2004"], b"\x1b[?1004h", b"\x1b[?25l", b"\x1b[?7l", IN_BAND):
        assert child.output.find(mode, drawn) >= 0, mode
    assert child.output.find(KITTY, drawn) < 0, "the keys of the main screen, which is the shell's"
    child.write(b"\x1b[?1049;2$y")
    child.until(ON[b"1049"], since=asked)
    anew = child.output.find(ON[b"1049"], asked)
    child.until(KITTY, since=anew)
    child.until(b"\x1b[30;1H", since=anew)
    child.until(b"hello", since=anew)


def test_resizing_does_not_enter_the_alternate_screen_again(start: Start) -> None:
    child = start()
    stream(child)
    child.write(b"\x1b")
    child.until(b"stopped")
    drawn = len(child.output)
    child.resize(30, 100)
    child.until(SCREEN, since=drawn)
    asked = len(child.output)
    child.write(b"\x1b[?1049;1$y")
    child.until(KITTY, since=asked)
    assert child.output.find(ON[b"1049"], drawn) < 0


class Resizes(TerminalDriver):
    """The driver without its terminal: counts how often it would set the modes again."""

    def __init__(self) -> None:
        self._loop, self._restoring, self._taken = asyncio.get_running_loop(), None, False
        self.restored: list[float] = []

    def _resized(self, number: int, frame: object) -> None:
        """Textual's part."""

    def _restore(self) -> None:
        self.restored.append(self._loop.time())

    async def many(self, count: int) -> None:
        """That many signals, and the time after which the last has had its effect."""
        for _ in range(count):
            self._watched(signal.SIGWINCH, None)
        await asyncio.sleep(0)
        later = asyncio.Event()
        self._loop.call_later(2 * RESTORE_SECONDS, later.set)
        await later.wait()


async def test_the_modes_are_set_once_for_many_signals() -> None:
    driver = Resizes()
    await driver.many(20)
    assert len(driver.restored) == 1
    await driver.many(1)
    assert len(driver.restored) == 2


def test_a_terminal_that_told_its_size_in_band_may_be_followed_by_one_that_does_not(start: Start) -> None:
    child = start()
    child.until(IN_BAND)
    child.write(b"\x1b[?2048;2$y")
    child.until(b"\x1b[?1016h")  # the mouse in pixels: Textual does not hear SIGWINCH any more
    child.write(b"\x1b[48;24;80;480;800t")
    stream(child)
    child.write(b"\x1b")
    child.until(b"stopped")
    drawn = len(child.output)
    child.resize(30, 100)
    child.until(b"\x1b[30;1H", since=drawn)
    child.write(b"\x1b[?2048;2$y")  # and this one does, too
    child.until(b"\x1b[?2048h", since=child.output.find(IN_BAND, drawn))


def test_a_terminal_without_utf8_gets_ascii_only(start: Start) -> None:
    child = start(LANG="C")
    stream(child)
    child.process.terminate()
    child.wait()
    assert child.output.isascii()
    assert b"+---" in re.sub(rb"\x1b\[[\d;]*m", b"", child.output)


def test_alt_and_a_digit_go_to_a_tab_as_terminals_send_them(start: Start) -> None:
    child = start()
    child.until(b"ready")
    child.write(b"first\x14second")  # ctrl+t between
    child.until(b"second")
    since = len(child.output)
    child.write(b"\x1b1")
    child.until(b"first", since=since)


def test_a_key_that_a_network_cuts_after_its_escape_is_that_key(start: Start) -> None:
    child = start(SSH_CONNECTION="192.0.2.1 50022 192.0.2.2 22")
    child.until(b"ready")
    while True:
        began = monotonic()
        child.write(b"ab\x1b")
        select.select([], [], [], 0.05)
        child.write(b"[D")  # left
        if monotonic() - began < 0.1:  # else it was this machine that was slow
            break
        child.write(b"\x05\x15")  # clears the line
    child.write(b"x\r")
    child.until(b"axb")


def test_an_exported_size_is_not_believed(start: Start) -> None:
    child = start(COLUMNS="40", LINES="10")
    child.until(b"ready")
    child.until(b"\x1b[24;1H")  # the status bar in the last of 24 rows


def test_no_colour_is_written_when_none_is_wanted(start: Start) -> None:
    child = start(NO_COLOR="1")
    stream(child)
    child.process.terminate()
    child.wait()
    colours = re.findall(rb"[34]8;2;(\d+);(\d+);(\d+)m", child.output)
    assert all(red == green == blue for red, green, blue in colours)


def test_esc_stops_within_a_fifth_of_a_second(start: Start) -> None:
    child = start()
    stream(child)
    since = len(child.output)
    child.write(b"\x1b")
    pressed = monotonic()
    stopped = child.until(b"stopped", since=since)
    assert (
        stopped - pressed < BUSY * 0.5
    )  # the terminal's own wait for the rest of an escape sequence is in it


def test_esc_and_text_in_one_read_stop_the_reply_and_are_in_the_prompt(start: Start) -> None:
    child = start()
    stream(child)
    since = len(child.output)
    child.write(b"\x1bThen")
    child.until(b"stopped", since=since)
    child.until(b"Then", since=since)

"""Ten thousand hostile replies under a pseudo-terminal: the bytes that are written stay in an allow-list."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

APP = Path(__file__).with_name("hostile_streams.py")
STREAMS = 10_000
#: What Textual writes: colours, the cursor, modes, queries of modes and keys, and nothing else.
ALLOWED = re.compile(
    r"\x1b\[[0-9;:]*m"  # colours
    r"|\x1b\[[0-9]*;?[0-9]*H"  # where to write
    r"|\x1b\[\?(?:25|7|1000|1002|1003|1004|1006|1015|1016|1049|2004|2026|2031|2048)[hl]"  # modes that it turns on
    r"|\x1b\[\?(?:2026|2048)\$p"  # are these modes known?
    r"|\x1b\[[>=<]?[0-9;]*u|\x1b\[\?u"  # the kitty keyboard protocol
    r"|\x1b\[\?996n"  # dark or light?
    r"|\x1b\[[0-9]*[ABCDGKX]"  # moves and erasing in a line
    r"|\x1b\]22;default\x07"  # the mouse pointer's shape
    r"|\r?\n"
)
#: What may stand on the screen between them.
FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def written_by(command: list[str], rows: int = 240, columns: int = 64) -> bytes:
    """Everything that a command writes to its terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "LANG": "C.UTF-8",
            "LINES": str(rows),
            "COLUMNS": str(columns),
        }
        os.environ.pop("TMUX", None)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.execv(command[0], command)
    written: list[bytes] = []
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # Linux: the other side has gone
            break
        if not data:
            break
        written.append(data)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, b"".join(written)[-3000:].decode(errors="replace")
    return b"".join(written)


def test_ten_thousand_hostile_replies_write_nothing_but_text_and_colours() -> None:
    text = written_by([sys.executable, str(APP), str(STREAMS), "1"]).decode()
    assert text.count("failed") > 0.95 * STREAMS  # the replies were on screen
    rest = ALLOWED.sub("", text)
    found = FORBIDDEN.search(rest)
    assert found is None, repr(rest[max(0, found.start() - 60) : found.start() + 60])


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_the_terminals_title_and_clipboard_stay_as_they_were(tmp_path: Path) -> None:
    tmux = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]

    def ask(*words: str) -> str:
        return subprocess.run([*tmux, *words], capture_output=True, check=False, text=True).stdout.strip()

    done = tmp_path / "done"
    environ = {
        **os.environ,
        "PYTHONPATH": str(APP.parents[2]),
        "LANG": "C.UTF-8",
    }
    subprocess.run([*tmux, "new-session", "-d", "-x", "160", "-y", "60", "cat"], check=True, env=environ)
    try:
        ask("set", "-s", "set-clipboard", "on")
        ask("set", "-g", "allow-passthrough", "on")
        ask("select-pane", "-T", "title before")
        ask("respawn-pane", "-k", f"{sys.executable} {APP} 800 2; echo $? > {done}; exec cat")
        deadline = time.monotonic() + 60
        while not done.exists() or not done.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert done.read_text().strip() == "0"
        assert ask("display-message", "-p", "#{pane_title}") == "title before"
        assert ask("list-buffers") == ""
    finally:
        ask("kill-server")

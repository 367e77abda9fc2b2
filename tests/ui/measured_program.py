"""The application on a terminal of its own, as `screen_measure.py` drives and times it, and what the machine did beside."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pty_child import PtyChild

from nanochat.modelhub import starter
from nanochat.settings import Paths

HERE = Path(__file__).parent
ESC, NEW_TAB = "\x1b", "\x14"


class Program(PtyChild):
    """Keys go in as text; times are seconds of the monotonic clock."""

    def until_text(self, text: str, seconds: float = 90.0, *, since: int | None = None) -> float:
        """Read until this text comes after now; returns the moment."""
        return self.until(text.encode(), seconds, since=len(self.output) if since is None else since)

    def press(self, keys: str) -> None:
        self.write(keys.encode())

    def say(self, text: str) -> None:
        """Send a message."""
        self.press(f"{text}\r")

    def after(self, keys: str, text: str) -> float:
        """Milliseconds from these keys to this text."""
        since, begin = len(self.output), time.monotonic()
        self.press(keys)
        return 1000 * (self.until_text(text, since=since) - begin)

    def drain(self, seconds: float = 0.3) -> None:
        """Read for a while: the cursor blinks, so it never is quiet for long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def ready(self) -> None:
        """Wait until the model is there."""
        self.until_text("ready", since=0)
        self.drain(1.0)

    def cpu_seconds(self) -> float:
        """What the process has used so far."""
        used = psutil.Process(self.process.pid).cpu_times()
        return used.user + used.system

    def last(self, pattern: str) -> str:
        """The last place in the output that looks so; escape sequences are no part of it."""
        text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.output.decode(errors="replace"))
        return re.findall(pattern, text)[-1]


@contextmanager
def program(home: Path, *mode: str, size: tuple[int, int] = (40, 200)) -> Iterator[Program]:
    """Start it, and end it; without `mode`, the real command."""
    command = [str(HERE / "measured_app.py"), str(home), *mode] if mode else ["-m", "nanochat"]
    env = os.environ | {
        "NANOCHAT_HOME": str(home), "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8",
        "PYTHONPATH": str(HERE.parents[1]),
    }  # fmt: skip
    child = Program([sys.executable, *command], env=env, size=size)
    try:
        yield child
    finally:
        child.close()


@contextmanager
def fresh_home() -> Iterator[Path]:
    """An empty home in which the starter model is there already."""
    model = starter.ensure(paths=Paths.find())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        (Path(folder) / "data" / "models").symlink_to(model.parent)
        yield Path(folder)


@dataclass
class Neighbours:
    """What of the machine's cores others took, in percent of all of them; read it when our children have ended."""

    share: float = 0.0


@contextmanager
def neighbours() -> Iterator[Neighbours]:
    """Measures what this process and its children did not cause."""
    found = Neighbours()
    machine, own, begin = psutil.cpu_times(), sum(os.times()[:4]), time.monotonic()
    yield found
    now, seconds = psutil.cpu_times(), time.monotonic() - begin
    busy = sum(now) - sum(machine) - (now.idle - machine.idle) - (now.iowait - machine.iowait)
    found.share = max(0.0, 100 * (busy - (sum(os.times()[:4]) - own)) / seconds / (os.cpu_count() or 1))

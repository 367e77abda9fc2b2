"""Measures the whole application on a pseudo-terminal: `python tests/ui/screen_measure.py [NAME...]` prints a table.

With the starter model, and with a scripted source of 2,000 tokens a second in each of four tabs.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from pty_child import PtyChild

from nanochat.history import History
from nanochat.modelhub import starter
from nanochat.settings import Paths
from nanochat.storage.records import Role, Status, Tab

HERE = Path(__file__).parent
ASK = "Write a long story about a ship."
TOKENS = 300
KEYS = 100
RARE = "ŵ"  # what nothing on the screen contains

HEADLESS = """
import sys, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from nanochat.engine.config import EngineConfig
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService
from nanochat.storage.records import Message, Role
from nanochat.hub import LocalModel
from nanochat.ui.language import Language
folder = Path(sys.argv[1])
language = Language.read(LocalModel(folder.name, folder, "starter", 0, "LlamaForCausalLM", "bfloat16", 8192))
engine = EngineService()
engine.load(EngineConfig(model=folder)).wait(120)
ask = (Message(id="", parent="", role=Role.USER, content=sys.argv[2]),)
asked = language.prompt(ask, system_prompt="", thinking=None)
params = SamplingParams(temperature=0.0, max_tokens=int(sys.argv[4]))
print(engine.submit(Request(asked.ids, params)).result(240).metrics.decode_rate)
engine.close()
"""


@contextmanager
def program(home: Path, *mode: str, size: tuple[int, int] = (40, 200)) -> Iterator[PtyChild]:
    """The application on a terminal of its own; without `mode`, the real command."""
    command = [str(HERE / "measured_app.py"), str(home), *mode] if mode else ["-m", "nanochat"]
    env = os.environ | {
        "NANOCHAT_HOME": str(home), "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8",
        "PYTHONPATH": str(HERE.parents[1]),
    }  # fmt: skip
    child = PtyChild([sys.executable, *command], env=env, size=size)
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


def until(child: PtyChild, text: str, seconds: float = 90.0, *, since: int | None = None) -> float:
    """Read until this text comes after now; returns the moment."""
    begin = len(child.output) if since is None else since
    return child.until(text.encode(), seconds, since=begin)


def after(child: PtyChild, keys: str, text: str) -> float:
    """Seconds from these keys to this text."""
    drain(child)
    since, begin = len(child.output), time.monotonic()
    child.write(keys.encode())
    return until(child, text, since=since) - begin


def drain(child: PtyChild, seconds: float = 0.3) -> None:
    """Read for a while: the cursor blinks, so it never is quiet for long."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        child.read(left)


def say(child: PtyChild, text: str) -> None:
    child.write(f"{text}\r".encode())


def ready(child: PtyChild) -> None:
    until(child, "ready", since=0)
    drain(child, 1.0)


def echo(child: PtyChild) -> str:
    """What keys take to show while it streams."""
    took: list[float] = []
    for _ in range(KEYS):
        pause = time.monotonic() + random.uniform(0.05, 0.15)
        while (left := pause - time.monotonic()) > 0:
            child.read(left)
        since, begin = len(child.output), time.monotonic()
        child.write(RARE.encode())
        took.append(1000 * (until(child, RARE, since=since) - begin))
    cuts = statistics.quantiles(took, n=100)
    return f"p50 {cuts[49]:.0f}, p90 {cuts[89]:.0f}, p99 {cuts[98]:.0f} ms"


# What is measured -------------------------------------------------------------------------------


def first_frame() -> dict[str, object]:
    """From the command to the first frame."""
    with fresh_home() as home:
        took: list[float] = []
        for _ in range(6):
            with program(home) as child:
                took.append(until(child, "╰", since=0) - child.started)
    return {
        "first frame": f"{statistics.median(took[1:]):.2f} s, most {max(took[1:]):.2f} s, after a first of {took[0]:.2f}"
    }


def tabs() -> dict[str, object]:
    """Four tabs that stream 2,000 tokens a second each."""
    with fresh_home() as home, program(home, "tabs") as child:
        ready(child)
        for number in range(4):
            say(child, f"go {number}")
            until(child, "streaming")
            if number < 3:
                child.write(b"\x14")
        process = psutil.Process(child.process.pid)
        cpu, begin, size = process.cpu_times(), time.monotonic(), len(child.output)
        found = echo(child)
        seconds, now = time.monotonic() - begin, process.cpu_times()
        share = 100 * (now.user + now.system - cpu.user - cpu.system) / seconds
        written = (len(child.output) - size) / seconds
        return {
            "echo, 4 x 2,000 tok/s": found,
            "CPU": f"{share:.0f} %, {written / 1000:.0f} kB/s to the terminal",
        }


def decode() -> dict[str, object]:
    """The starter model's decode speed with and without the application on screen, in turns."""
    model = starter.ensure(paths=Paths.find())
    rates: dict[str, list[float]] = {"headless": [], "prose": [], "fence": []}
    found: dict[str, object] = {}
    for _ in range(2):
        out = subprocess.run(
            [sys.executable, "-c", HEADLESS, str(model), ASK, str(HERE.parents[1]), str(TOKENS)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        rates["headless"].append(float(out.stdout.split()[-1]))
        for mode in ("prose", "fence"):
            with fresh_home() as home, program(home, mode, size=(40, 120)) as child:
                ready(child)
                say(child, "/set temperature 0")
                say(child, f"/set max_tokens {TOKENS}")
                drain(child)
                say(child, ASK)
                until(child, "cut at its longest")
                rates[mode].append(shown_rate(home))
    whole = statistics.mean(rates["headless"])
    for name, each in rates.items():
        found[f"decode, {name}"] = (
            f"{statistics.mean(each):.1f} tok/s ({', '.join(f'{rate:.1f}' for rate in each)}), {100 * statistics.mean(each) / whole:.0f} %"
        )
    return found


def shown_rate(home: Path) -> float:
    with History.open(home / "data" / "chats") as history:
        (chat,) = history.chats.list()
        return float(history.messages.open(chat.id).messages[-1].metrics["decode_rate"])


def typing() -> dict[str, object]:
    """Keys while the starter model streams."""
    with fresh_home() as home, program(home) as child:
        ready(child)
        say(child, "/set temperature 0")
        say(child, ASK)
        until(child, "streaming")
        return {"echo, starter model": echo(child)}


def library(home: Path, count: int = 500, others: int = 9) -> None:
    """A chat of many messages and some tabs."""
    reply = "Some **words** and a list:\n\n- one\n- two\n\n```python\nx = 1\n```\n" * 3
    with History.open(home / "data" / "chats") as history:
        chats = [history.chats.create() for _ in range(others + 1)]
        for place, chat in enumerate(chats):
            for turn in range(count // 2 if place == 0 else 5):
                user = history.messages.add(chat.id, Role.USER, f"Question {turn}: why is that so?")
                running = history.replies.begin(chat.id, user.id, model="x")
                history.replies.finish(
                    running.id, Status.DONE, reply + f"\n\nend of chat {place} turn {turn}"
                )
        history.tabs.save([Tab(chat.id, active=place == 1) for place, chat in enumerate(chats[: others + 1])])


def opening() -> dict[str, object]:
    """A chat of 500 messages: opened, and its tab shown again; ten tabs that do nothing."""
    found: dict[str, object] = {}
    with fresh_home() as home:
        library(home)
        with program(home) as child:
            ready(child)
            last = "end of chat 0 turn 249"
            found["open a chat of 500 messages"] = f"{1000 * after(child, chr(27) + '1', last):.0f} ms"
            times: list[float] = []
            for _ in range(10):
                after(child, chr(27) + "2", "end of chat 1")
                times.append(1000 * after(child, chr(27) + "1", last))
            found["switch to its tab"] = f"{statistics.median(times):.0f} ms, most {max(times):.0f} ms"
            drain(child, 2.0)
            process = psutil.Process(child.process.pid)
            cpu = process.cpu_times()
            begin = time.monotonic()
            while time.monotonic() - begin < 15:
                child.read(0.5)
            now = process.cpu_times()
            share = 100 * (now.user + now.system - cpu.user - cpu.system) / (time.monotonic() - begin)
            found["idle CPU, 10 tabs, model loaded"] = f"{share:.1f} % of a core"
    return found


def pasting() -> dict[str, object]:
    """A paste of 10,000 tokens, and Esc while prompts are read and replies written."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    text = "\n".join(" ".join(random.choices(words, k=24)) for _ in range(400))
    found: dict[str, object] = {}
    with fresh_home() as home, program(home) as child:
        ready(child)
        times = [1000 * after(child, f"\x1b[200~{text}\x1b[201~", "[pasted") for _ in range(1)]
        drain(child)
        found["paste to echo"] = f"{times[0]:.0f} ms; {label(child)}"
        child.write(b"\x15\x15\x15")
        child.write(b"\x7f" * 3)
        drain(child)
        say(child, ASK)
        until(child, "streaming")
        drain(child, 2.0)
        found["Esc while decoding"] = f"{1000 * after_now(child, chr(27), 'stopped'):.0f} ms"
        drain(child, 1.5)
        part = "\n".join(text.splitlines()[:230])
        child.write(f"\x1b[200~{part}\x1b[201~\r".encode())
        until(child, "prefill 1.0k")
        drain(child, 1.0)
        found["Esc in prefill"] = f"{1000 * after_now(child, chr(27), '· stopped'):.0f} ms"
        drain(child, 1.0)
        found["KV blocks then"] = kv(child)
    return found


def after_now(child: PtyChild, keys: str, text: str) -> float:
    """Seconds from these keys to this text, while other text comes."""
    since, begin = len(child.output), time.monotonic()
    child.write(keys.encode())
    return until(child, text, since=since) - begin


def label(child: PtyChild) -> str:
    text = child.output.decode(errors="replace")
    at = text.rindex("[pasted")
    return text[at : text.index("]", at) + 1]


def kv(child: PtyChild) -> str:
    text = child.output.decode(errors="replace")
    at = text.rindex("KV ")
    return text[at : at + 20]


MEASURES: dict[str, Callable[[], dict[str, object]]] = {
    "first_frame": first_frame, "tabs": tabs, "decode": decode, "typing": typing, "opening": opening,
    "pasting": pasting,
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or list(MEASURES):
        for figure, value in MEASURES[name]().items():
            print(f"{figure:34} {value}", flush=True)

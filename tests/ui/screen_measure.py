"""Measures the whole application on a pseudo-terminal against what it must do.

    python tests/ui/screen_measure.py [RUNS] [NAME...]

prints a table: the figure, what it must be, what it was in every run, and what share of the cores others took
meanwhile (a machine that does something else measures that). RUNS is 3 if not given; the NAMES are `first_frame`,
`tabs`, `typing`, `decode`, `opening`, `idle`, `pasting` and `stopping`, all of them if none is given: some ten minutes.

`tabs` streams from a script at 2,000 tokens a second in each of four tabs; everything else runs the starter model,
which is made first if need be. Times are of this side of the terminal: from the bytes of a key to the bytes of what it
shows. Decode speeds are the engine's own, (n - 1) / (last token - first token), with and without the application,
in turns. What the engine does after Esc is seen by a thread beside it every 5 ms.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measured_program import ESC, HERE, NEW_TAB, Program, fresh_home, neighbours, program

from nanochat.history import History
from nanochat.modelhub import starter
from nanochat.settings import Paths
from nanochat.storage.records import Message, Role, Status, Tab

ASK = "Write a long story about a ship."
TOKENS, PROMPT_LINES = 300, 230
KEYS = 100
RARE = "ŵ"  # what nothing on the screen contains
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

HEADLESS = """
import sys
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


@dataclass(frozen=True)
class Figure:
    """A number of one run. `must` is the most it may be, or the least; None where nothing is asked."""

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def must(self) -> str:
        if self.most is None and self.least is None:
            return "-"
        return f"≤ {self.most:g}" if self.most is not None else f"≥ {self.least:g}"

    def holds(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)


def echoes(child: Program) -> list[float]:
    """Milliseconds that keys take to show, at moments that have nothing to do with the screen's."""
    took: list[float] = []
    for _ in range(KEYS):
        child.drain(random.uniform(0.05, 0.15))
        took.append(child.after(RARE, RARE))
    return took


def echo(name: str, took: list[float]) -> list[Figure]:
    cuts = statistics.quantiles(took, n=100)
    return [
        Figure(f"echo, {name}, p50", cuts[49], "ms"),
        Figure(f"echo, {name}, p90", cuts[89], "ms"),
        Figure(f"echo, {name}, p99", cuts[98], "ms", most=50),
    ]


# What is measured -------------------------------------------------------------------------------


def first_frame() -> list[Figure]:
    """From the command to the first frame."""
    with fresh_home() as home:
        took: list[float] = []
        for _ in range(4):
            with program(home) as child:
                took.append(child.until_text("╰", since=0) - child.started)
    return [Figure("first frame", statistics.median(took), "s", most=0.5)]


def tabs() -> list[Figure]:
    """Four tabs that stream 2,000 tokens a second each."""
    with fresh_home() as home, program(home, "tabs") as child:
        child.ready()
        for number in range(4):
            child.say(f"go {number}")
            child.until_text("streaming")
            if number < 3:
                child.press(NEW_TAB)
        used, begin, size = child.cpu_seconds(), time.monotonic(), len(child.output)
        took = echoes(child)
        seconds = time.monotonic() - begin
        share = 100 * (child.cpu_seconds() - used) / seconds
        written = (len(child.output) - size) / seconds / 1000
        return [
            *echo("4 tabs of 2,000 tok/s", took),
            Figure("CPU then", share, "% of a core"),
            Figure("written to the terminal", written, "kB/s"),
        ]


def typing() -> list[Figure]:
    """Keys while the starter model streams, until the last one."""
    with fresh_home() as home, program(home) as child:
        child.ready()
        child.say("/set temperature 0")
        child.say(ASK)
        child.until_text("streaming")
        took = echoes(child)
        child.after(ESC, "· stopped")
        return echo("starter model", took)


def decode() -> list[Figure]:
    """The starter model's decode speed without and with the application, in turns."""
    model = starter.ensure(paths=Paths.find())
    command = [sys.executable, "-c", HEADLESS, str(model), ASK, str(HERE.parents[1]), str(TOKENS)]
    headless = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    found = [Figure("decode, headless", headless, "tok/s")]
    for mode in ("prose", "fence"):
        with fresh_home() as home, program(home, mode, size=(40, 120)) as child:
            child.ready()
            child.say("/set temperature 0")
            child.say(f"/set max_tokens {TOKENS}")
            child.drain()
            child.say(ASK)
            child.until_text("cut at its longest")
            rate = float(reply(home).metrics["decode_rate"])
            found += [
                Figure(f"decode, {mode}", rate, "tok/s"),
                Figure(f"decode, {mode} against headless", 100 * rate / headless, "%", least=85),
            ]
    return found


def reply(home: Path) -> Message:
    """The last message of the only chat."""
    with History.open(home / "data" / "chats") as history:
        (chat,) = history.chats.list()
        return history.messages.open(chat.id).messages[-1]


def library(home: Path, count: int = 500, others: int = 9) -> None:
    """A chat of many messages and some tabs."""
    text = "Some **words** and a list:\n\n- one\n- two\n\n```python\nx = 1\n```\n" * 3
    with History.open(home / "data" / "chats") as history:
        chats = [history.chats.create() for _ in range(others + 1)]
        for place, chat in enumerate(chats):
            for turn in range(count // 2 if place == 0 else 5):
                user = history.messages.add(chat.id, Role.USER, f"Question {turn}: why is that so?")
                running = history.replies.begin(chat.id, user.id, model="x")
                history.replies.finish(running.id, Status.DONE, text + f"\n\nend of chat {place} turn {turn}")
        history.tabs.save([Tab(chat.id, active=place == 1) for place, chat in enumerate(chats)])


def opening() -> list[Figure]:
    """A chat of 500 messages: opened, and its tab shown again."""
    with fresh_home() as home:
        library(home)
        with program(home) as child:
            child.ready()
            last = "end of chat 0 turn 249"
            opened = child.after(f"{ESC}1", last)
            times: list[float] = []
            for _ in range(10):
                child.drain()
                child.after(f"{ESC}2", "end of chat 1")
                child.drain()
                times.append(child.after(f"{ESC}1", last))
    return [
        Figure("open a chat of 500 messages", opened, "ms", most=1000),
        Figure("switch to its tab, median", statistics.median(times), "ms", most=100),
        Figure("switch to its tab, longest of 10", max(times), "ms", most=100),
    ]


def idle() -> list[Figure]:
    """Ten tabs that do nothing, beside a loaded model."""
    with fresh_home() as home:
        library(home)
        with program(home) as child:
            child.ready()
            child.drain(2.0)
            used, begin = child.cpu_seconds(), time.monotonic()
            child.drain(15.0)
            share = 100 * (child.cpu_seconds() - used) / (time.monotonic() - begin)
    return [Figure("idle CPU, 10 tabs", share, "% of a core", most=2)]


def lines(count: int) -> str:
    """Words that no other call gives, some 24 tokens a line."""
    return "\n".join(" ".join(random.choices(WORDS, k=24)) for _ in range(count))


def pasted(text: str) -> str:
    return f"{ESC}[200~{text}{ESC}[201~"


def pasting() -> list[Figure]:
    """A paste of 10,000 tokens."""
    with fresh_home() as home, program(home) as child:
        child.ready()
        took: list[float] = []
        for _ in range(3):
            took.append(child.after(pasted(lines(430)), "[pasted"))
            child.drain(1.0)
            tokens = int(child.last(r"\[pasted 430 lines · ([\d,]+) tokens").replace(",", ""))
            child.press(NEW_TAB)
            child.drain(1.0)
    return [
        Figure("paste to echo, longest of 3", max(took), "ms", most=300),
        Figure("tokens of the paste", tokens, "tokens", least=10_000),
    ]


def stopping() -> list[Figure]:
    """Esc while replies are written and prompts are read: on screen, and in the engine."""
    found: list[Figure] = []
    for name, ask in (("decode", ASK), ("prefill", pasted(lines(PROMPT_LINES)))):
        with fresh_home() as home, program(home, "watched") as child:
            child.ready()
            child.say(ask)
            child.until_text("streaming" if name == "decode" else "prefilling")
            child.drain(random.uniform(1.0, 1.5))
            pressed = time.monotonic()
            shown = child.after(ESC, "· stopped")
            child.drain(0.5)
            stopped, freed = engine_after(home, pressed)
            record = reply(home)
            assert record.status is Status.STOPPED, record.status
            found += [
                Figure(f"Esc in {name}, on screen", shown, "ms", most=200),
                Figure(f"Esc in {name}, the engine stopped", stopped, "ms", most=200),
                Figure(f"Esc in {name}, blocks freed", freed, "ms", most=200),
            ]
            if name == "decode":
                found.append(Figure("text kept", len(record.content), "characters", least=1))
    return found


def engine_after(home: Path, pressed: float) -> tuple[float, float]:
    """Milliseconds until nothing ran in the engine, and until no block was in use."""
    looks = [line.split() for line in (home / "engine.log").read_text(encoding="utf-8").splitlines()]
    later = [(1000 * (float(at) - pressed), int(running), int(used)) for at, running, used in looks]
    assert any(running and at < 0 for at, running, _ in later), "nothing ran"
    return tuple(next(look[0] for look in later if look[0] > 0 and not look[which]) for which in (1, 2))  # pyright: ignore[reportReturnType]


MEASURES: dict[str, Callable[[], list[Figure]]] = {
    each.__name__: each for each in (first_frame, tabs, typing, decode, opening, idle, pasting, stopping)
}  # fmt: skip


def main(words: list[str]) -> None:
    runs = int(words.pop(0)) if words and words[0].isdigit() else 3
    for name in words or list(MEASURES):
        found: dict[str, list[Figure]] = {}
        beside: list[float] = []
        for _ in range(runs):
            with neighbours() as others:
                for figure in MEASURES[name]():
                    found.setdefault(figure.name, []).append(figure)
            beside.append(others.share)
        for figures in found.values():
            first, values = figures[0], [figure.value for figure in figures]
            middle = statistics.median(values)
            word = "" if first.must == "-" else "holds" if first.holds(middle) else "MISSES"
            each = ", ".join(f"{value:.3g}" for value in values)
            print(
                f"{first.name:36} {first.must:>8} {middle:8.3g} {first.unit:12} {word:7} ({each})", flush=True
            )
        print(f"    others took {', '.join(f'{share:.0f}' for share in beside)} % of the cores", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

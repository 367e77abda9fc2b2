"""Measures the transcript under a pseudo-terminal: `python tests/ui/transcript_measure.py` prints a table.

Milliseconds are CPU time of the screen's thread for one flush, its layout and painting included.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from textual.app import App, ComposeResult
from textual.widgets import Input
from transcript_demo import ANSWER

from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.theme import THEMES
from nanochat.ui.widgets.transcript import Transcript

CODE = "    value = compute(index, total)  # line {0} of the program\n"
DOCUMENTS: dict[str, tuple[str, str]] = {
    "paragraph 2k": ("word and word " * 140, "and some more of it "),
    "paragraph 8k": ("word and **word** " * 450, "and some more of it "),
    "prose 20k": (("A sentence with *some* words in it. " * 12 + "\n\n") * 45, "and some more of it "),
    "list 200 items": ("".join(f"- item {i} with **some** text\n" for i in range(200)), "- one more item\n"),
    "table 200 rows": (
        "| a | b | c |\n|---|---|---|\n" + "| one | two | three |\n" * 200,
        "| four | five | six |\n",
    ),
    "fence 2000 lines": ("```python\n" + "".join(CODE.format(i) for i in range(2000)), CODE.format("x")),
}


class Measure(App[None]):
    CSS = "Transcript { height: 1fr; } Input { dock: bottom; }"

    def __init__(self, work: Callable[[Measure], Awaitable[dict[str, object]]], out: int) -> None:
        super().__init__()
        self.register_theme(THEMES[0])
        self.theme = THEMES[0].name
        self.transcript = Transcript()
        self._measure = work
        self._out = out

    def compose(self) -> ComposeResult:
        yield self.transcript
        yield Input()

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        result = await self._measure(self)
        os.write(self._out, json.dumps(result).encode())
        self.exit()

    async def painted(self) -> None:
        done = asyncio.Event()
        self.transcript.call_after_refresh(done.set)
        await done.wait()
        self.screen.call_after_refresh(done.clear)
        await asyncio.sleep(0)

    async def cost(self, change: Callable[[], object]) -> float:
        """Milliseconds of this thread for a change, until it is on screen."""
        await asyncio.sleep(0.05)
        begin = time.thread_time()
        change()
        await self.painted()
        await asyncio.sleep(0.04)
        return (time.thread_time() - begin) * 1000


def chat(name: str, count: int) -> Conversation:
    messages: list[TranscriptMessage] = []
    for index in range(count // 2):
        messages.append(
            TranscriptMessage(f"u{index}", "user", f"Question {index}: " + "why is that so? " * 6)
        )
        messages.append(
            TranscriptMessage(f"a{index}", "assistant", ANSWER, footer="143 tok/s", reasoning="Hm.\n" * 9)
        )
    return Conversation(name, messages)


async def flushes(app: Measure) -> dict[str, object]:
    nothing = [await app.cost(lambda: None) for _ in range(7)]
    found: dict[str, object] = {"nothing": round(statistics.median(nothing), 2)}
    for name, (document, piece) in DOCUMENTS.items():
        reply = TranscriptMessage("a", "assistant", status="streaming")
        talk = Conversation(name, [TranscriptMessage("u", "user", "?"), reply])
        app.transcript.swap(talk)
        talk.write("a", document)
        await app.painted()
        small = [await app.cost(lambda t=talk: t.write("a", "more")) for _ in range(9)]
        talk.write("a", "\n")
        large = [await app.cost(lambda t=talk, p=piece: t.write("a", p * 5)) for _ in range(9)]
        finish = await app.cost(lambda t=talk: t.change("a", status="done", footer="143 tok/s"))
        figures = (statistics.median(small), statistics.median(large), max(small + large), finish)
        found[name] = "+1 token {:.1f}, +100 tokens {:.1f}, most {:.1f}, finish {:.1f}".format(*figures)
    return found


async def opening(app: Measure) -> dict[str, object]:
    found: dict[str, object] = {}
    one, two = chat("one", 500), chat("two", 500)
    order = ("open 500 messages", one), ("open another", two), ("switch", one), ("switch back", two)
    for name, talk in order:
        begin = time.perf_counter()
        app.transcript.swap(talk)
        await app.painted()
        found[name] = round((time.perf_counter() - begin) * 1000, 1)
    found["characters"] = sum(len(m.text) for m in one.messages)
    for key in ("home", "end"):
        begin = time.perf_counter()
        app.transcript.scroll_to(y=0 if key == "home" else app.transcript.max_scroll_y)
        await app.painted()
        found[key] = round((time.perf_counter() - begin) * 1000, 1)
    found["wheel up x60"] = round(await app.cost(lambda: [app.transcript.scroll_up() for _ in range(60)]), 1)
    for name, focused in (("blur", False), ("focus", True)):
        found[name] = round(await app.cost(lambda f=focused: setattr(app, "app_focus", f)), 1)
    found["theme"] = round(await app.cost(lambda: setattr(app, "theme", "textual-light")), 1)
    await asyncio.sleep(0.5)
    begin, wall = time.process_time(), time.perf_counter()
    await asyncio.sleep(5)
    found["idle CPU %"] = round(100 * (time.process_time() - begin) / (time.perf_counter() - wall), 2)
    return found


def under_pty(
    work: Callable[[Measure], Awaitable[dict[str, object]]], rows: int = 40, columns: int = 120
) -> dict[str, object]:
    """Run an app in a child on a pseudo-terminal; what it found."""
    reader, writer = os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        os.close(reader)
        os.environ |= {
            "COLUMNS": str(columns),
            "LINES": str(rows),
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
        }
        Measure(work, writer).run()
        os._exit(0)
    os.close(writer)
    size = 0
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        size += len(data)
    os.waitpid(pid, 0)
    result: dict[str, object] = json.loads(os.read(reader, 1 << 20) or b"{}")
    return result | {"bytes written": size}


if __name__ == "__main__":
    works = {"flushes": flushes, "opening": opening}
    for name in sys.argv[1:] or list(works):
        print(name)
        for key, value in under_pty(works[name]).items():
            print(f"  {key:20} {value}")

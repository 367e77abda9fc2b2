"""From the engine's bell to the screen: many rings, one look; the pace; nothing lost, nothing shown twice."""

from __future__ import annotations

import asyncio
import itertools
import threading
from types import SimpleNamespace

import pytest

from nanochat.ui import pump as pump_module
from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.pump import FASTEST, SLOWEST, Pump


class Clock:
    """Time that passes only when something sleeps or paints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        fake = SimpleNamespace(
            Event=asyncio.Event, get_running_loop=asyncio.get_running_loop, sleep=self.sleep
        )
        monkeypatch.setattr(pump_module, "asyncio", fake)
        monkeypatch.setattr(pump_module, "monotonic", lambda: self.now)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Source:
    """A scripted engine stream: text comes on another thread; one ring each time a reader has taken all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self.rings = 0
        self.ring = lambda: None

    def write(self, text: str) -> None:
        with self._lock:
            first = not self._waiting
            self._waiting.append(text)
        if first:
            self.rings += 1
            self.ring()

    def take(self) -> str:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return "".join(waiting)


async def until(condition: object) -> None:
    assert callable(condition)
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never")


async def test_many_rings_are_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    looks: list[int] = []

    async def painted() -> None:
        return

    pump = Pump(lambda: looks.append(1), painted)
    task = asyncio.create_task(pump.run())
    for _ in range(1000):
        pump.ring()
    await until(lambda: looks)
    await asyncio.sleep(0)
    assert len(looks) == 1
    task.cancel()


@pytest.mark.parametrize(
    ("drawing", "pause"), [(0.001, FASTEST), (0.02, FASTEST), (0.06, 0.12), (1.0, SLOWEST)]
)
async def test_the_pace_follows_what_drawing_costs(
    monkeypatch: pytest.MonkeyPatch, drawing: float, pause: float
) -> None:
    clock = Clock(monkeypatch)

    async def painted() -> None:
        clock.now += drawing
        pump.ring()

    pump = Pump(lambda: None, painted)
    task = asyncio.create_task(pump.run())
    pump.ring()
    await until(lambda: len(clock.sleeps) >= 3)
    task.cancel()
    assert clock.sleeps == pytest.approx([pause] * len(clock.sleeps))
    assert pytest.approx(1 / 20) == FASTEST


async def test_text_from_another_thread_arrives_whole_and_in_order() -> None:
    source = Source()
    conversation = Conversation("c", [TranscriptMessage("a", "assistant", status="streaming")])

    async def painted() -> None:
        await asyncio.sleep(0)

    pump = Pump(lambda: conversation.write("a", source.take()), painted)
    source.ring = pump.ring
    task = asyncio.create_task(pump.run())
    pieces = [f"{index} " for index in range(5000)]

    def engine() -> None:
        for piece in pieces:
            source.write(piece)

    await asyncio.to_thread(engine)
    deadline = asyncio.get_running_loop().time() + 10
    while conversation.get("a").text != "".join(pieces):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    task.cancel()
    assert source.rings < len(pieces)


def test_a_hidden_chat_only_keeps_what_comes() -> None:
    conversation = Conversation("c", [TranscriptMessage("a", "assistant", status="streaming")])
    conversation.write("a", "first ")
    assert conversation.take("a") == ("first ", "")
    for piece in ("second ", "third "):
        conversation.write("a", piece, "why ")
    assert conversation.take("a") == ("second third ", "why why ")
    assert conversation.take("a") == ("", "")
    message = conversation.get("a")
    assert (message.text, message.reasoning) == ("first second third ", "why why ")


def test_listeners_hear_of_every_change_once() -> None:
    conversation = Conversation("c", [TranscriptMessage("a", "assistant", status="streaming")])
    heard: list[str | None] = []
    conversation.on_change = heard.append
    conversation.write("a", "x")
    conversation.write("a", "")
    conversation.change("a", footer="9 tok/s")
    conversation.change("a", footer="9 tok/s")
    conversation.append(TranscriptMessage("u", "user"))
    assert heard == ["a", "a", None]
    assert list(itertools.islice(conversation.ids, 2)) == ["a", "u"]

"""The application's way back to the shell."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from nanochat.ui.launch import run
from nanochat.ui.signals import forget_signals, give_back_signals, on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


async def come(seen: list[int], *numbers: int) -> None:
    """Send these signals and wait until they are seen."""
    for number in numbers:
        os.kill(os.getpid(), number)
    while not set(numbers) <= set(seen):
        await asyncio.sleep(0)


def test_signals_are_told_on_the_loop_and_others_are_not() -> None:
    seen = list[int]()

    async def app() -> None:
        on_signals(asyncio.get_running_loop(), [signal.SIGTERM, signal.SIGHUP], seen.append)
        signal.signal(signal.SIGWINCH, lambda *_: None)
        os.kill(os.getpid(), signal.SIGWINCH)
        await come(seen, signal.SIGHUP)
        await come(seen, signal.SIGTERM, signal.SIGTERM)

    before = signal.getsignal(signal.SIGWINCH)
    asyncio.run(app())
    signal.signal(signal.SIGWINCH, before)
    assert set(seen) == {signal.SIGHUP, signal.SIGTERM} and seen[0] == signal.SIGHUP


def test_what_a_handler_on_another_thread_is_about_to_write_finds_the_pipe_open() -> None:
    """Also when the loop has closed meanwhile."""
    written = list[int]()

    async def app() -> None:
        on_signals(asyncio.get_running_loop(), [signal.SIGTERM], lambda _: None)
        written.append(signal.set_wakeup_fd(-1))

    asyncio.run(app())
    assert os.write(written[0], bytes([signal.SIGTERM])) == 1


def test_signals_do_what_they_usually_do_once_they_are_given_back() -> None:
    async def app() -> None:
        on_signals(asyncio.get_running_loop(), [signal.SIGTERM, signal.SIGINT], lambda _: None)
        forget_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    own = signal.getsignal(signal.SIGHUP)
    asyncio.run(app())
    give_back_signals()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.getsignal(signal.SIGHUP) is own
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_the_loop_closes_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close, seen = BaseSelectorEventLoop._close_self_pipe, list[int]()  # type: ignore[attr-defined]
    written = list[object]()  # what Python writes to stderr, since nobody can catch it

    def close_and_signal(loop: BaseSelectorEventLoop) -> None:
        close(loop)
        os.kill(os.getpid(), signal.SIGTERM)

    async def run_async() -> None:
        on_signals(asyncio.get_running_loop(), [signal.SIGTERM], seen.append)
        await come(seen, signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", written.append)
        patch.setattr(BaseSelectorEventLoop, "_close_self_pipe", close_and_signal)
        asyncio.run(run(SimpleNamespace(run_async=run_async)))  # type: ignore[arg-type]
    assert seen == [signal.SIGTERM]
    assert not written

"""The application's way back to the shell."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.selector_events import BaseSelectorEventLoop
from types import SimpleNamespace

import pytest

from nanochat.ui.launch import run


def test_a_signal_while_the_loop_closes_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close, seen = BaseSelectorEventLoop._close_self_pipe, list[int]()  # type: ignore[attr-defined]
    written = list[object]()  # what Python writes to stderr, since nobody can catch it

    def close_and_signal(loop: BaseSelectorEventLoop) -> None:
        close(loop)
        os.kill(os.getpid(), signal.SIGTERM)

    async def run_async() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, seen.append, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        while not seen:
            await asyncio.sleep(0)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", written.append)
        patch.setattr(BaseSelectorEventLoop, "_close_self_pipe", close_and_signal)
        asyncio.run(run(SimpleNamespace(run_async=run_async)))  # type: ignore[arg-type]
    signal.signal(signal.SIGTERM, before)
    assert seen == [1]
    assert not written

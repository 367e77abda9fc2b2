"""The application in this terminal, from the command to the shell."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from textual.app import App

from nanochat.engine.service import EngineService
from nanochat.hub import LocalModel
from nanochat.settings import Paths, Settings
from nanochat.ui.app import NanochatApp
from nanochat.ui.chat_model import ChatModel
from nanochat.ui.desk import Desk
from nanochat.ui.shelf import Shelf
from nanochat.ui.signals import forget_signals, give_back_signals
from nanochat.ui.terminal import TerminalDriver, held, speaks_utf8


def main(model: str | None = None, tensor_parallel_size: int | None = None) -> None:
    """Open the chat in this terminal; returns when the user has left. Raises what made it impossible.

    Args:
        model: the name or folder of the model to begin with; `None` is the default one.
        tensor_parallel_size: over how many devices every model of this run is split; `None` is what the settings say.
    """
    paths = Paths.find()
    settings = Settings.load(paths.settings_file)
    desk = Desk(
        paths, settings, engine=EngineService(), shelf=Shelf(paths, settings), read=_read_language, wanted=model or "",
        driver=TerminalDriver,
        ascii_only=settings.ascii == "always" or (settings.ascii == "auto" and not speaks_utf8()),
        tensor_parallel_size=tensor_parallel_size,
    )  # fmt: skip
    with held(paths.log_file):
        app = NanochatApp(desk)
        try:
            asyncio.run(run(app))
        finally:
            give_back_signals()
    fault = app.lifetime.failure or app.fault
    if fault is not None:
        raise fault
    if any(thread.name == "nanochat-engine" for thread in threading.enumerate()):
        leave_at_once()  # it is inside an import or a load, which nothing can interrupt


async def run(app: App[None]) -> None:
    """Run an application until it has left the terminal; signals that come later are nothing to it."""
    try:
        await app.run_async()
    finally:
        forget_signals()


def _read_language(model: LocalModel) -> ChatModel:
    from nanochat.ui.language import Language  # tokenizer and templates: in a worker, after the first frame

    return Language.read(model)


def leave_at_once() -> None:
    """End the process without waiting for threads; everything has been saved."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

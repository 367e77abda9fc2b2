"""Other screens, and what concerns the whole application."""

from __future__ import annotations

import asyncio
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nanochat.errors import UsageError
from nanochat.ui.actions import Action
from nanochat.ui.screens.help import help_page
from nanochat.ui.screens.log import log_page, tail
from nanochat.ui.screens.numbers import numbers_page

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

_GROUP = "Screens"


def show_help(app: NanochatApp, _: str) -> None:
    """Every key and command."""
    app.push_screen(help_page(app.registry, app.keys))


def numbers(app: NanochatApp, _: str) -> None:
    """What the figures mean."""
    app.push_screen(numbers_page(app.host.engine.stats()))


async def log(app: NanochatApp, _: str) -> None:
    """The end of the log."""
    file = app.paths.log_file
    app.push_screen(log_page(file, await asyncio.to_thread(tail, file)))


def reasoning(app: NanochatApp, _: str) -> None:
    """Fold or unfold all reasoning."""
    app.chat_screen.transcript.toggle_reasoning()


def models(app: NanochatApp, _: str) -> None:
    """The screen of models."""
    from nanochat.ui.screens.models import ModelsScreen

    if not any(isinstance(screen, ModelsScreen) for screen in app.screen_stack):
        app.push_screen(ModelsScreen(app.desk.models))


def bench(app: NanochatApp, _: str) -> None:
    """The benchmark."""
    if find_spec("nanochat.ui.screens.bench") is None:
        raise UsageError("this build has no benchmark screen")
    app.push_screen(import_module("nanochat.ui.screens.bench").BenchScreen())


def palette(app: NanochatApp, _: str) -> None:
    """Everything, by name."""
    app.action_command_palette()


def block_up(app: NanochatApp, _: str) -> None:
    """Select the message above."""
    app.chat_screen.transcript.move_cursor(-1)


def block_down(app: NanochatApp, _: str) -> None:
    """Select the message below."""
    app.chat_screen.transcript.move_cursor(1)


def interrupt(app: NanochatApp, _: str) -> None:
    """Copy what is selected, else stop the reply, else quit at the second time."""
    app.interrupt()


async def leave(app: NanochatApp, _: str) -> None:
    """Save everything and quit."""
    await app.lifetime.end()


def suspend(app: NanochatApp, _: str) -> None:
    """Put nanochat into the background; `fg` brings it back."""
    app.action_suspend_process()


ACTIONS: tuple[Action, ...] = (
    Action(
        id="transcript.select_up", title="Select message above", group="Messages", run=block_up, keys="alt+up",
        help="Select a message: then y copies, e edits, f forks, r regenerates, d deletes, space folds.", priority=True,
    ),
    Action(
        id="transcript.select_down", title="Select message below", help="Select the message below.", group="Messages",
        run=block_down, keys="alt+down", priority=True, listed=False,
    ),
    Action(
        id="transcript.reasoning", title="Reasoning", help="Fold or unfold the model's reasoning.", group=_GROUP,
        run=reasoning, keys="f5", slash="reasoning", priority=True,
    ),
    Action(
        id="help", title="Help", help="Every key and command.", group=_GROUP, run=show_help, keys="f1", slash="help",
        scope="app",
    ),
    Action(
        id="numbers", title="What the numbers mean", help="The words for the figures on the screen.", group=_GROUP,
        run=numbers, keys="f7", slash="numbers", priority=True,
    ),
    Action(
        id="models", title="Models", help="Find, fetch and choose models.", group=_GROUP, run=models, keys="f3",
        slash="models",
    ),
    Action(
        id="bench", title="Benchmark", help="Measure this machine.", group=_GROUP, run=bench, keys="f4", slash="bench",
    ),
    Action(
        id="palette", title="Command palette", help="Everything, by name.", group=_GROUP, run=palette, keys="ctrl+p",
        slash="commands",
    ),
    Action(
        id="log", title="Log", help="What the program and the drivers said.", group=_GROUP, run=log, keys="f12,ctrl+l",
        slash="log", scope="app",
    ),
    Action(
        id="interrupt", title="Copy, stop or quit", help="Copy the selection, else stop the reply; twice quits.",
        group="nanochat", run=interrupt, keys="ctrl+c", scope="app", priority=True,
    ),
    Action(
        id="suspend", title="Suspend", help="Put nanochat into the background; fg brings it back.", group="nanochat",
        run=suspend, keys="ctrl+z", scope="app", priority=True,
    ),
    Action(
        id="quit", title="Quit", help="Save everything and quit.", group="nanochat", run=leave, keys="ctrl+q",
        slash="quit", scope="app", priority=True,
    ),
)  # fmt: skip

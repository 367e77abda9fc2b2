"""What a chat is set to, and how the application looks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nanochat.errors import UsageError
from nanochat.hub import LocalModel
from nanochat.settings import Settings
from nanochat.ui import figures, unload_flow
from nanochat.ui.actions import Action, on_chat
from nanochat.ui.background import detached
from nanochat.ui.chat_settings import ChatSettings, named_and_value
from nanochat.ui.model_host import HostState
from nanochat.ui.screens.question import Answer, Question
from nanochat.ui.shelf import reference, short_name
from nanochat.ui.theme import is_theme, use_theme

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.session import ChatSession

_GROUP = "Settings"
_LONGEST_IDLE = 525_600  # minutes: a year, as in the settings file
_THINKING = {"on": True, "off": False, "default": None}


async def panel(app: NanochatApp, _: str) -> None:
    """Show the settings of the chat and go there; from there, hide them."""
    await app.chat_screen.sides.toggle_panel()


@on_chat
async def system(app: NanochatApp, session: ChatSession, prompt: str) -> None:
    """Set the system prompt, or show the panel."""
    if not prompt:
        await app.chat_screen.sides.toggle_panel(shown=True)
        return
    await change(app, session, "system_prompt", "" if prompt in ("none", "default") else prompt)


@on_chat
async def think(app: NanochatApp, session: ChatSession, word: str) -> None:
    """Turn thinking on or off."""
    if word and word.lower() not in _THINKING:
        raise UsageError("/think takes on, off or default")
    language, switches = app.host.language, _THINKING.get(word.lower(), True) is not None
    mine = language is not None and session.settings.model in ("", language.name)
    if language is not None and mine and switches and not language.can_think:
        raise UsageError(f"{short_name(language.name)} has no reasoning that could be turned on or off")
    now = session.settings.thinking
    await change(app, session, "thinking", _THINKING[word.lower()] if word else now is False)


@on_chat
async def set_value(app: NanochatApp, session: ChatSession, text: str) -> None:
    """Set one sampling value: `/set temperature 0.7`; without a value, the model's own default."""
    found, value = named_and_value(text)
    parsed = found.parse(value)
    await change(app, session, found.name, parsed)
    said = "the model's own" if parsed is None else value.strip()
    app.say(f"{found.name} is {said} from the next turn on.")


async def change(app: NanochatApp, session: ChatSession, name: str, value: object) -> None:
    """Change one setting of a chat."""
    await apply(app, session, session.settings.with_value(name, value))


async def apply(app: NanochatApp, session: ChatSession, settings: ChatSettings) -> None:
    """Give a chat other settings, and say what that costs."""
    costs = session.settings.costs_prefix(settings) and session.context_tokens
    await session.apply(settings)
    app.chat_screen.surroundings.refresh_panel()
    if costs:
        app.say(
            f"From the next turn on. It reads the whole chat again: {figures.count(session.context_tokens)} tokens."
        )


@on_chat
async def model(app: NanochatApp, session: ChatSession, name: str) -> None:
    """Choose the model of the shown chat."""
    if name:
        models = app.desk.models
        if await asyncio.to_thread(app.shelf.lacks_starter, name):
            found = await app.desk.offers.fetch_starter()
            if found is None:
                return
        else:
            found = await asyncio.to_thread(app.shelf.find, name)
        await models.acts.use(found, await detached(lambda: models.memory.fit_of(found)), session)
    else:
        app.run_registered("models")


async def use_model(app: NanochatApp, session: ChatSession, chosen: LocalModel) -> None:
    """Give a chat a model and load it."""
    await change(app, session, "model", reference(chosen))
    await app.host.ready(reference(chosen))


def about_model(model: LocalModel) -> str:
    """A line about a model on this machine."""
    parts = [f"{figures.size(model.size)} on disk", model.dtype]
    parts.append(f"context {figures.count(model.context)} tokens" if model.context else "")
    return " · ".join(filter(None, parts))


async def unload(app: NanochatApp, _: str) -> None:
    """Give the model's memory back until the next message; asks first where replies use it."""
    if app.host.state not in (HostState.READY, HostState.LOADING):
        raise UsageError("no model is loaded")
    if await unload_flow.ask(app, ""):
        app.host.unload()
        app.say("Unloaded. The next message loads the model again.")


async def idle(app: NanochatApp, minutes: str) -> None:
    """After how many minutes without use the model gives its memory back."""
    if not minutes:
        choices = ((0, "never"), (5, "5 minutes"), (15, "15 minutes"), (60, "an hour"), (240, "four hours"))
        now = app.settings.idle_unload_minutes
        answers = [Answer(f"{n}", text, "as it is now" if n == now else "") for n, text in choices]
        text = (
            "Then its memory is free for others; the next message loads it again. Other times: /idle MINUTES."
        )
        minutes = await app.ask(Question("Unload a model that nobody uses after", text, answers)) or ""
    if not minutes:
        return
    try:
        wanted = float(minutes)
    except ValueError as error:
        raise UsageError(f"/idle takes a number of minutes, 0 for never, not {minutes!r}") from error
    if not 0 <= wanted <= _LONGEST_IDLE:
        raise UsageError(f"/idle takes 0 to {_LONGEST_IDLE:,} minutes, 0 for never, not {minutes}")
    app.settings = await asyncio.to_thread(
        Settings.change, app.paths.settings_file, idle_unload_minutes=wanted
    )
    app.say(f"An idle model is unloaded after {wanted:g} minutes." if wanted else "The model stays loaded.")


async def theme(app: NanochatApp, name: str) -> None:
    """Another theme, kept in the settings."""
    if not name:
        answers = [
            Answer("auto", "auto", "follow the terminal"),
            Answer("dark", "dark"),
            Answer("light", "light"),
        ]
        answers += [
            Answer(theme, theme) for theme in sorted(app.available_themes) if not theme.startswith("nanochat")
        ]
        name = await app.ask(Question("Theme", "", answers)) or ""
    if name:
        if not is_theme(app, name):
            raise UsageError(f"there is no theme {name!r}: auto, dark, light, or one that /theme lists")
        use_theme(app, name)
        app.settings = await asyncio.to_thread(Settings.change, app.paths.settings_file, theme=name)


ACTIONS: tuple[Action, ...] = (
    Action(
        id="chat.panel", title="Chat settings", help="System prompt, sampling, thinking and model of this chat.",
        group=_GROUP, run=panel, keys="f6", slash="settings", priority=True,
    ),
    Action(
        id="chat.system", title="System prompt", help="Set the system prompt of this chat.", group=_GROUP, run=system,
        slash="system", argument="text",
    ),
    Action(
        id="chat.set", title="Set sampling value", help="Set one value: /set temperature 0.7.", group=_GROUP,
        run=set_value, slash="set", argument="name value",
    ),
    Action(
        id="chat.think", title="Thinking", help="Turn the model's thinking on or off for this chat.", group=_GROUP,
        run=think, slash="think", argument="on|off|default",
    ),
    Action(
        id="chat.model", title="Model", help="Choose this chat's model; without a name, from all.", group=_GROUP, run=model, slash="model",
        argument="name",
    ),
    Action(
        id="model.unload", title="Unload model", help="Give the model's memory back.", group=_GROUP, run=unload,
        slash="unload",
    ),
    Action(
        id="model.idle", title="Idle unload", help="Unload a model that nobody has used for some minutes.", group=_GROUP,
        run=idle, slash="idle", argument="minutes",
    ),
    Action(
        id="theme", title="Theme", help="Choose a theme: auto, dark, light, or one of Textual's.", group=_GROUP,
        run=theme, slash="theme", argument="name",
    ),
)  # fmt: skip

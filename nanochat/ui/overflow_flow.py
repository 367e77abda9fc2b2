"""What the user is asked when a chat has outgrown the model's context, and the fork that begins with a summary."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError, UsageError
from nanochat.hub import LocalModel
from nanochat.ui import edits, figures, queue_flow
from nanochat.ui.commands import tabs
from nanochat.ui.commands.settings import about_model
from nanochat.ui.draft import Draft
from nanochat.ui.overflow import Overflow
from nanochat.ui.screens.question import Answer, Question
from nanochat.ui.services import Choice, Summing
from nanochat.ui.session import ChatSession
from nanochat.ui.shelf import reference
from nanochat.ui.summary import summarise

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

_LEAD = "Summary of the conversation before this one:"


async def ask(app: NanochatApp, session: ChatSession, needed: Overflow) -> Choice | None:
    """Show the chat and ask what to do; None takes the message back into the prompt."""
    tabs.show(app, session)
    title, text, answers = _question(needed)
    while True:
        choice = await app.ask(Question(title, text, answers))
        if choice == "model":
            try:
                chosen = await _choose_longer(app, needed.context)
            except NanochatError as error:
                app.say(str(error), severity="warning")
                continue
            if chosen is None:
                continue
            await session.apply(replace(session.settings, model=reference(chosen)))
            return "model"
        return "drop" if choice == "drop" else "fork" if choice == "fork" else None


def _question(needed: Overflow) -> tuple[str, str, list[Answer]]:
    fits = (
        f"{needed.limit:,} fit into the model's context of {needed.context:,} with room for a reply. "
        "Nothing is dropped without your word."
    )
    answers = [  # each about of one row on 60 columns, so that all four are in view
        Answer("drop", "Drop the oldest turns", "As few as needed; they stay in the history."),
        Answer("fork", "Go on in a new chat, with a summary", "The model sums this chat up; this one stays."),
        Answer("model", "Take a model with a longer context", "Of those on this machine."),
        Answer("back", "Take the message back", "It returns to the prompt, to be made shorter."),
    ]
    if needed.alone:  # nothing that is done to the turns before it helps
        text = f"The last message alone is too long: the chat has {needed.prompt:,} tokens with it; {fits}"
        return "The message is longer than the context", text, answers[2:]
    text = f"This chat has {needed.prompt:,} tokens with your message; {fits}"
    return "This chat is longer than the context", text, answers


async def _choose_longer(app: NanochatApp, than: int) -> LocalModel | None:
    """Ask for a model whose context is longer than `than` tokens; None when the user does not choose."""
    held = app.settings.max_model_len
    if held and held <= than:
        raise UsageError(
            f"engine.max_model_len in {app.paths.settings_file} holds every model to {held:,} tokens: raise it first"
        )
    loaded = app.host.model and reference(
        app.host.model
    )  # its context is what memory allows: not longer for it
    installed = [
        model
        for model in await asyncio.to_thread(app.shelf.installed)
        if model.context > than and reference(model) != loaded
    ]
    if not installed:
        raise UsageError(
            f"no model with a context of more than {than:,} tokens is on this machine: F3 finds and fetches models"
        )
    answers = [Answer(reference(model), model.name, about_model(model)) for model in installed]
    chosen = await app.ask(Question("A longer context", "", answers))
    return next((model for model in installed if reference(model) == chosen), None)


def taken_back(app: NanochatApp, session: ChatSession, text: str, choice: Choice | None) -> None:
    """A message that did not fit was taken back: into the prompt, or into a fork with a summary."""
    if choice == "fork":
        session.summing = Summing(
            text, asyncio.create_task(_summary(app, session))
        )  # at once: it is unsent again
        app.attempt(fork_with_summary(app, session, session.summing))
        return
    queue_flow.give_back(app, session)  # it was written before those that waited for its reply
    edits.put_back(app, session, Draft.of(text))


async def fork_with_summary(app: NanochatApp, session: ChatSession, summing: Summing) -> None:
    """A new chat whose system prompt holds a summary of this one; the message goes there.

    Esc stops it as it stops a reply; then, and when it fails, the message is back in the prompt. Until it is sent it
    waits in `summing`, which is saved as this chat's draft.
    """
    text, task = summing.text, summing.task
    app.chats.save_soon()
    app.chat_screen.surroundings.refresh()
    app.say("Summing the chat up; the new one opens when it is done. Esc stops that.")
    try:
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            taken_back(app, session, text, None)
        else:
            await _go_on(app, session, task.result(), text)
    finally:
        task.cancel()
        session.summing, app.note = None, ""
        app.chat_screen.surroundings.refresh()
    if task.cancelled():
        app.say("The summary was stopped: the message is in its chat's prompt again.")
    else:
        task.result()  # raises why there is none


async def _summary(app: NanochatApp, session: ChatSession) -> str:
    def report(done: int, total: int) -> None:
        app.note = f"summing up {figures.percent(done, total)} %"
        app.chat_screen.surroundings.refresh_status(at_once=True)

    ready = await app.host.ready(session.settings.model)
    return await summarise(
        ready, session.records.messages if session.records else (), app.host.submit, report
    )


async def _go_on(app: NanochatApp, session: ChatSession, summary: str, text: str) -> None:
    prompt = "\n\n".join(filter(None, (session.settings.system_prompt, f"{_LEAD}\n{summary}")))
    app.chat_screen.keep_draft()
    fresh = app.chats.new(settings=replace(session.settings, system_prompt=prompt))
    app.chat_screen.show_active()
    try:
        await fresh.send(text)
    except NanochatError:
        taken_back(app, fresh, text, None)  # beside its summary: Enter tries again
        raise
    await fresh.rename(await asyncio.to_thread(app.history.chats.derived_title, "Continued", session.title))

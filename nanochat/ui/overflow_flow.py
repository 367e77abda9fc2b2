"""What the user is asked when a chat has outgrown the model's context, and the fork that begins with a summary."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import NanochatError
from nanochat.storage.records import Message, Role
from nanochat.ui import figures
from nanochat.ui.commands.settings import choose_model
from nanochat.ui.draft import Draft
from nanochat.ui.model_host import ReadyModel
from nanochat.ui.overflow import Overflow
from nanochat.ui.screens.question import Answer, Question
from nanochat.ui.services import Choice
from nanochat.ui.session import ChatSession
from nanochat.ui.shelf import reference

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

SUMMARY_TOKENS = 400
SUMMARY_PARAMS = SamplingParams(temperature=0.0, max_tokens=SUMMARY_TOKENS)
_ASK = (
    "\n\nSummarise this conversation in at most two hundred words: "
    "what was asked, what was found, what is still open."
)
_LEAD = "Summary of the conversation before this one:"


async def ask(app: NanochatApp, session: ChatSession, needed: Overflow) -> Choice | None:
    """Show the chat and ask what to do; None takes the message back into the prompt."""
    app.show_session(session)
    text = (
        f"This chat has {needed.prompt:,} tokens with your message; {needed.limit:,} fit into the model's context of "
        f"{needed.context:,} with room for a reply. Nothing is dropped without your word."
    )
    answers = [
        Answer(
            "drop", "Drop the oldest turns", "As few as needed. They stay in the history, shown as dropped."
        ),
        Answer(
            "fork",
            "Go on in a new chat, with a summary",
            "The model sums this chat up; this one stays as it is.",
        ),
        Answer("model", "Take a model with a longer context", "Of those on this machine."),
        Answer("back", "Take the message back", "It returns to the prompt, to be made shorter."),
    ]
    while True:
        choice = await app.ask(Question("This chat is longer than the context", text, answers))
        if choice == "model":
            try:
                chosen = await choose_model(app, "A longer context", longer_than=needed.context)
            except NanochatError as error:
                app.say(str(error), severity="warning")
                continue
            if chosen is None:
                continue
            await session.apply(replace(session.settings, model=reference(chosen)))
            return "model"
        return "drop" if choice == "drop" else "fork" if choice == "fork" else None


def taken_back(app: NanochatApp, session: ChatSession, text: str, choice: Choice | None) -> None:
    """A message that did not fit was taken back: into the prompt, or into a fork with a summary."""
    if choice == "fork":
        app.attempt(fork_with_summary(app, session, text))
        return
    app.chat_screen.keep_draft()
    session.draft = Draft.of(
        "\n\n".join(filter(None, (text, session.draft.full)))
    )  # what was typed since stays
    if session is app.chats.active:
        app.chat_screen.prompt.load_draft(session.draft)


async def fork_with_summary(app: NanochatApp, session: ChatSession, text: str) -> None:
    """A new chat whose system prompt holds a summary of this one; the message goes there."""
    app.say("Summing the chat up; the new one opens when it is done.")
    ready = await app.host.ready(session.settings.model)
    try:
        summary = await _summarise(app, ready, session.records.messages if session.records else ())
    except NanochatError:
        taken_back(app, session, text, None)
        raise
    prompt = "\n\n".join(filter(None, (session.settings.system_prompt, f"{_LEAD}\n{summary}")))
    app.chat_screen.keep_draft()
    fresh = app.chats.new(settings=replace(session.settings, system_prompt=prompt))
    app.chat_screen.show_active()
    await fresh.send(text)
    await fresh.rename(f"{session.title} (continued)")


async def _summarise(app: NanochatApp, ready: ReadyModel, messages: tuple[Message, ...]) -> str:
    """Sum up what fits at a time, each summary carried into the next."""
    summary, rest = "", list(messages)
    room = ready.context - 2 * SUMMARY_TOKENS - 64
    while rest:
        taken = await asyncio.to_thread(_fitting, ready, rest, room, summary)
        talk = "\n\n".join([*filter(None, (summary,)), *(_spoken(message) for message in rest[:taken])])
        rest = rest[taken:]
        ask = Message(id="", parent="", role=Role.USER, content=_cut(ready, talk, room) + _ASK)
        asked = await asyncio.to_thread(ready.language.prompt, (ask,), system_prompt="", thinking=False)
        params = replace(SUMMARY_PARAMS, skip_special_tokens=asked.skip_special_tokens)
        stream = app.host.submit(Request(asked.ids, params), lambda: None)
        output = await asyncio.to_thread(stream.result, 600.0)
        summary = (asked.reader.push(output.text).text + asked.reader.finish().text).strip()
        if rest:
            app.say(f"Summing up: {figures.percent(len(messages) - len(rest), len(messages))} %")
    return summary


def _fitting(ready: ReadyModel, messages: list[Message], room: int, summary: str) -> int:
    """How many of the messages fit with the summary so far; one at least."""
    used, taken = ready.language.count(summary), 0
    for message in messages:
        used += ready.language.count(_spoken(message)) + 4
        if taken and used > room:
            break
        taken += 1
    return taken


def _cut(ready: ReadyModel, talk: str, room: int) -> str:
    """A single message that is longer than the context is cut in its middle."""
    while ready.language.count(talk) > room:
        keep = int(len(talk) * 0.45)
        talk = talk[:keep] + "\n…\n" + talk[-keep:]
    return talk


def _spoken(message: Message) -> str:
    return f"{'User' if message.role is Role.USER else 'Assistant'}: {message.content}"

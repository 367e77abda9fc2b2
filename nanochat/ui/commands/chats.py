"""What can be done with chats: find, name, pin, delete, export, import."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING

from nanochat.errors import UsageError
from nanochat.ui.actions import Action, on_chat
from nanochat.ui.commands import tabs
from nanochat.ui.screens.question import TextQuestion, ask_until_done

if TYPE_CHECKING:
    from nanochat.exchange.bundle import Imported
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.session import ChatSession
    from nanochat.ui.undo import Deletion

_GROUP = "Chats"


async def sidebar(app: NanochatApp, _: str) -> None:
    """Show the list of chats and go there; from there, hide it."""
    await app.chat_screen.sides.toggle_list()


async def search(app: NanochatApp, query: str) -> None:
    """Search every message of every chat."""
    await app.chat_screen.sides.search(query)


@on_chat
async def rename(app: NanochatApp, session: ChatSession, title: str) -> None:
    """Give the shown chat a title."""
    if session.chat is None:
        raise UsageError("this chat has no message yet: send one first")
    await rename_chat(app, session.chat.id, session.chat.title, title)


async def rename_chat(app: NanochatApp, chat_id: str, old: str, title: str = "") -> None:
    """Give a chat a title, asking for it when none is given."""
    title = title or (await app.ask(TextQuestion("Rename chat", old)) or "").strip()
    if title:
        await asyncio.to_thread(app.history.chats.rename, chat_id, title)
        await app.chats_changed(chat_id)


@on_chat
async def pin(app: NanochatApp, session: ChatSession, _: str) -> None:
    """Pin the shown chat, or let it go."""
    if session.chat is None:
        raise UsageError("this chat has no message yet: send one first")
    await pin_chat(app, session.chat.id)


async def pin_chat(app: NanochatApp, chat_id: str) -> None:
    """Pin a chat, or let it go."""
    chat = await asyncio.to_thread(app.history.chats.get, chat_id)
    await asyncio.to_thread(app.history.chats.pin, chat_id, not chat.pinned)
    await app.chats_changed(chat_id)
    app.say("Unpinned." if chat.pinned else "Pinned: it stays at the top of the list.")


@on_chat
def delete(app: NanochatApp, session: ChatSession, _: str) -> Awaitable[None]:
    """Delete the shown chat; `/undo` brings it back."""
    if session.chat is None:
        raise UsageError("this chat has no message yet: there is nothing to delete")
    return delete_chat(app, session.chat.id)


def delete_chat(app: NanochatApp, chat_id: str) -> Awaitable[None]:
    """Close a chat's tab at once; the rest, which deletes the chat, is to be awaited."""
    open_tab = next((session for session in app.chats if session.chat and session.chat.id == chat_id), None)
    closing = None if open_tab is None else tabs.close_tab(app, open_tab)
    return _delete(app, chat_id, app.undo.begin(), closing)


async def _delete(app: NanochatApp, chat_id: str, step: Deletion, closing: Awaitable[None] | None) -> None:
    async def undo() -> None:
        await asyncio.to_thread(app.history.chats.restore, chat_id)
        if closing is not None:
            await app.chats.open(chat_id)
            app.chat_screen.show_active()
        await app.chats_changed(chat_id)

    with step:
        if closing is not None:
            await closing
        await asyncio.to_thread(app.history.chats.delete, chat_id)
        step.remember("the chat is back", undo)
    await app.chats_changed(chat_id)
    app.say("Deleted. /undo brings it back, later `nanochat chats restore`; after 30 days it is gone.")


@on_chat
async def export(app: NanochatApp, session: ChatSession, target: str) -> None:
    """Write the shown chat to a file."""
    if session.chat is None:
        raise UsageError("this chat has no message yet: there is nothing to export")
    await export_one(app, session.chat.id, target)


async def export_one(app: NanochatApp, chat_id: str, target: str = "") -> None:
    """Write a chat to a file, asking for its name when none is given."""
    from nanochat.ui.exporting import default_name, export_chat

    async def write(target: str) -> None:
        replies = [session.reply for session in app.chats if session.chat and session.chat.id == chat_id]
        for reply in filter(None, replies):
            await reply.save()
        path = await asyncio.to_thread(export_chat, app.history, chat_id, target, app.folder)
        app.say(f"Written to {path}.")

    if target:
        return await write(target)
    chat = await asyncio.to_thread(app.history.chats.get, chat_id)
    name, about = default_name(chat.title, chat.id), "A name ending in .json keeps every version."
    await ask_until_done(app.ask, "Export chat", write, text=name, about=about)


async def bring_in(app: NanochatApp, source: str) -> None:
    """Import chats from a file: ours, ChatGPT's export, or llm's database."""
    about = "A file: our Markdown or JSON, ChatGPT's conversations.json, or llm's logs.db."
    if source:
        await _bring_in(app, source)
    else:
        await ask_until_done(app.ask, "Import chats", partial(_bring_in, app), about=about)


async def _bring_in(app: NanochatApp, source: str) -> None:
    from nanochat.exchange.reading import read_chats

    path = app.folder / os.path.expanduser(source)
    bundles = await asyncio.to_thread(read_chats, path)
    done = await asyncio.to_thread(app.history.take_in, bundles)
    await app.chats_changed("")
    if len(done.chats) == 1:
        app.chat_screen.keep_draft()
        session = await app.chats.open(done.chats[0])
        app.chat_screen.show_active()
        if not session.busy:
            await session.load()  # it may have been open, without what is new
    app.say(_imported(done))


def _imported(done: Imported) -> str:
    number, here = len(done.chats), len(done.chats) - done.new_chats
    said = f"Imported {number:,} {'chat' if number == 1 else 'chats'}"
    said += (
        f", {done.new_chats:,} of them new"
        if number > 1 and here
        else ", which was here before"
        if here
        else ""
    )
    return f"{said}; {done.new_messages:,} new {'message' if done.new_messages == 1 else 'messages'}."


ACTIONS: tuple[Action, ...] = (
    Action(
        id="chats.sidebar", title="Chats", help="Show or hide the list of chats.", group=_GROUP, run=sidebar,
        keys="f2,ctrl+g", slash="chats", priority=True,
    ),
    Action(
        id="chats.search", title="Search chats", help="Search every message of every chat.", group=_GROUP, run=search,
        keys="ctrl+f", slash="search", argument="words", priority=True,
    ),
    Action(
        id="chat.rename", title="Rename chat", help="Give this chat a title.", group=_GROUP, run=rename, slash="rename",
        argument="title",
    ),
    Action(
        id="chat.pin", title="Pin chat", help="Keep this chat at the top, or let it go.", group=_GROUP, run=pin,
        slash="pin",
    ),
    Action(
        id="chat.delete", title="Delete chat", help="Delete this chat; undo brings it back.", group=_GROUP, run=delete,
        slash="delete",
    ),
    Action(
        id="chat.export", title="Export chat", help="Write this chat to a file, Markdown or JSON.", group=_GROUP,
        run=export, slash="export", argument="file",
    ),
    Action(
        id="chats.import", title="Import chats", help="Read chats from a file: ours, ChatGPT's, or llm's.",
        group=_GROUP, run=bring_in, slash="import", argument="file",
    ),
)  # fmt: skip

"""What the transcript says of a reply on its way: its state, and the line under it until its first text has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.ui import figures
from nanochat.ui.conversation import Status
from nanochat.ui.model_host import HostState, ModelHost
from nanochat.ui.reply import Reply
from nanochat.ui.services import TabState
from nanochat.ui.session import ChatSession
from nanochat.ui.shelf import short_name

if TYPE_CHECKING:
    from nanochat.ui.offers import Offers


def show(session: ChatSession, host: ModelHost, offers: Offers) -> None:
    """Write it into the chat's conversation as it is now."""
    reply = session.reply
    if reply is None or reply.running.id not in session.conversation:
        return
    footer = "" if reply.started else _footer(session, reply, host, offers)
    session.conversation.change(reply.running.id, status=_status(session), footer=footer)


def _footer(session: ChatSession, reply: Reply, host: ModelHost, offers: Offers) -> str:
    """What it waits for."""
    if reply.stream is None:
        share, what = host.progress
        if host.state is HostState.LOADING:
            name = short_name(host.model.name) if host.model else "the model"
            return f"waits for {name}: {what} {round(100 * share)} %"
        if host.model is None:
            return f"waits for {offers.fetching or f'a model: {offers.way_out}'}"
        return "waits for the model"
    if session.state is TabState.WAITING:
        return f"waits for its turn · queue {host.engine.stats().waiting}"
    done, total = reply.stream.prefill_progress
    return f"prefill {figures.count(done)}/{figures.count(total)}"


def _status(session: ChatSession) -> Status:
    """Its state, as the transcript calls it."""
    state = session.state
    if state is TabState.QUEUED:
        return "queued"
    if state is TabState.WAITING:
        return "waiting"
    return "prefilling" if state is TabState.PREFILLING else "streaming"

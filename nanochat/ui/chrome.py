"""What stands around the transcript, computed from chats, model and engine: tab labels, figures, the prompt's frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.engine.outputs import EngineStats
from nanochat.storage.records import Role
from nanochat.ui import figures
from nanochat.ui.model_host import HostState, ModelHost
from nanochat.ui.overflow import WARN_SHARE
from nanochat.ui.services import TabState
from nanochat.ui.session import ChatSession
from nanochat.ui.shelf import short_name
from nanochat.ui.status_fields import ChatFigures
from nanochat.ui.widgets.tabs import TabLabel

if TYPE_CHECKING:
    from nanochat.ui.offers import Offers

_WORDS: dict[TabState, str] = {
    TabState.QUEUED: "waiting",
    TabState.WAITING: "waiting",
    TabState.PREFILLING: "prefilling",
    TabState.STREAMING: "streaming",
    TabState.FAILED: "failed",
}


def tab_label(session: ChatSession) -> TabLabel:
    """One tab."""
    return TabLabel(session.title, session.state, session)


def state_word(session: ChatSession, host: ModelHost) -> str:
    """What the visible chat is doing, in a word or two of at most 12 cells."""
    if session.reply is not None and session.reply.stopping:
        return "stopping"
    if session.summing is not None:
        return "summing up"
    if session.reply is not None and session.state is not TabState.QUEUED:
        return _WORDS[session.state]
    if host.state is HostState.LOADING:
        return f"loading {figures.percent(min(host.progress[0], 0.99), 1.0)} %"
    if host.state is HostState.FAILED:
        return "stopped" if host.died else "load failed"
    if host.state is HostState.NONE:
        return "no model" if host.model is None else "unloaded"
    return _WORDS.get(session.state, "ready")


def engine_figures(host: ModelHost) -> EngineStats:
    """The engine's figures under the model's own name."""
    from dataclasses import replace

    stats = host.engine.stats()
    return replace(stats, model=short_name(host.model.name) if host.model is not None else "")


def chat_figures(session: ChatSession, host: ModelHost, *, note: str = "") -> ChatFigures:
    """The visible chat's figures: of the reply on its way, else of the last one."""
    reply = session.reply
    state, limit = state_word(session, host), host.context
    if reply is not None:
        stream = reply.stream
        first = stream.first if stream is not None else None
        done, total = stream.prefill_progress if stream is not None and first is None else (0, 0)
        return ChatFigures(
            state=state, active=True, prefill_done=done, prefill_total=total,
            prefill_rate=host.engine.stats().prefill_rate if first is None else first.prefill_rate,
            decode_rate=reply.decode_rate, decode_history=tuple(reply.rates),
            ttft=None if first is None else first.ttft, reused=None if first is None else first.cached_tokens,
            prompt_tokens=None if first is None else first.prompt_tokens,
            context_used=session.context_tokens + reply.num_tokens, context_limit=limit, note=note,
        )  # fmt: skip
    last = session.last(Role.ASSISTANT)
    metrics = last.figures if last is not None else {}
    return ChatFigures(
        state=state, prefill_rate=float(metrics.get("prefill_rate", 0.0)),
        decode_rate=float(metrics.get("decode_rate", 0.0)),
        ttft=float(metrics["ttft"]) if metrics.get("ttft") else None,
        reused=last.cached_tokens if last is not None and metrics else None,
        prompt_tokens=int(metrics.get("prompt_tokens", 0)) or None,
        context_used=session.context_tokens, context_limit=limit, note=note,
    )  # fmt: skip


def frame_title(session: ChatSession, host: ModelHost, offers: Offers, *, send: str, up: str) -> str:
    """What the prompt's frame says above: an edit, what waits to be sent, or that no model is here and which key gets one.

    An empty chat shows the offers, and a reply that waits says it itself.
    """
    if session.editing:
        return f"Editing · {send} sends it as a new version · Esc leaves it"
    if number := len(session.queue.drafts):
        waits = f"{number:,} wait{'s' if number == 1 else ''} for the reply"
        return f"{waits} · {up} takes the last back" if up and session.draft.empty else waits
    if (
        host.model is not None
        or not offers.began
        or session.reply is not None
        or not session.conversation.ids
    ):
        return ""
    return offers.fetching or f"No model: {offers.way_out}"


def frame_figures(session: ChatSession, host: ModelHost, draft_tokens: int | None) -> tuple[str, str]:
    """(what the prompt's frame says about tokens, its tone): the draft's own, and the chat's with it."""
    coming = session.reply.num_tokens if session.reply is not None else 0
    used, limit = session.context_tokens + coming + (draft_tokens or 0), host.context
    own = f"{draft_tokens:,} tok" if draft_tokens else ""
    if not limit:
        return own, ""
    tone = "bold $error" if used >= limit else "bold $warning" if used >= WARN_SHARE * limit else ""
    return " · ".join(filter(None, (own, figures.fill(used, limit)))), tone

"""The status bar's fields: what they say, how important they are, and which fit into a width. No Textual here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanochat.engine.outputs import EngineStats
from nanochat.ui import figures
from nanochat.ui.monitor import Reading

WARN_SHARE = 0.8  # of the context: from here on the meter warns
_LONGEST_NAME = 24


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `width` is fixed, so that nothing jumps; fields of a lower `rank` stay longest."""

    name: str
    text: str
    width: int
    rank: int
    tone: str = ""  # "", "warning", "error", "active"


@dataclass(frozen=True, slots=True)
class ChatFigures:
    """The visible chat as the status bar shows it. Tokens; rates a second."""

    state: str = "ready"
    active: bool = False
    prefill_done: int = 0
    prefill_total: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    decode_history: Sequence[float] = ()
    ttft: float | None = None
    reused: int | None = None
    prompt_tokens: int | None = None
    context_used: int = 0
    context_limit: int = 0
    note: str = ""  # a download under way, or the like


def fields(chat: ChatFigures, engine: EngineStats, device: Reading) -> list[Field]:
    """All fields, in their order on the bar."""
    link = engine.link.partition(",")[0]  # what was measured when they were linked is on the numbers page
    return [
        Field("state", chat.state, 12, 0, _state_tone(chat, engine)),
        _model(engine),
        Field("prefill", _prefill(chat), 24, 5),
        Field("decode", _decode(chat), 11, 3),
        Field("spark", figures.sparkline(chat.decode_history, 8), 8, 10),
        Field("ttft", "TTFT –" if chat.ttft is None else f"TTFT {figures.seconds(chat.ttft)}", 11, 7),
        Field("reused", _reused(chat), 17, 4),
        Field("context", _context(chat), 19, 1, _context_tone(chat)),
        Field("kv", _kv(engine), 22, 8),
        Field("queue", f"queue {engine.waiting}", 8, 11),
        Field("memory", _memory(device), 16, 6),
        Field("link", link, len(link), 9),
        Field("power", "" if device.power is None else f"{device.power:.0f} W", 5, 12),
        Field("note", chat.note, min(max(len(chat.note), 6), 18), 2),
    ]


def fitting(all_fields: Iterable[Field], width: int, *, gap: int = 3) -> list[Field]:
    """The fields that fit into `width` cells with `gap` between them: by rank, shown in their order.

    A field with nothing to say takes no room; the first by rank is always kept.
    """
    said = [field for field in all_fields if field.text.strip()]
    kept: set[str] = set()
    used = -gap
    for field in sorted(said, key=lambda field: field.rank):
        if used + gap + field.width <= width or not kept:
            kept.add(field.name)
            used += gap + field.width
    return [field for field in said if field.name in kept]


def _model(engine: EngineStats) -> Field:
    """The model's name and, where it is split, over how many devices: `Qwen3-8B ×2`."""
    width = min(max(len(engine.model), 8), _LONGEST_NAME)
    split = f" ×{engine.ranks}" if engine.ranks > 1 else ""
    name = engine.model if len(engine.model) <= width else f"{engine.model[: width - 1]}…"
    return Field("model", name + split, width + len(split), 2)


def _state_tone(chat: ChatFigures, engine: EngineStats) -> str:
    if engine.state == "dead" or chat.state == "failed":
        return "error"
    return "active" if chat.active else ""


def _prefill(chat: ChatFigures) -> str:
    speed = f"prefill {figures.rate(chat.prefill_rate)}/s" if chat.prefill_rate else "prefill –"
    if chat.prefill_total and chat.prefill_done < chat.prefill_total and chat.active:
        return f"{speed} {figures.count(chat.prefill_done)}/{figures.count(chat.prefill_total)}"
    return speed


def _decode(chat: ChatFigures) -> str:
    return f"{figures.rate(chat.decode_rate)} tok/s" if chat.decode_rate else "– tok/s"


def _reused(chat: ChatFigures) -> str:
    if chat.reused is None or not chat.prompt_tokens:
        return "reused –"
    return f"reused {figures.count(chat.reused)}/{figures.count(chat.prompt_tokens)}"


def _context(chat: ChatFigures) -> str:
    return f"ctx {figures.fill(chat.context_used, chat.context_limit)}" if chat.context_limit else "ctx –"


def _context_tone(chat: ChatFigures) -> str:
    if not chat.context_limit or chat.context_used < WARN_SHARE * chat.context_limit:
        return ""
    return "error" if chat.context_used >= chat.context_limit else "warning"


def _kv(engine: EngineStats) -> str:
    if not engine.blocks_total:
        return "KV –"
    used = figures.percent(engine.blocks_used, engine.blocks_total)
    return f"KV {used} % · {figures.percent(engine.blocks_cached, engine.blocks_total)} % cached"


def _memory(device: Reading) -> str:
    if device.memory_used is None or device.memory_total is None:
        return ""
    return f"{device.device} {figures.size(device.memory_used)}/{figures.size(device.memory_total)}"

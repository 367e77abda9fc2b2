"""What the figures on the screen mean, in words."""

from __future__ import annotations

from nanochat.engine.outputs import EngineStats
from nanochat.ui import figures
from nanochat.ui.screens.page import Page
from nanochat.ui.widgets.definitions import Definitions, Entry

_MEANINGS: tuple[Entry, ...] = (
    ("The status bar", ""),
    ("state", "What this chat is doing: ready, loading, waiting, prefilling, streaming."),
    ("model ×2", "The model that is loaded and, where there are several, the devices that it is split over."),
    ("prefill 8,412/s 3.1k/9.8k", "Prompt tokens computed per second: while a prompt is read by the whole engine over the "
     "last second, with how far this one is; then for the last prompt. Tokens from the cache are not counted."),
    ("143 tok/s", "Tokens of this reply per second, over the last second; the small curve shows the last seconds."),
    ("TTFT 0.21 s", "Time to first token: from sending to the first text on the screen."),
    ("reused 7.9k/8.1k", "How much of the last prompt was already in the cache and did not need to be computed."),
    ("ctx 8.1k/32k 25 %", "How full the model's context is with this chat. From 80 % on it warns; at the end it asks."),
    ("KV 41 % · 30 % cached", "Memory blocks of the key-value cache that replies are using now, and blocks that hold "
     "earlier prompts for reuse."),
    ("queue 1", "Requests that wait for their turn in the engine."),
    ("VRAM 17.2G/24.0G", "Memory in use on the device, by everything; on a CPU: by nanochat, of the machine."),
    ("gloo, NCCL", "How the devices of a split model reach each other."),
    ("250 W", "What the device draws now, where it says so."),
    ("Under a reply", ""),
    ("143 tok/s", "(tokens − 1) / (time of the last − time of the first): decoding alone, without the wait before."),
    ("512 tok", "Tokens of the reply, its reasoning included."),
    ("TTFT 0.21 s", "From sending to the first text."),
    ("reused 97 %", "The share of the prompt that came from the cache."),
    ("stopped", "You stopped it. interrupted: nanochat ended while it came; all but the last second is there."),
    ("In the frame of the prompt", ""),
    ("132 tok · 8.2k/32k 25 %", "Tokens of what you are writing, and what the chat will fill of the context with it."),
    ("Signs before a tab", ""),
    ("◌", "Waits for the model or for its turn."),
    ("▴", "The prompt is being read (prefill)."),
    ("●", "The reply is streaming."),
    ("◆", "The reply is done and you have not seen it."),
    ("✗", "The reply failed."),
)  # fmt: skip


def numbers_page(engine: EngineStats) -> Page:
    """The words as a page; for a model that is split over several devices, what each holds as well."""
    return Page("What the numbers mean", Definitions((*_ranks(engine), *_MEANINGS)))


def _ranks(engine: EngineStats) -> tuple[Entry, ...]:
    """The devices of a split model: their memory, how they are linked, and what that costs."""
    if engine.ranks < 2:
        return ()
    seconds = engine.collective_seconds
    return (
        (f"This model is on {engine.ranks} devices", ""),
        *((f"rank {rank}", f"{figures.size(size)} of weights and key-value cache.")
          for rank, size in enumerate(engine.rank_bytes)),
        ("link", f"{engine.link}."),
        ("in collectives", f"{figures.seconds(seconds)} since the model was loaded, waiting for slower ranks included."
         if seconds is not None else "part of each captured step: `nanochat bench --tp` tells what they cost."),
    )  # fmt: skip

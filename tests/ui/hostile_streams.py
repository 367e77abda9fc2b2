"""Streams that attack the terminal, and an app that shows them: `python hostile_streams.py COUNT SEED`."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Iterator

from textual.app import App, ComposeResult

from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.theme import THEMES
from nanochat.ui.widgets.transcript import Transcript

ESC = "\x1b"
ATTACKS = [
    f"{ESC}]0;owned\x07", f"{ESC}]2;owned{ESC}\\", f"{ESC}]8;;https://evil.example{ESC}\\click{ESC}]8;;{ESC}\\",
    f"{ESC}]52;c;b3duZWQ=\x07", f"{ESC}]52;c;b3duZWQ={ESC}\\", f"{ESC}]1337;File=:b3duZWQ=\x07", f"{ESC}]9;owned\x07",
    f"{ESC}P$qm{ESC}\\", f"{ESC}Ptmux;{ESC}{ESC}]52;c;b3duZWQ=\x07{ESC}\\", f"{ESC}_Gf=100;AAAA{ESC}\\",
    f"{ESC}^x{ESC}\\", f"{ESC}[2J", f"{ESC}[H", f"{ESC}[6n", f"{ESC}[?1049l", f"{ESC}[20t", f"{ESC}[!p",
    f"{ESC}[5i", f"{ESC}c", f"{ESC}#8", f"{ESC}(0", f"{ESC}7", f"{ESC}D", f"{ESC}Z", f"{ESC}[31m", f"{ESC}[<64;1;1M",
    "\x9b2J", "\x9d0;owned\x9c", "\x9d52;c;b3duZWQ=\x9c", "\x90$qm\x9c", "\x98x\x9c", "\x84", "\x8d", "\x85", "\x9a",
    "\x00", "\x05", "\x07", "\x08\x08", "\x0b", "\x0c", "\r", "\x0e", "\x0f", "\x11", "\x13", "\x18", "\x1a", "\x7f",
    "\u202e", "\u202d", "\u2066", "\u2067", "\u2069", "\u200e", "\u200f", "\u061c", "\u206a", "\ufff9", "\U000e0041",
    "\ud800", "\udc1b", "&#27;]0;owned&#7;", "&#x9b;2J", "&#8238;", "<https://a.example/%1b]0;owned%07>",
    "[x](https://a.example/%1B%5B2J)", "[x](<https://a.example/\x1b[2J>)", "https://a.example/%9b2J", "%c2%9b2J",
]  # fmt: skip
MARKDOWN = [
    "text ", "**bold** ", "`code` ", "\n", "\n\n", "```python\n", "```\n", "| a | b |\n|---|---|\n| ", " | ", "- ",
    "1. ", "> ", "# ", "\t", "    ", "[link](https://a.example) ", "日本 ", "👩‍👧 ", "e\u0301", "[/bold] ", "[red]x ",
    "$$x$$ ", "~~s~~ ",
]  # fmt: skip


def stream(source: random.Random) -> list[str]:
    """One reply in pieces; the cuts fall anywhere, in the middle of an escape sequence too."""
    parts = [
        source.choice(ATTACKS if source.random() < 0.5 else MARKDOWN) for _ in range(source.randint(1, 5))
    ]
    text = "".join(parts)
    cuts = sorted(source.randint(0, len(text)) for _ in range(source.randint(1, 5)))
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


class Hostile(App[None]):
    CSS = "Transcript { height: 1fr; }"
    PER_SCREEN = 40

    def __init__(self, count: int, seed: int) -> None:
        super().__init__()
        self.register_theme(THEMES[0])
        self.theme = THEMES[0].name
        self._left = count
        self._source = random.Random(seed)

    def compose(self) -> ComposeResult:
        yield Transcript()

    def on_mount(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        transcript = self.query_one(Transcript)
        for number, conversation in enumerate(self._conversations()):
            transcript.swap(conversation)
            for start in (0, 1):
                for message_id, pieces in self._streams.items():
                    for index, piece in enumerate(pieces[start::2]):
                        reasoning = piece if number % 3 == 2 and index == 0 else ""
                        conversation.write(message_id, "" if reasoning else piece, reasoning)
                if start == 0 and number % 5 == 0:
                    await self._painted(transcript)
            for message_id in self._streams:
                conversation.change(
                    message_id, status="failed", footer="\x1b]0;owned\x07 9", error="\x9b2J\x1bc"
                )
            await self._painted(transcript)
        self.exit()

    def _conversations(self) -> Iterator[Conversation]:
        number = 0
        while self._left > 0:
            number += 1
            self._streams = {
                f"{number}.{i}": stream(self._source) for i in range(min(self._left, self.PER_SCREEN))
            }
            self._left -= len(self._streams)
            attack = self._source.choice(ATTACKS)
            yield Conversation(
                f"\x1b]0;{number}",
                [
                    TranscriptMessage("user", "user", f"{attack} asked"),
                    *(TranscriptMessage(name, "assistant", status="streaming") for name in self._streams),
                ],
            )

    async def _painted(self, transcript: Transcript) -> None:
        done = asyncio.Event()
        transcript.call_later(lambda: transcript.call_after_refresh(done.set))
        await done.wait()


if __name__ == "__main__":
    Hostile(int(sys.argv[1]), int(sys.argv[2])).run()

"""The application as `screen_measure.py` measures it: `python measured_app.py HOME MODE`.

`tabs` streams from a script at 2,000 tokens a second in every tab. The others run the starter model in the real
engine; `fence` shows a program of 2,000 lines in place of the model's words, as many characters as come; `watched`
writes to HOME/engine.log what runs and what blocks are used, whenever that changes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fake_engine import MODEL, FakeEngine, FakeLanguage, FakeShelf
from stage import paths_in

from nanochat.engine.request import Request
from nanochat.engine.service import EngineService
from nanochat.engine.stream import Stream
from nanochat.environment import log_to
from nanochat.hub import LocalModel
from nanochat.settings import Settings
from nanochat.storage.records import Message
from nanochat.ui.app import NanochatApp
from nanochat.ui.chat_model import Asked, ChatModel, Piece, ReplyReader
from nanochat.ui.desk import Desk
from nanochat.ui.language import Language
from nanochat.ui.shelf import Shelf
from nanochat.ui.terminal import TerminalDriver, held

RATE, TICK = 2000, 0.01  # tokens a second in every tab, in bursts this many seconds apart
LOOK = 0.005
PROSE = "A sentence with *some* words in it, and `code`, and more. " * 8 + "\n\n"
LINE = "    value = compute(index, total)  # line {0} of the program\n"
FENCE = "```python\n" + "".join(LINE.format(number) for number in range(2000)) + "```\n\n"


def tokens(text: str) -> list[str]:
    return [text[at : at + 4] for at in range(0, len(text), 4)]


class TabsEngine(FakeEngine):
    """Streams to everybody at once, without end."""

    def submit(self, request: Request, on_ready: Callable[[], None] | None = None) -> Stream:
        self.manual = True
        stream = super().submit(request, on_ready)
        if not stream.finished:
            threading.Thread(target=self._stream, args=(stream,), daemon=True).start()
        return stream

    def _stream(self, stream: Stream) -> None:
        pieces, at, begin = tokens(PROSE * 4 + FENCE), 0, time.monotonic()
        while not stream.finished:
            time.sleep(TICK)
            due = int((time.monotonic() - begin) * RATE)
            while at < due and not stream.finished:
                self.emit(stream, pieces[at % len(pieces)])
                at += 1


class FenceReader:
    """The program's next characters, as many as the model wrote; 1,900 lines of it come with the first."""

    reasoned = False

    def __init__(self) -> None:
        self._at = 0

    def push(self, text: str) -> Piece:
        begin, self._at = self._at, max(self._at, FENCE.index("line 1900 ")) + len(text)
        return Piece(FENCE[begin : self._at])

    def finish(self) -> Piece:
        return Piece()


@dataclass(frozen=True)
class FenceLanguage:
    """The model's own language, but for what its replies say."""

    real: ChatModel

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def prompt(self, messages: Sequence[Message], **how: Any) -> Asked:
        reader: ReplyReader = FenceReader()
        return replace(self.real.prompt(messages, **how), reader=reader)


def watch(engine: EngineService, file: Path) -> None:
    """Write down the moment, requests that run and blocks in use, until the end of the process."""
    last = (0, 0)
    with file.open("w", encoding="utf-8", buffering=1) as out:
        while True:
            stats = engine.stats()
            if (now := (stats.running, stats.blocks_used)) != last:
                last = now
                out.write(f"{time.monotonic()} {stats.running} {stats.blocks_used}\n")
            time.sleep(LOOK)


def main() -> None:
    paths, mode = paths_in(Path(sys.argv[1])), sys.argv[2]
    log_to(paths.log_file)
    settings = Settings(theme="dark")

    def read(model: LocalModel) -> Any:
        return FenceLanguage(Language.read(model)) if mode == "fence" else Language.read(model)

    if mode == "tabs":
        desk = Desk(
            paths, settings, engine=TabsEngine(context=10_000_000), shelf=FakeShelf((MODEL,)),
            read=lambda model: FakeLanguage(model.name), driver=TerminalDriver,
        )  # fmt: skip
    else:
        engine = EngineService()
        if mode == "watched":
            out = Path(sys.argv[1]) / "engine.log"
            threading.Thread(target=watch, args=(engine, out), daemon=True).start()
        desk = Desk(
            paths, settings, engine=engine, shelf=Shelf(paths, settings), read=read,
            driver=TerminalDriver,
        )  # fmt: skip
    with held(paths.log_file):
        app = NanochatApp(desk)
        app.run()
    if app.fault is not None:
        raise app.fault


if __name__ == "__main__":
    main()

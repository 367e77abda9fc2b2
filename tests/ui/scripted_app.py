"""The application in a real terminal with the scripted engine: `python scripted_app.py HOME [what goes wrong]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_engine import MODEL, OTHER, FakeEngine, FakeLanguage, FakeShelf
from stage import paths_in

from nanochat.engine.request import Request
from nanochat.environment import log_to
from nanochat.settings import Settings
from nanochat.ui.app import NanochatApp
from nanochat.ui.desk import Desk
from nanochat.ui.terminal import TerminalDriver, held, speaks_utf8


def script(request: Request) -> Iterator[str]:
    """Words without end, or as many as SCRIPT_WORDS says, at SCRIPT_RATE a second."""
    rate = float(os.environ.get("SCRIPT_RATE", "200"))
    for number in range(int(os.environ.get("SCRIPT_WORDS", "1000000"))):
        time.sleep(1 / rate)
        yield f"word{number} "


def main() -> None:
    paths = paths_in(Path(sys.argv[1]))
    fault = sys.argv[2] if len(sys.argv) > 2 else ""
    log_to(paths.log_file)
    desk = Desk(
        paths, Settings(theme="dark"), engine=FakeEngine(script=script, context=10_000_000),
        shelf=FakeShelf((MODEL, OTHER)), read=lambda model: FakeLanguage(model.name), driver=TerminalDriver,
        watch_device=False, ascii_only=not speaks_utf8(),
    )  # fmt: skip
    with held(paths.log_file):
        app = NanochatApp(desk)
        if fault == "crash":
            app.drained = lambda: 1 / 0  # type: ignore[method-assign]
        if fault == "c-noise":
            app.drained = lambda: os.write(2, b"NOISE FROM C") and os.write(1, b"NOISE FROM C") and None  # type: ignore
        app.run()
    if app.fault is not None:
        sys.exit("a fault of our own")


main()

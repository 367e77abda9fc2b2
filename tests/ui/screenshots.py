"""Makes the README's pictures from the running program: `python tests/ui/screenshots.py` writes `assets/*.svg`.

The starter model answers in the real engine; what is on the screen is what it said.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from stage import Stage, paths_in

from nanochat.engine.service import EngineService
from nanochat.modelhub import starter
from nanochat.settings import Paths, Settings
from nanochat.ui.app import NanochatApp
from nanochat.ui.desk import Desk
from nanochat.ui.language import Language
from nanochat.ui.model_host import HostState
from nanochat.ui.shelf import Shelf

ASSETS = Path(__file__).parents[2] / "assets"
ASKED = (
    "What is the capital of France?",
    "Write a Python function that returns the square of a number.",
)


class Camera(Stage):
    """Drives the application and takes its picture. Models take their time: it waits longer than a test does."""

    async def answer(self, text: str) -> None:
        before = self.messages
        self.app.chat_screen.prompt.insert(text)
        await self.pilot.press("enter")
        await self.patiently(lambda: self.messages >= before + 2 and not self.app.chats.busy)

    @property
    def messages(self) -> int:
        records = self.app.chats.active.records
        return 0 if records is None else len(records.messages)

    async def patiently(self, true) -> None:  # type: ignore[no-untyped-def]
        for _ in range(6000):
            if true():
                return
            await self.pilot.pause(0.05)
        raise TimeoutError("it never came true")

    async def picture(self, name: str) -> None:
        await self.pilot.pause(0.5)
        self.app.clear_notifications()
        await self.pilot.pause(0.2)
        (ASSETS / f"{name}.svg").write_text(self.app.export_screenshot(), encoding="utf-8")


async def take(home: Path, theme: str) -> None:
    paths, settings = paths_in(home), Settings(theme=theme)
    desk = Desk(
        paths, settings, engine=EngineService(), shelf=Shelf(paths, settings), read=Language.read, watch_device=False
    )  # fmt: skip
    app = NanochatApp(desk)
    async with app.run_test(size=(110, 32), notifications=True) as pilot:
        camera = Camera(app, desk.engine, pilot)  # type: ignore[arg-type]
        await camera.patiently(lambda: desk.is_open and desk.host.state is HostState.READY)
        app.chat_screen.prompt.cursor_blink = False
        for text in ("/set temperature 0", "/set max_tokens 300"):
            app.chat_screen.prompt.insert(text)
            await pilot.press("enter")
        await camera.answer(ASKED[0])
        await camera.answer(ASKED[1])
        await camera.picture(f"chat-{theme}")
        if theme == "dark":
            await camera.patiently(lambda: app.chats.active.title not in ASKED)
            await pilot.press("ctrl+t")
            await camera.answer("Name three rivers.")
            await pilot.press("ctrl+pageup", "f2")
            await camera.picture("chats")
        await desk.close(app)


def main() -> None:
    model = starter.ensure(paths=Paths.find())
    ASSETS.mkdir(exist_ok=True)
    for theme in ("dark", "light"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "data").mkdir()
            (Path(folder) / "data" / "models").symlink_to(model.parent)
            asyncio.run(take(Path(folder), theme))


if __name__ == "__main__":
    main()

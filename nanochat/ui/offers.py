"""What an empty chat offers: a model on the first run, a few words later; and fetching the starter model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError
from nanochat.hub import LocalModel
from nanochat.modelhub.starter import StarterProgress
from nanochat.ui import figures
from nanochat.ui.commands.settings import about_model
from nanochat.ui.keymap import first_key
from nanochat.ui.model_host import HostState
from nanochat.ui.shelf import reference, short_name
from nanochat.ui.widgets.welcome import Offer, Welcome

if TYPE_CHECKING:
    from nanochat.modelhub.suggestion import Candidate
    from nanochat.ui.app import NanochatApp

STARTER_DOWNLOAD = 92_900_000
_FIRST_RUN = (
    "A chat with a language model that runs in this program, on this machine.\n"
    "There is no model here yet: ↑↓ and Enter take one. You can write your first message meanwhile."
)
_CHOOSE = "Which model do you want to talk to? ↑↓ and Enter take one; you can write meanwhile."
_MOST = 6
_GET = "get:"


class _Quit(NanochatError):
    """The application ends: the fetching ends with it."""


class Offers:
    """Fills the welcome view of the chat screen."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._installed: list[LocalModel] = []
        self._looked = False
        self._better: Candidate | None = None
        self._fetching: StarterProgress | None = None
        self._fault = ""
        self._quit = False
        self.began = False
        """Whether it is known by now if there is a model to begin with."""

    async def look(self) -> None:
        """See which models are on this machine."""
        self._installed = await asyncio.to_thread(self._app.shelf.installed)
        if not self._installed and self._app.settings.suggest_models:
            self._better = await asyncio.to_thread(_candidate)
        self._looked = True
        self.refresh()

    def refresh(self) -> None:
        """Show what there is to show now."""
        view, host = self._app.chat_screen.query_one(Welcome), self._app.host
        if host.model is not None and host.state is not HostState.FAILED:
            view.offer(self._about_the_model(), (), self._hints())
            view.progress("", host.progress[0] if host.state is HostState.LOADING else None)
        elif self._looked:
            fault = self._fault or (self._about_the_model() if host.state is HostState.FAILED else "")
            view.offer(fault or (_CHOOSE if self._installed else _FIRST_RUN), self._offers(), self._hints())
            view.progress(*self._progress())

    def take(self, offer: str) -> None:
        """Do what was chosen."""
        if offer == "starter":
            self._app.chat_screen.focus_prompt()
            self._app.attempt(self._begin_with_starter())
        elif offer.startswith(_GET):
            self._app.attempt(self._app.desk.models.acts.fetch(offer.removeprefix(_GET), None))
            self._app.chat_screen.focus_prompt()
        elif offer == "models":
            self._app.run_registered("models")
        else:
            self._app.attempt(self._start(offer))

    def stop(self) -> None:
        """End a fetch under way."""
        self._quit = True

    @property
    def fetching(self) -> str:
        """How far the starter model is; empty while nobody fetches it."""
        return self._progress()[0]

    @property
    def share(self) -> str:
        """The same in a word or two, for a cell of a table."""
        now = self._fetching
        if now is None:
            return ""
        return f"{now.stage} {figures.percent(now.done, now.total)} %" if now.total else now.stage

    @property
    def way_out(self) -> str:
        """What to press while there is no model, with the key as the user has it."""
        key = first_key("models", self._app.registry["models"].keys, self._app.keys) or "/models"
        here = any(model.source == "starter" for model in self._installed)
        return f"{key} chooses one" + ("" if here else ", /model starter fetches the small one")

    def _hints(self) -> str:
        """What there is to know first, with the keys as the user has them."""
        app = self._app

        def key(action: str, usual: str = "") -> str:
            return first_key(action, usual or app.registry[action].keys, app.keys) or "(no key)"

        return (
            f"{key('prompt.send', 'enter')} sends · {key('prompt.newline', 'ctrl+j')} new line · "
            f"{key('reply.stop')} stops · {key('tab.new')} new tab\n"
            f"{key('chats.sidebar')} chats · {key('chat.panel')} settings of this chat · "
            f"{key('numbers')} what the numbers mean\n"
            f"/ commands · @ a text file · {key('help')} help"
        )

    def _offers(self) -> list[Offer]:
        if self._fetching is not None:
            return []
        offers = [
            Offer(reference(model), model.name, about_model(model)) for model in self._installed[:_MOST]
        ]
        if not any(model.source == "starter" for model in self._installed):
            about = f"small, quick on any machine, often wrong. Downloads {STARTER_DOWNLOAD / 1e6:.0f} MB."
            offers.append(Offer("starter", "Get the starter model", f"SmolLM2 135M: {about}"))
        if self._better is not None:
            about = f"far better, and it fits this machine. Downloads {self._better.size / 1e9:.1f} GB."
            offers.append(Offer(_GET + self._better.name, f"Get {short_name(self._better.name)}", about))
        offers.append(
            Offer("models", "All models", "Those on this machine, and those on the hub, with what fits here.")
        )
        return offers

    def _about_the_model(self) -> str:
        host = self._app.host
        name = short_name(host.model.name) if host.model else ""
        if host.state is HostState.LOADING:
            return f"{name}: {host.progress[1] or 'loading'}. You can write and send already."
        if host.state is HostState.FAILED:
            return f"{name} {host.failed}: {host.error}"
        return (
            f"{name} is ready."
            if host.state is HostState.READY
            else f"{name} is unloaded; a message loads it."
        )

    def _progress(self) -> tuple[str, float | None]:
        now = self._fetching
        if now is None:
            return "", None
        share = now.done / now.total if now.total else 0.0
        words = {"waiting": "another nanochat is fetching it", "fetching": "fetching", "checking": "checking"}
        text = f"SmolLM2 135M: {words.get(now.stage, now.stage)}"
        if now.stage == "fetching" and now.total:
            text += f" {now.done / 1e6:.0f} of {now.total / 1e6:.0f} MB"
            text += f" · {figures.count(now.speed)}B/s" if now.speed else ""
        return text, share

    async def _start(self, name: str) -> None:
        self._app.host.start(await asyncio.to_thread(self._app.shelf.find, name))
        self._app.chat_screen.focus_prompt()

    async def _begin_with_starter(self) -> None:
        model = await self.fetch_starter()
        if model is not None:
            self._app.host.start(model)

    async def fetch_starter(self) -> LocalModel | None:
        """Fetch the starter model; None where it is being fetched already, or nanochat ends."""
        if self._fetching is not None:
            self._app.say("The starter model is being fetched already.")
            return None
        self._fault, self._fetching = "", StarterProgress("fetching", 0, 0)
        self._show_fetching()
        loop = asyncio.get_running_loop()

        def report(progress: StarterProgress) -> None:
            if self._quit:
                raise _Quit("nanochat ends")
            loop.call_soon_threadsafe(self._report, progress)

        try:
            return await asyncio.to_thread(self._app.shelf.fetch_starter, _safely(report))
        except _Quit:
            return None
        except NanochatError as error:
            self._fault = f"The starter model could not be fetched: {error}"
            raise
        finally:
            self._fetching = None
            self._app.note = ""
            if not self._quit:
                self._show_fetching()

    def _report(self, progress: StarterProgress) -> None:
        self._fetching = progress
        share = figures.percent(progress.done, progress.total)
        self._app.note = (
            f"↓ starter {share} %" if progress.stage == "fetching" else f"starter: {progress.stage}"
        )
        self._show_fetching()

    def _show_fetching(self) -> None:
        self.refresh()
        self._app.chat_screen.surroundings.refresh_frame()
        self._app.chat_screen.surroundings.refresh_status()
        self._app.desk.models.changed()


def _candidate() -> Candidate | None:
    from nanochat.modelhub.suggestion import candidate  # in a worker, after the first frame

    return candidate()


def _safely(report: Callable[[StarterProgress], None]) -> Callable[[StarterProgress], None]:
    """A report that ends the work when the event loop has ended."""

    def safe(progress: StarterProgress) -> None:
        try:
            report(progress)
        except RuntimeError as error:
            raise _Quit("nanochat has ended") from error

    return safe

"""What the screen of models shows, and what is done with a model that was chosen there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat import catalog, hub
from nanochat.catalog import Listing
from nanochat.download import Download, State
from nanochat.engine.memory import gib
from nanochat.errors import NanochatError, UsageError
from nanochat.fit import Fit, Reserves, Ruler
from nanochat.hub import LocalModel, cache_folder
from nanochat.inventory import Inventory, disk_free, leftovers
from nanochat.models_text import Here, size
from nanochat.sanitize import sanitize_line
from nanochat.settings import Settings
from nanochat.shape import Shape
from nanochat.transfer.leftovers import Leftover
from nanochat.ui.background import detached
from nanochat.ui.commands.settings import use_model
from nanochat.ui.download_flow import DownloadFlow
from nanochat.ui.model_host import HostState
from nanochat.ui.model_rows import Row, download_row, heading, here_row, in_home, listing_row, words
from nanochat.ui.screens.question import Answer, Question, TextQuestion
from nanochat.ui.shelf import reference

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.models_flow")


class _Ends(NanochatError):
    """The application ends: what it is hashing ends with it."""


class ModelsFlow:
    """Lives as long as the application: a search, a check or a download goes on while the screen is closed."""

    def __init__(self, app: NanochatApp) -> None:
        self.downloads = DownloadFlow(app, self._changed, self._look_again)
        self.on_change: Callable[[], None] = lambda: None
        """What the screen wants to be told."""
        self._app = app
        self._inventory: Inventory | None = None
        self._leftovers: tuple[Leftover, ...] = ()
        self._disk = 0
        self._query = self._search_note = ""
        self._found: tuple[tuple[Listing, Fit | None, str], ...] = ()
        self._facts: dict[str, tuple[str, ...]] = {}
        self._checking: dict[str, tuple[int, int]] = {}
        self._estimate: Fit | None = None
        self._closed = False

    # What it shows -----------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every row, in its order."""
        rows: list[Row] = []
        if self.downloads.all:
            rows += [heading("Downloads"), *map(self._download_row, self.downloads.all)]
        found = self._inventory
        rows.append(heading("On this machine", of="here"))
        if found is None:
            return [*rows, words("looking", "looking …")]
        rows += [self._here(one) for one in found.here]
        if not found.here:
            rows.append(words("none", "no model is here yet: Enter fetches one of those below"))
        if self._leftovers:
            total, number = size(sum(one.size for one in self._leftovers)), len(self._leftovers)
            text = f"{total} in {number} leftover{'s' if number != 1 else ''} of unfinished downloads: Enter cleans"
            rows.append(
                Row(
                    "leftovers",
                    "leftovers",
                    text,
                    {},
                    "~",
                    "dim",
                    about=self._left_about(),
                )
            )
        going = {one.repo_id for one in self.downloads.all}
        rows.append(heading("Recommended", of="listing"))
        rows += [
            listing_row("recommended", one, fit, fit.text if fit else "?")
            for one, fit in found.recommended
            if one.repo_id not in going
        ]
        title = f"On the hub: “{sanitize_line(self._query)}”" if self._query else "On the hub"
        rows.append(heading(title, of="listing" if self._found else ""))
        if self._search_note or not self._found:
            rows.append(words("search", self._search_note or "/ searches the hub for models that run here"))
        return [*rows, *(listing_row("hub", one, fit, said) for one, fit, said in self._found)]

    @property
    def query(self) -> str:
        """What was searched for last."""
        return self._query

    def details(self, row: Row) -> list[str]:
        """What is known of a row, with the arithmetic of its fit."""
        known = list(self._facts.get(row.key, ()))
        lines = known or [*row.about, *(["", *row.fit.arithmetic()] if row.fit is not None else [])]
        if self._is_loaded(row):
            lines += ["", *self.truth()]
        return lines

    def head(self) -> list[str]:
        """The two lines above the list: the memory, and what is loaded or under way."""
        found, host = self._inventory, self._app.host
        memory = "looking at the memory …"
        if found is not None:
            of = found.ruler.memory
            memory = f"{of.name}: {(of.free - of.returned) / 2**30:.1f} of {of.total / 2**30:.1f} GiB free"
            memory += f" · disk: {size(self._disk)} free"
        name = host.model.name if host.model is not None else ""
        if host.state is HostState.LOADING:
            share, what = host.progress
            return [memory, f"{name}: {what} · {round(100 * share)} %"]
        if host.state is HostState.READY:
            return [memory, f"{name} is loaded: {self._taken()}"]
        if host.state is HostState.FAILED:
            return [memory, f"{name} could not be loaded: {host.error}"]
        return [memory, f"{name} is unloaded; the next message loads it" if name else "no model is loaded"]

    def truth(self) -> list[str]:
        """Estimate and truth of the loaded model, side by side."""
        stats = self._app.engine.stats()
        if self._estimate is None or not stats.weights_held:
            return [f"context       {stats.max_model_len:,} tokens possible"]
        return self._estimate.beside(stats.weights_held, stats.max_model_len)

    def _taken(self) -> str:
        stats, estimate = self._app.engine.stats(), self._estimate
        if estimate is None or not stats.weights_held:
            return f"context {stats.max_model_len:,}"
        return (
            f"{gib(stats.weights_held)} of weights ({gib(estimate.weights)} estimated), "
            f"context {stats.max_model_len:,} ({estimate.context:,} estimated)"
        )

    # Reading -----------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look at this machine again."""
        paths, settings, held = self._app.paths, self._app.settings, self._held()
        inventory, left, disk = await detached(
            lambda: (
                Inventory.take(paths, settings, held=held),
                tuple(leftovers(paths)),
                disk_free(cache_folder()),
            )
        )
        self._inventory, self._leftovers, self._disk = inventory, left, disk
        self._changed()

    async def search(self, text: str) -> None:
        """Search the hub; offline it says so once, where the results would stand."""
        self._query, self._found = text.strip(), ()
        if not self._query:
            self._search_note = ""
            return self._changed()
        asked = self._query
        self._search_note = "asking the hub …"
        self._changed()
        try:
            found = await detached(lambda: catalog.search(asked))
            note = "" if found else "nothing on the hub has this in its name and runs in this engine"
        except NanochatError as error:
            found, note = (), str(error)
        if asked != self._query:  # the user has searched for something else meanwhile
            return None
        ruler = self._inventory.ruler if self._inventory is not None else None
        self._search_note = note
        self._found = tuple(
            (
                one,
                ruler.fit(one.repo_id, one.shape) if ruler else None,
                ruler.text(one.repo_id, one.shape, one.parameters) if ruler else "?",
            )
            for one in found
        )
        return self._changed()

    async def look_up(self, row: Row) -> list[str]:
        """Everything about a model: of one that is not here the hub is asked. Raises Offline, ModelNotFound."""
        from nanochat.models_show import local_facts, remote_facts

        inventory = self._inventory
        if row.kind not in ("here", "listing") or inventory is None:
            return self.details(row)
        if (one := self._model(row)) is not None:
            facts = await detached(lambda: local_facts(one, self._app.paths, inventory.ruler))
        else:
            facts = await detached(lambda: remote_facts(row.name, "main", inventory.ruler))
        self._facts[row.key] = tuple(sanitize_line(line) for line in facts.lines())
        self._changed()
        return self.details(row)

    def host_changed(self) -> None:
        """The engine has another model, or another state."""
        if self._app.host.state is HostState.READY:
            self._note_reserve()
            self._look_again()
        self._changed()

    async def open(self) -> None:
        """At the start: the downloads of earlier runs go on."""
        await self.downloads.open()

    def measure(self, folder: Path) -> None:
        """Right before a load: how much it should take, to be held against what it takes. Blocks; any thread."""
        model = self._app.host.model
        ruler = Ruler.of(self._app.paths, self._app.settings, held=self._held())
        self._estimate = ruler.fit(model.name if model is not None else "", Shape.in_folder(folder))

    def close(self) -> None:
        """Stop what runs beside. Blocks for a moment: call from a worker."""
        self._closed = True
        self.downloads.close()

    # Doing -------------------------------------------------------------------------------------

    async def take(self, row: Row) -> bool:
        """Enter: use a model, fetch it, go on with a download, clean up. Returns whether the user goes to the chat."""
        if row.kind == "download":
            await self.pause_or_resume(row)
        elif row.kind == "leftovers":
            await self.clean()
        elif row.kind == "listing":
            await self.fetch(row.name, row.fit)
        elif (model := self._model(row)) is not None:
            if model.missing and model.source == "cache":
                await self.fetch(model.name, None)
            else:
                return await self.use(model, row.fit)
        return False

    async def use(self, model: LocalModel, fit: Fit | None) -> bool:
        """Load a model for the shown chat. What does not fit is loaded only when the user insists."""
        if fit is not None and not fit.fits and not self._is_loaded_model(model):
            answers = [
                Answer("leave", "Leave it"),
                Answer("load", "Load it anyway", "The engine tries, with as much context as is left."),
            ]
            text = "\n".join(fit.arithmetic())
            if await self._app.ask(Question(f"{model.name} {fit.text}", text, answers)) != "load":
                return False
        self._app.attempt(use_model(self._app, model))
        return True

    async def use_folder(self) -> bool:
        """Ask for any model's folder, and use that."""
        about = "A folder with config.json, a tokenizer and *.safetensors. It is used in place."
        typed = await self._app.ask(TextQuestion("A model's folder", about=about))
        if not typed or not typed.strip():
            return False
        path = str(Path(typed.strip()).expanduser())
        model = await detached(lambda: hub.resolve(path if "/" in path else f"./{path}"))
        return await self.use(model, None)

    async def fetch(self, repo_id: str, fit: Fit | None) -> str | None:
        """Queue a download; its id, or None when the user thinks better of it."""
        if fit is not None and not fit.fits:
            answers = [Answer("leave", "Leave it"), Answer("get", "Download it anyway")]
            if (
                await self._app.ask(Question(f"{repo_id} {fit.text}", "\n".join(fit.arithmetic()), answers))
                != "get"
            ):
                return None
        return await self.downloads.add(repo_id)

    async def pause_or_resume(self, row: Row) -> None:
        """Pause a download, or go on with it."""
        one = self._download(row)
        if one is None:
            return
        if one.state in (State.PAUSED, State.FAILED):
            await self.downloads.resume(one.id)
        else:
            await self.downloads.pause(one.id)

    async def remove(self, row: Row) -> None:
        """Cancel a download, or remove a model; asks first, with what is shared and what that frees."""
        if (one := self._download(row)) is not None:
            await self._cancel(one)
        elif row.kind == "leftovers":
            await self.clean()
        elif (model := self._model(row)) is not None:
            await self._remove(model)

    async def make_default(self, row: Row) -> None:
        """Use a model in every new chat from now on."""
        model = self._model(row)
        if model is None:
            raise UsageError("only a model on this machine can be the default: fetch it first")
        chosen = hub.STARTER if model.source == "starter" else reference(model)
        await self._set(default_model=chosen)
        self._app.say(f"{model.name} is the default model now.")
        await self.refresh()

    async def verify(self, row: Row) -> None:
        """Hash every file of a model and compare with the hub's list, or with what was recorded."""
        from nanochat.verification import Verification, verify

        model = self._model(row)
        if model is None:
            raise UsageError("only a model on this machine can be verified")
        if row.key in self._checking:
            raise UsageError(f"{model.name} is being verified already")

        def seen(done: int, total: int) -> None:
            if self._closed:
                raise _Ends("nanochat ends")
            self._checking[row.key] = (done, total)

        def check() -> Verification:
            return verify(model, self._app.paths.data, seen=seen)

        self._checking[row.key] = (0, model.size)
        ticking = asyncio.create_task(self._tick())
        try:
            found = await detached(check)
        finally:
            ticking.cancel()
            self._checking.pop(row.key, None)
            self._changed()
        bad = [
            *(f"damaged: {name}" for name in found.damaged),
            *(f"missing: {name}" for name in found.missing),
        ]
        if bad:
            self._app.say(
                f"{model.name} is not whole: {', '.join(bad)}. Enter on it fetches what is wrong.",
                severity="error",
            )
        elif not found.good:
            self._app.say(
                f"{model.name} cannot be checked: compared with {found.against}.", severity="warning"
            )
        else:
            self._app.say(
                f"{model.name} is whole: {len(found.checked)} files, {size(found.size)}, against {found.against}."
            )
        self._facts.pop(row.key, None)

    async def clean(self) -> None:
        """Remove what unfinished downloads left, when the user agrees."""
        from nanochat.transfer.leftovers import clean

        found = self._leftovers
        if not found:
            raise UsageError("there are no leftovers of unfinished downloads")
        total = size(sum(one.size for one in found))
        answers = [Answer("clean", "Remove them"), Answer("keep", "Keep them")]
        question = Question(
            f"Remove {len(found)} leftovers, {total}?", "\n".join(self._left_about()[1:]), answers
        )
        if await self._app.ask(question) == "clean":
            freed = await detached(lambda: clean(cache_folder(), found))
            self._app.say(f"{size(freed)} freed.")
            await self.refresh()

    # Inside ------------------------------------------------------------------------------------

    def _changed(self) -> None:
        if not self._closed:
            self.on_change()

    def _look_again(self) -> None:
        if not self._closed and self._inventory is not None:
            self._app.attempt(self.refresh())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            self._changed()

    async def _set(self, **values: object) -> None:
        self._app.settings = await detached(lambda: Settings.change(self._app.paths.settings_file, **values))

    async def _cancel(self, one: Download) -> None:
        if one.done:
            text = f"{size(one.done)} of {size(one.total or 0)} are here; they are removed."
            answers = [Answer("keep", "Keep it"), Answer("cancel", "Cancel and remove")]
            if await self._app.ask(Question(f"Cancel {one.repo_id}?", text, answers)) != "cancel":
                return
        await self.downloads.cancel(one.id)

    async def _remove(self, model: LocalModel) -> None:
        from nanochat.removal import plan, remove

        planned = await detached(lambda: plan(model, cache_folder()))
        app = self._app
        lines = [f"Frees {size(planned.freed)} in {in_home(planned.path)}."]
        if planned.shared:
            lines.append(f"{size(planned.shared)} stay: other versions or models use them too.")
        if self._is_loaded_model(model):
            lines.append(
                "It is loaded: it is unloaded first"
                + (", and replies on their way end." if app.chats.busy else ".")
            )
        if self._inventory is not None and any(
            one.default and one.model == model for one in self._inventory.here
        ):
            lines.append("It is the default model; the starter model will be.")
        answers = [Answer("keep", "Keep it"), Answer("remove", "Remove it")]
        if await app.ask(Question(f"Remove {model.name}?", "\n".join(lines), answers)) != "remove":
            return
        if self._is_loaded_model(model):
            app.host.forget()
        await detached(lambda: remove(planned, cache_folder(), app.paths.data))
        if app.settings.default_model in (model.name, str(model.path)):
            await self._set(default_model=None)
        app.say(f"{model.name} is removed; {size(planned.freed)} freed.")
        await self.refresh()

    def _here(self, one: Here) -> Row:
        loaded, state = self._is_loaded_model(one.model), ""
        host = self._app.host
        key = f"here:{one.model.path}"
        if key in self._checking:
            done, total = self._checking[key]
            state = f"verifying {int(100 * done / (total or 1))} %"
        elif loaded and host.state is HostState.LOADING:
            state = f"loading {round(100 * host.progress[0])} %"
        elif loaded and host.state is HostState.READY:
            state = "loaded"
        return here_row(one, state=state, loaded=loaded and host.state is HostState.READY)

    def _download_row(self, one: Download) -> Row:
        ruler = self._inventory.ruler if self._inventory is not None else None
        return download_row(one, ruler.fit(one.repo_id, one.shape) if ruler is not None else None)

    def _is_loaded_model(self, model: LocalModel) -> bool:
        host = self._app.host
        there = host.state in (HostState.LOADING, HostState.READY)
        return there and host.model is not None and host.model.path == model.path

    def _is_loaded(self, row: Row) -> bool:
        model = self._model(row)
        return model is not None and self._app.host.state is HostState.READY and self._is_loaded_model(model)

    def _model(self, row: Row) -> LocalModel | None:
        """The model on this machine that a row stands for."""
        here = self._inventory.here if self._inventory is not None else ()
        return next((one.model for one in here if row.key == f"here:{one.model.path}"), None)

    def _download(self, row: Row) -> Download | None:
        return next((one for one in self.downloads.all if row.key == f"download:{one.id}"), None)

    def _held(self) -> int:
        """What the loaded model gives back when it makes room."""
        stats = self._app.engine.stats()
        if stats.state != "ready":
            return 0
        # On a host, pages of the cache that were never written take no memory.
        return stats.weights_held + (
            stats.kv_bytes + stats.reserve_bytes if stats.device.startswith("cuda") else 0
        )

    def _note_reserve(self) -> None:
        """A load on a GPU has measured what a step needs: the next estimate uses it."""
        stats, model, found = self._app.engine.stats(), self._app.host.model, self._estimate
        if stats.reserve_bytes and model is not None and found is not None:
            name, reserve = found.memory.name, stats.reserve_bytes
            self._app.spawn(
                detached(lambda: Reserves.load(self._app.paths.data).note(name, model.name, reserve))
            )

    def _left_about(self) -> tuple[str, ...]:
        found = self._leftovers
        lines = [f"{sanitize_line(one.repo_id)}: {size(one.size)}, {one.what}" for one in found[:8]]
        more = [f"and {len(found) - 8} more"] if len(found) > 8 else []
        return ("Leftovers of unfinished downloads, ours and other tools':", *lines, *more)

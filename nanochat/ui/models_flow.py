"""What the screen of models shows: models here, recommended ones, the hub's, and how each stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError
from nanochat.hub import LocalModel, cache_folder
from nanochat.modelhub import catalog
from nanochat.modelhub.catalog import Listing
from nanochat.modelhub.download import Download
from nanochat.modelhub.fit import Fit
from nanochat.modelhub.inventory import Inventory, disk_free, leftovers
from nanochat.modelhub.text import Here, size
from nanochat.sanitize import sanitize_line
from nanochat.transfer.leftovers import Leftover
from nanochat.ui.background import detached
from nanochat.ui.download_flow import DownloadFlow
from nanochat.ui.model_acts import ModelActs
from nanochat.ui.model_host import HostState
from nanochat.ui.model_memory import ModelMemory
from nanochat.ui.model_rows import Row, download_row, heading, here_row, leftovers_row, listing_row, words

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp


class ModelsFlow:
    """Lives as long as the application: a search, a check or a download goes on while the screen is closed."""

    def __init__(self, app: NanochatApp) -> None:
        self.acts = ModelActs(app, self)
        self.damaged: set[str] = set()
        """Rows whose last check found a file that is not what it should be."""
        self.downloads = DownloadFlow(app, self.changed, self._look_again)
        self.on_change: Callable[[], None] = lambda: None
        """What the screen wants to be told."""
        self._app = app
        self.inventory: Inventory | None = None
        self.leftovers: tuple[Leftover, ...] = ()
        self._disk = 0
        self._query = self._search_note = ""
        self._found: tuple[tuple[Listing, Fit | None, str], ...] = ()
        self._facts: dict[str, tuple[str, ...]] = {}
        self.checking: dict[str, tuple[int, int]] = {}
        self.memory = ModelMemory(app)
        self.closed = False

    # What it shows -----------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every row, in its order."""
        rows: list[Row] = []
        if self.downloads.all:
            rows += [heading("Downloads"), *map(self._download_row, self.downloads.all)]
        found = self.inventory
        rows.append(heading("On this machine", of="here"))
        if found is None:
            return [*rows, words("looking", "looking …")]
        rows += [self._here(one) for one in found.here]
        if not found.here:
            rows.append(words("none", "no model is here yet: Enter fetches one of those below"))
        if self.leftovers:
            rows.append(leftovers_row(self.leftovers))
        going = {one.repo_id for one in self.downloads.all}
        rows.append(heading("Recommended", of="listing"))
        if not any(one.model.source == "starter" for one in found.here):
            fit = found.ruler.fit(catalog.STARTER.repo_id, catalog.STARTER.shape)
            said = self._app.desk.offers.share or (fit.text if fit else "?")
            rows.append(listing_row("recommended", catalog.STARTER, fit, said))
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
        if self._is_loaded_row(row):
            lines += ["", *self.memory.truth()]
        return lines

    def head(self) -> list[str]:
        """The two lines above the list: the memory, and what is loaded or under way."""
        found, host = self.inventory, self._app.host
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
            return [memory, f"{name} is loaded: {self.memory.taken()}"]
        if host.state is HostState.FAILED:
            return [memory, f"{name} {host.failed}: {host.error}"]
        return [memory, f"{name} is unloaded; the next message loads it" if name else "no model is loaded"]

    # Reading -----------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look at this machine again."""
        paths, settings, held = self._app.paths, self._app.settings, self.memory.held()
        inventory, left, disk = await detached(
            lambda: (
                Inventory.take(paths, settings, held=held),
                tuple(leftovers(paths)),
                disk_free(cache_folder()),
            )
        )
        self.inventory, self.leftovers, self._disk = inventory, left, disk
        self.changed()

    async def search(self, text: str) -> None:
        """Search the hub; offline it says so once, where the results would stand."""
        self._query, self._found = text.strip(), ()
        if not self._query:
            self._search_note = ""
            return self.changed()
        asked = self._query
        self._search_note = "asking the hub …"
        self.changed()
        try:
            found = await detached(lambda: catalog.search(asked))
            note = "" if found else "nothing on the hub has this in its name and runs in this engine"
        except NanochatError as error:
            found, note = (), str(error)
        if asked != self._query:  # the user has searched for something else meanwhile
            return None
        ruler = self.inventory.ruler if self.inventory is not None else None
        self._search_note = note
        self._found = tuple(
            (
                one,
                ruler.fit(one.repo_id, one.shape) if ruler else None,
                ruler.text(one.repo_id, one.shape, one.parameters) if ruler else "?",
            )
            for one in found
        )
        return self.changed()

    async def look_up(self, row: Row) -> list[str]:
        """Everything about a model: of one that is not here the hub is asked. Raises Offline, ModelNotFound."""
        from nanochat.commands.models_show import local_facts, remote_facts

        inventory = self.inventory
        if row.kind not in ("here", "listing") or inventory is None or row.name == catalog.STARTER.repo_id:
            return self.details(row)
        if (one := self.model_of(row)) is not None:
            facts = await detached(lambda: local_facts(one, self._app.paths, inventory.ruler))
        else:
            facts = await detached(lambda: remote_facts(row.name, "main", inventory.ruler))
        self._facts[row.key] = tuple(sanitize_line(line) for line in facts.lines())
        self.changed()
        return self.details(row)

    def host_changed(self) -> None:
        """The engine has another model, or another state."""
        if self._app.host.state is HostState.READY:
            self.memory.note_reserve()
            self._look_again()
        self.changed()

    async def open(self) -> None:
        """At the start: the downloads of earlier runs go on."""
        await self.downloads.open()

    def close(self) -> None:
        """Stop what runs beside. Blocks for a moment: call from a worker."""
        self.closed = True
        self.downloads.close()

    # Inside ------------------------------------------------------------------------------------

    def forget_facts(self, key: str) -> None:
        """What was looked up of a model is not true any more."""
        self._facts.pop(key, None)

    def changed(self) -> None:
        """Show what there is now."""
        if not self.closed:
            self.on_change()

    def _look_again(self) -> None:
        if not self.closed and self.inventory is not None:
            self._app.attempt(self.refresh())

    async def tick(self) -> None:
        """Show five times a second what moves, until cancelled."""
        while True:
            await asyncio.sleep(0.2)
            self.changed()

    def _here(self, one: Here) -> Row:
        loaded, state = self.is_loaded(one.model), ""
        host = self._app.host
        key = f"here:{one.model.path}"
        if key in self.checking:
            done, total = self.checking[key]
            state = f"verifying {int(100 * done / (total or 1))} %"
        elif key in self.damaged:
            return replace(here_row(one, state="damaged", loaded=loaded), tone="bad")
        elif loaded and host.state is HostState.LOADING:
            state = f"loading {round(100 * host.progress[0])} %"
        elif loaded and host.state is HostState.READY:
            state = "loaded"
        return here_row(one, state=state, loaded=loaded and host.state is HostState.READY)

    def _download_row(self, one: Download) -> Row:
        ruler = self.inventory.ruler if self.inventory is not None else None
        return download_row(one, ruler.fit(one.repo_id, one.shape) if ruler is not None else None)

    def is_loaded(self, model: LocalModel) -> bool:
        """Whether the engine has this model, or is loading it."""
        host = self._app.host
        there = host.state in (HostState.LOADING, HostState.READY)
        return there and host.model is not None and host.model.path == model.path

    def _is_loaded_row(self, row: Row) -> bool:
        model = self.model_of(row)
        return model is not None and self._app.host.state is HostState.READY and self.is_loaded(model)

    def model_of(self, row: Row) -> LocalModel | None:
        """The model on this machine that a row stands for."""
        here = self.inventory.here if self.inventory is not None else ()
        return next((one.model for one in here if row.key == f"here:{one.model.path}"), None)

    def download_of(self, row: Row) -> Download | None:
        """The download that a row stands for."""
        return next((one for one in self.downloads.all if row.key == f"download:{one.id}"), None)

"""What is done with a model that was chosen on the screen of models: used, fetched, checked, removed."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from nanochat import hub
from nanochat.errors import NanochatError, UsageError
from nanochat.hub import LocalModel, cache_folder
from nanochat.modelhub import catalog
from nanochat.modelhub.download import Download, State
from nanochat.modelhub.fit import Fit
from nanochat.modelhub.text import size
from nanochat.modelhub.verification import Verification, verify
from nanochat.settings import Settings
from nanochat.ui.background import detached
from nanochat.ui.commands.settings import use_model
from nanochat.ui.model_rows import Row, in_home, leftovers_row
from nanochat.ui.screens.question import Answer, Question, ask_until_done
from nanochat.ui.shelf import reference

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.models_flow import ModelsFlow
    from nanochat.ui.session import ChatSession


class _Ends(NanochatError):
    """The application ends: what it is hashing ends with it."""


class ModelActs:
    """Every act asks first where something would be lost, and shows what came of it through the flow."""

    def __init__(self, app: NanochatApp, flow: ModelsFlow) -> None:
        self._app, self._flow = app, flow

    async def take(self, row: Row) -> bool:
        """Enter: use a model, fetch it, go on with a download, clean up. Returns whether the user goes to the chat."""
        if row.kind == "download":
            await self.pause_or_resume(row)
        elif row.kind == "leftovers":
            await self.clean()
        elif row.kind == "listing" and row.name == catalog.STARTER.repo_id:
            await self._fetch_starter()
        elif row.kind == "listing":
            await self.fetch(row.name, row.fit)
        elif (model := self._flow.model_of(row)) is not None:
            broken = model.missing or row.key in self._flow.damaged
            if broken and model.source == "cache":
                self._flow.damaged.discard(row.key)
                await self.fetch(model.name, None)
            else:
                return await self.use(model, row.fit)
        return False

    async def use(self, model: LocalModel, fit: Fit | None, session: ChatSession | None = None) -> bool:
        """Load a model for a chat, the shown one without `session`. What does not fit is loaded only when the user insists."""
        session = session or self._app.shown
        if not self._flow.is_loaded(model):  # else a model that cannot run takes the place of one that does
            await self._app.host.check(model)
        if fit is not None and not fit.fits and not self._flow.is_loaded(model):
            answers = [
                Answer("leave", "Leave it"),
                Answer(
                    "load",
                    "Load it anyway",
                    "Tries with what memory there is; says if that is too little.",
                ),
            ]
            question = Question(f"{model.name} {fit.text}", "", answers, facts=fit.arithmetic())
            if await self._app.ask(question) != "load":
                return False
            self._app.desk.insisted.add(model.path)
        self._app.attempt(use_model(self._app, session, model))
        return True

    async def use_folder(self) -> bool:
        """Ask for any model's folder, and use that."""

        async def use(typed: str) -> bool:
            path = os.path.expanduser(typed)
            model = await detached(lambda: hub.resolve(path if "/" in path else f"./{path}"))
            return await self.use(model, await detached(lambda: self._flow.memory.fit_of(model)))

        about = "A folder with config.json, a tokenizer and *.safetensors. It is used in place."
        return bool(await ask_until_done(self._app.ask, "A model's folder", use, about=about))

    async def fetch(self, repo_id: str, fit: Fit | None) -> str | None:
        """Queue a download; its id, or None when the user thinks better of it."""
        if fit is not None and not fit.fits:
            answers = [Answer("leave", "Leave it"), Answer("get", "Download it anyway")]
            question = Question(f"{repo_id} {fit.text}", "", answers, facts=fit.arithmetic())
            if await self._app.ask(question) != "get":
                return None
        return await self._flow.downloads.add(repo_id)

    async def _fetch_starter(self) -> None:
        """Fetch the starter model, which is on no hub; it is loaded where there is no model yet."""
        model = await self._app.desk.offers.fetch_starter()
        if model is None:
            return
        await self._flow.refresh()
        if self._app.host.model is None:
            self._app.host.start(model)
        else:
            self._app.say(f"{model.name} is here: Enter loads it.")

    async def pause_or_resume(self, row: Row) -> None:
        """Pause a download, or go on with it."""
        one = self._flow.download_of(row)
        if one is None:
            return
        if one.state in (State.PAUSED, State.INTERRUPTED, State.FAILED):
            await self._flow.downloads.resume(one.id)
        else:
            await self._flow.downloads.pause(one.id)

    async def remove(self, row: Row) -> None:
        """Cancel a download, or remove a model; asks first, with what is shared and what that frees."""
        if (one := self._flow.download_of(row)) is not None:
            await self._cancel(one)
        elif row.kind == "leftovers":
            await self.clean()
        elif (model := self._flow.model_of(row)) is not None:
            await self._remove(model)

    async def make_default(self, row: Row) -> None:
        """Use a model in every new chat from now on."""
        model = self._flow.model_of(row)
        if model is None:
            raise UsageError("only a model on this machine can be the default: fetch it first")
        chosen = hub.STARTER if model.source == "starter" else reference(model)
        await self._set(default_model=chosen)
        self._app.say(f"{model.name} is the default model now.")
        await self._flow.refresh()

    async def verify(self, row: Row) -> None:
        """Hash every file of a model and compare with the hub's list, or with what was recorded."""
        model = self._flow.model_of(row)
        if model is None:
            raise UsageError("only a model on this machine can be verified")
        if row.key in self._flow.checking:
            raise UsageError(f"{model.name} is being verified already")

        def seen(done: int, total: int) -> None:
            if self._flow.closed:
                raise _Ends("nanochat ends")
            self._flow.checking[row.key] = (done, total)

        def check() -> Verification:
            return verify(model, self._app.paths.data, seen=seen)

        self._flow.checking[row.key] = (0, model.size)
        ticking = asyncio.create_task(self._flow.tick())
        try:
            found = await detached(check)
        finally:
            ticking.cancel()
            self._flow.checking.pop(row.key, None)
            self._flow.changed()
        self._flow.forget_facts(row.key)
        self._tell(model, row, found)

    async def clean(self) -> None:
        """Remove what unfinished downloads left, when the user agrees."""
        from nanochat.transfer.leftovers import clean

        found = self._flow.leftovers
        if not found:
            raise UsageError("there are no leftovers of unfinished downloads")
        total = size(sum(one.size for one in found))
        answers = [Answer("clean", "Remove them"), Answer("keep", "Keep them")]
        question = Question(
            f"Remove {len(found)} leftovers, {total}?", "\n".join(leftovers_row(found).about[1:]), answers
        )
        if await self._app.ask(question) == "clean":
            freed = await detached(lambda: clean(cache_folder(), found))
            self._app.say(f"{size(freed)} freed.")
            await self._flow.refresh()

    def _tell(self, model: LocalModel, row: Row, found: Verification) -> None:
        """What a check has found."""
        bad = [
            *(f"damaged: {name}" for name in found.damaged),
            *(f"missing: {name}" for name in found.missing),
        ]
        if bad:
            self._flow.damaged.add(row.key)
            again = (
                "Enter fetches what is wrong" if model.source == "cache" else "remove it, and fetch it again"
            )
            self._app.say(f"{model.name} is not whole: {', '.join(bad)}: {again}.", severity="error")
            self._flow.changed()
        elif not found.good:
            self._app.say(
                f"{model.name} cannot be checked: compared with {found.against}.", severity="warning"
            )
        else:
            self._flow.damaged.discard(row.key)
            text = f"{len(found.checked)} files, {size(found.size)}, against {found.against}"
            self._app.say(f"{model.name} is whole: {text}.")

    async def _set(self, **values: object) -> None:
        self._app.settings = await detached(lambda: Settings.change(self._app.paths.settings_file, **values))

    async def _cancel(self, one: Download) -> None:
        if one.done:
            text = f"{size(one.done)} of {size(one.total or 0)} are here; they are removed."
            answers = [Answer("keep", "Keep it"), Answer("cancel", "Cancel and remove")]
            if await self._app.ask(Question(f"Cancel {one.repo_id}?", text, answers)) != "cancel":
                return
        await self._flow.downloads.cancel(one.id)

    async def _remove(self, model: LocalModel) -> None:
        from nanochat.modelhub.removal import plan, remove

        planned = await detached(lambda: plan(model, cache_folder()))
        app = self._app
        lines = [f"Frees {size(planned.freed)} in {in_home(planned.path)}."]
        if planned.shared:
            lines.append(f"{size(planned.shared)} stay: other versions or models use them too.")
        if self._flow.is_loaded(model):
            lines.append(
                "It is loaded: it is unloaded first"
                + (", and replies on their way end." if app.chats.busy else ".")
            )
        if self._flow.inventory is not None and any(
            one.default and one.model == model for one in self._flow.inventory.here
        ):
            lines.append("It is the default model; the starter model will be.")
        answers = [Answer("keep", "Keep it"), Answer("remove", "Remove it")]
        if await app.ask(Question(f"Remove {model.name}?", "\n".join(lines), answers)) != "remove":
            return
        if self._flow.is_loaded(model):
            app.host.forget()
        await detached(lambda: remove(planned, cache_folder(), app.paths.data))
        if app.settings.default_model in (model.name, str(model.path)):
            await self._set(default_model=None)
        app.say(f"{model.name} is removed; {size(planned.freed)} freed.")
        await self._flow.refresh()

"""The models that the application can offer: those on this machine, and the starter model. Blocks: use from workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nanochat import hub
from nanochat.errors import ModelNotFound
from nanochat.hub import LocalModel
from nanochat.modelhub import starter
from nanochat.modelhub.starter import StarterProgress
from nanochat.settings import Paths, Settings


class Shelf:
    """Finds models by name without a network, and fetches the starter model when asked to."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._paths, self._settings = paths, settings

    def installed(self) -> list[LocalModel]:
        """Every model that is here and whole."""
        return [model for model in hub.local_models(self._paths) if not model.missing]

    def find(self, name: str) -> LocalModel:
        """The model of this name. Raises ModelNotFound; never fetches anything."""
        if self.lacks_starter(name):
            raise ModelNotFound("the starter model is not on this machine yet: /model starter fetches it")
        return hub.resolve(name, paths=self._paths, settings=self._settings)

    def first(self, wanted: str) -> LocalModel | None:
        """What to load at the start: what was asked for, else the default, else the starter, else the only one here.

        Raises ModelError when what was asked for is not here.
        """
        if wanted:
            return self.find(wanted)
        if self._settings.default_model:
            return self.find(self._settings.default_model)
        if self.has_starter:
            return self.find(hub.STARTER)
        installed = self.installed()
        return installed[0] if len(installed) == 1 else None

    @property
    def has_starter(self) -> bool:
        """Whether the starter model is here and whole."""
        return starter.is_intact(starter.folder(self._paths))

    def lacks_starter(self, name: str) -> bool:
        """Whether a name means the starter model, and that is not here: `fetch_starter` is to come before `find`."""
        return starter.is_named(name) and not self.has_starter

    def fetch_starter(self, report: Callable[[StarterProgress], None]) -> LocalModel:
        """Fetch and convert the starter model. `report` may raise to end it. Raises DownloadError, Offline."""
        starter.ensure(report, paths=self._paths)
        return self.find(hub.STARTER)


def reference(model: LocalModel) -> str:
    """What a chat keeps to find this model again: its name, or its folder where it has only that."""
    return str(model.path) if model.source == "folder" else model.name


def short_name(name: str) -> str:
    """The last part of a model's name: `Qwen/Qwen3-0.6B` is `Qwen3-0.6B`."""
    return Path(name).name or name

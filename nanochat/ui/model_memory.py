"""What memory models take here: estimated before a load, and the truth of the loaded one beside its estimate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.engine.memory import gib
from nanochat.hub import LocalModel
from nanochat.modelhub.fit import Fit, Reserves, Ruler
from nanochat.modelhub.shape import Shape
from nanochat.ui.background import detached

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.model_memory")


class ModelMemory:
    """Lives as long as the application."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._estimate: Fit | None = None

    def held(self) -> int:
        """What the loaded model gives back when it makes room."""
        stats = self._app.engine.stats()
        if stats.state != "ready":
            return 0
        # On a host, pages of the cache that were never written take no memory.
        return stats.weights_held + (
            stats.kv_bytes + stats.reserve_bytes if stats.device.startswith("cuda") else 0
        )

    def measure(self, folder: Path) -> None:
        """Right before a load: how much it should take, to be held against what it takes. Blocks; any thread."""
        model = self._app.host.model
        try:
            ruler = Ruler.of(self._app.paths, self._app.settings, held=self.held())
            self._estimate = ruler.fit(model.name if model is not None else "", Shape.in_folder(folder))
        except (OSError, ValueError) as error:  # an estimate is never a reason not to load
            log.warning("the memory of %s could not be estimated: %s", folder.name, error)
            self._estimate = None

    def fit_of(self, model: LocalModel) -> Fit | None:
        """Whether a model that is on no list fits now. Blocks: reads the headers of its weights."""
        ruler = Ruler.of(self._app.paths, self._app.settings, held=self.held())
        return ruler.fit(model.name, Shape.in_folder(model.path))

    def note_reserve(self) -> None:
        """A load on a GPU has measured what a step needs: the next estimate uses it."""
        stats, model, found = self._app.engine.stats(), self._app.host.model, self._estimate
        if stats.reserve_bytes and model is not None and found is not None:
            name, reserve = found.memory.name, stats.reserve_bytes
            self._app.spawn(
                detached(lambda: Reserves.load(self._app.paths.data).note(name, model.name, reserve))
            )

    def truth(self) -> list[str]:
        """Estimate and truth of the loaded model, side by side."""
        stats = self._app.engine.stats()
        if self._estimate is None or not stats.weights_held:
            return [f"context       {stats.max_model_len:,} tokens possible"]
        return self._estimate.beside(stats.weights_held, stats.max_model_len)

    def taken(self) -> str:
        """The same in one line."""
        stats, estimate = self._app.engine.stats(), self._estimate
        if estimate is None or not stats.weights_held:
            return f"context {stats.max_model_len:,}"
        guess = f"{estimate.context:,} estimated" if estimate.fits else "estimated not to fit"
        return (
            f"{gib(stats.weights_held)} of weights ({gib(estimate.weights)} estimated), "
            f"context {stats.max_model_len:,} ({guess})"
        )

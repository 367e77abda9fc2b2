"""What the benchmark's screen lets choose: a preset, a model, how many repeats, and whether Transformers runs beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, OptionList, Static
from textual.widgets.option_list import Option

from nanochat.bench import START
from nanochat.benchmarks.known_shapes import SHAPES
from nanochat.benchmarks.plan import SCREEN
from nanochat.benchmarks.presets import ABOUT
from nanochat.errors import UsageError
from nanochat.hub import LocalModel
from nanochat.modelhub import starter
from nanochat.sanitize import sanitize_line
from nanochat.ui import figures
from nanochat.ui.widgets.choices import Choices

_MOST_REPEATS = 100
_DRAWN = tuple(name for name in SHAPES if name != "tiny")
_ALONE = (START, SCREEN)  # presets that compare nothing with other engines


class BenchChoices(Vertical):
    """Two lists, what the choice means, and a button that starts it."""

    def __init__(self) -> None:
        super().__init__(id="bench-measure")
        self.repeats = 5
        self._against = False
        self._models: list[LocalModel | str] = []

    def compose(self) -> ComposeResult:
        """Presets on the left, models on the right."""
        with Horizontal(id="bench-choices"):
            with Vertical(id="bench-left"):
                yield Static("What", classes="bench-title")
                yield Choices(*(Option(name, id=name) for name in ABOUT), id="bench-presets")
            with Vertical(id="bench-right"):
                yield Static("Model", classes="bench-title")
                yield Choices(id="bench-models")
        yield Static(id="bench-about")
        yield Button("Start", id="bench-start", compact=True)

    def fill(self, installed: Sequence[LocalModel], used: Path | None) -> None:
        """List these models, the one that the chats use highlighted, and the known shapes behind them."""
        self._models = [*installed, *_DRAWN]
        models = self.query_one("#bench-models", OptionList)
        models.clear_options()
        models.add_options(Option(_model_line(model)) for model in self._models)
        paths = [model.path if isinstance(model, LocalModel) else None for model in self._models]
        models.highlighted = paths.index(used) if used is not None and used in paths else 0

    @property
    def preset(self) -> str:
        """The chosen preset or workload."""
        place = self.query_one("#bench-presets", OptionList).highlighted
        return [*ABOUT][place or 0]

    @property
    def model(self) -> LocalModel | str:
        """The chosen model, or the name of a known shape. Raises UsageError: they are not known yet."""
        place = self.query_one("#bench-models", OptionList).highlighted
        if place is None or not self._models:
            raise UsageError("the models are still being looked up: a moment")
        return self._models[place]

    @property
    def against(self) -> tuple[str, ...]:
        """The other engines that run beside."""
        return ("transformers",) if self._against and self.preset not in _ALONE else ()

    def change_repeats(self, by: int) -> None:
        """More repeats or fewer."""
        self.repeats = min(max(self.repeats + by, 1), _MOST_REPEATS)
        self.describe()

    def turn_against(self) -> None:
        """Measure Transformers beside, or not."""
        self._against = not self._against
        self.describe()

    def describe(self) -> None:
        """Say what the present choice means."""
        repeats = f"{self.repeats} repeat{'' if self.repeats == 1 else 's'} after a warm-up"
        if self.against:
            repeats += " · against Transformers"
        elif self._against:
            repeats += " · nothing to compare with Transformers here"
        about = Content.assemble(
            (ABOUT[self.preset], ""), "\n", (repeats, "bold"), ("  Chats wait meanwhile.", "$foreground 60%"),
            ("\nOwn sizes and other engines: nanochat bench --help", "$foreground 60%"),
        )  # fmt: skip
        self.query_one("#bench-about", Static).update(about)


def _model_line(model: LocalModel | str) -> Content:
    if isinstance(model, str):
        return Content.assemble(model, ("  random weights", "$foreground 60%"))
    note = "  starter" if model.name == starter.NAME else ""
    return Content.assemble(
        sanitize_line(model.name), (f"  {figures.size(model.size)}{note}", "$foreground 60%")
    )

"""The list that opens above the prompt: slash commands and file names that begin as what is typed."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from nanochat.sanitize import sanitize
from nanochat.ui.actions import Registry


@dataclass(frozen=True, slots=True)
class Completion:
    """One suggestion: what it shows, what it says about it, and what replaces the last `replaces` characters typed."""

    shown: str
    about: str
    text: str
    replaces: int
    final: bool = False  # choosing it with Enter also sends


def slash_completions(registry: Registry, start: str) -> list[Completion]:
    """The slash commands that `start`, what stands behind the slash, may become."""
    return [
        Completion(
            f"/{action.slash} {action.argument}".rstrip(), action.help,
            f"/{action.slash} " if action.argument else f"/{action.slash}", len(start) + 1,
            final=not action.argument,
        )
        for action in registry.complete_slash(start)
    ]  # fmt: skip


class Completions(OptionList, can_focus=False):
    """Suggestions for what is being typed. Hidden while there are none; the prompt keeps the focus."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.display = False
        self._items: list[Completion] = []

    @property
    def is_open(self) -> bool:
        """Whether suggestions are shown."""
        return bool(self.display)

    @property
    def chosen(self) -> Completion | None:
        """The highlighted suggestion."""
        return self._items[self.highlighted] if self.display and self.highlighted is not None else None

    def offer(self, items: list[Completion]) -> None:
        """Show these suggestions, the first one chosen; none closes the list."""
        if items == self._items:
            self.display = bool(items)
            return
        self._items = items
        self.clear_options()
        width = max((len(item.shown) for item in items), default=0)
        self.add_options(
            Option(
                Content.assemble(
                    (sanitize(item.shown).ljust(width + 2), "bold"), (sanitize(item.about), "dim")
                )
            )
            for item in items
        )
        self.display = bool(items)
        self.highlighted = 0 if items else None

    def close(self) -> None:
        """Hide the list."""
        self.offer([])

    def step(self, by: int) -> None:
        """Choose the suggestion above or below, around the ends."""
        if self._items and self.highlighted is not None:
            self.highlighted = (self.highlighted + by) % len(self._items)

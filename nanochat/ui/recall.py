"""One prompt's place among the texts that were sent before, and what its user wrote at the places that were left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nanochat.sanitize import sanitize
from nanochat.ui.draft import Draft, wants_folding


class Recall:
    """Every tab has its own. As in a shell, what is changed is kept at its place until a message is sent.

    At place `len(lines)`, below the newest, is the unsent text. The sent texts are those of the first step up: what
    other tabs send meanwhile moves no place.
    """

    def __init__(self) -> None:
        self._lines: tuple[str, ...] = ()
        self._place = 0
        self._written: dict[int, Draft] = {}  # at places that were left

    def older(self, sent: Sequence[str], draft: Draft) -> Draft | None:
        """What stands before `draft`, the text in the prompt; None at the oldest."""
        if self._place == len(self._lines) and not self._written:
            self._lines, self._place = tuple(sent), len(sent)
        return self._go(self._place - 1, draft) if self._place > 0 else None

    def newer(self, draft: Draft) -> Draft | None:
        """What stands after `draft`, at last the unsent text; None when that is already there."""
        return self._go(self._place + 1, draft) if self._place < len(self._lines) else None

    def leave(self) -> list[str]:
        """Begin anew: what the prompt held is sent. Gives what else was written, which is to be kept elsewhere."""
        left = self._elsewhere()
        self._lines, self._place, self._written = (), 0, {}
        return left

    def texts(self, draft: Draft) -> list[str]:
        """What the user wrote: at the places that were left, and in the prompt.

        A sent text that was only looked up is left out when there is something else.
        """
        others = self._elsewhere()
        looked_up = self._place < len(self._lines) and draft.full == self._original(self._place).full
        return others if others and looked_up else [*others, draft.full]

    def _elsewhere(self) -> list[str]:
        return [
            written.full
            for place, written in sorted(self._written.items(), reverse=True)
            if place != self._place and not written.empty
        ]

    def _go(self, place: int, draft: Draft) -> Draft:
        if draft.full == self._original(self._place).full:
            self._written.pop(self._place, None)
        else:
            self._written[self._place] = replace(draft, cursor=None)
        self._place = place
        return self._written.pop(place, None) or self._original(place)

    def _original(self, place: int) -> Draft:
        if place == len(self._lines):
            return Draft()
        text = self._lines[place]
        return Draft.of(text if wants_folding(text) else sanitize(text))

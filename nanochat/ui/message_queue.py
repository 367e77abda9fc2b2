"""Messages of one chat that were entered while a reply comes: they wait until it has ended, first in, first out."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.ui.draft import Draft


class MessageQueue:
    """Belongs to the screen's thread. What is taken from it is to be sent, or to be in the prompt, in the same breath."""

    def __init__(self) -> None:
        self._drafts: list[Draft] = []

    def __bool__(self) -> bool:
        return bool(self._drafts)

    @property
    def drafts(self) -> Sequence[Draft]:
        """What waits, the next one first."""
        return tuple(self._drafts)

    @property
    def texts(self) -> list[str]:
        """They are unsent, should nanochat end now."""
        return [draft.full for draft in self._drafts]

    def add(self, draft: Draft) -> None:
        """Wait behind those that wait."""
        self._drafts.append(draft)

    def take_first(self) -> Draft:
        """The next one, which waits no more. There is one."""
        return self._drafts.pop(0)

    def take_last(self) -> Draft:
        """The one that was entered last, which waits no more. There is one."""
        return self._drafts.pop()

    def take_all(self) -> list[Draft]:
        """Everything; nothing waits any more."""
        drafts, self._drafts = self._drafts, []
        return drafts

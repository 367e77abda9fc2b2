"""Unsent text: what stands in the prompt box, with the long pastes that it shows folded."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nanochat.sanitize import sanitize

FOLD_LINES = 12
FOLD_CHARACTERS = 2_000

_LABEL = re.compile(r"\[(?:pasted|file) [^\[\]\n]*\]")


def wants_folding(text: str) -> bool:
    """Whether a paste is too long to stand in the prompt box in full."""
    return len(text) > FOLD_CHARACTERS or text.count("\n") + 1 > FOLD_LINES


@dataclass(slots=True)
class Draft:
    """The text of a prompt box. A label such as `[pasted 412 lines · 10,143 tokens]` stands for a whole paste."""

    text: str = ""
    folds: dict[str, str] = field(default_factory=dict[str, str])
    cursor: tuple[int, int] | None = None  # row, column; None is the end

    @classmethod
    def of(cls, full: str) -> Draft:
        """A draft of saved text, folded again when it is long or cannot be shown as it is."""
        if not wants_folding(full) and sanitize(full) == full:
            return cls(full)
        draft = cls()
        draft.text = draft.fold(full)
        return draft

    @classmethod
    def joined(cls, *drafts: Draft) -> Draft:
        """One draft of several, in their order; the cursor is at the end."""
        written = [draft for draft in drafts if not draft.empty]
        if len(written) <= 1:
            return written[0] if written else cls()
        folds = {label: full for draft in written for label, full in draft.folds.items()}
        if any(folds[label] != full for draft in written for label, full in draft.folds.items()):
            return cls.of("\n\n".join(draft.full for draft in written))  # two labels are the same
        return cls("\n\n".join(draft.text for draft in written), folds)

    def fold(self, full: str, *, tokens: int | None = None, file: str = "") -> str:
        """Keep `full` and return the label that stands for it, unlike every other of this draft."""
        lines = full.count("\n") + (not full.endswith("\n"))
        many = f"{lines:,} line{'s' if lines != 1 else ''}"
        what = f"file {file.translate(_NO_BRACKETS)} · {many}" if file else f"pasted {many}"
        size = f"{tokens:,} tokens" if tokens is not None else f"{len(full):,} characters"
        label, number = f"[{what} · {size}]", 2
        while label in self.folds:
            label, number = f"[{what} · {size} #{number}]", number + 1
        self.folds[label] = full
        return label

    def labels(self, line: str) -> list[tuple[int, int]]:
        """Where the labels of this draft stand in one line, as [start, end) columns."""
        return [match.span() for match in _LABEL.finditer(line) if match.group() in self.folds]

    @property
    def full(self) -> str:
        """The whole text, with every paste in its place."""
        return expand(self.text, self.folds)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.text.strip()


_NO_BRACKETS = str.maketrans({"[": "(", "]": ")", "\n": " "})


def expand(text: str, folds: dict[str, str]) -> str:
    """`text` with what its labels stand for; a paste between other lines keeps lines of its own."""
    if not folds:
        return text
    return _LABEL.sub(lambda match: folds.get(match.group(), match.group()), text)

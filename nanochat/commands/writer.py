"""A reply on a plain terminal or in a pipe, as it comes: the answer on standard output, the reasoning beside it."""

from __future__ import annotations

import sys
from typing import TextIO

from nanochat.sanitize import sanitize
from nanochat.templating.reasoning import ReasoningSplitter, Split


class Writer:
    """Writes one reply. The answer is safe for a terminal when stdout is one, and exact otherwise.

    What the model thinks before it answers goes to standard error, and only to a terminal there.
    """

    def __init__(self, splitter: ReasoningSplitter, *, silent: bool = False) -> None:
        """`silent`: only gather `answer` and `reasoning`."""
        self._splitter, self._silent = splitter, silent
        self._answer: list[str] = []
        self._reasoning: list[str] = []

    @property
    def answer(self) -> str:
        """The answer so far."""
        return "".join(self._answer)

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    def write(self, text: str) -> None:
        """Take in the next piece of the reply's text and write what has become final."""
        self._put(self._splitter.push(text))

    def end(self) -> None:
        """Write what was held back, and end the last line unless the reply did."""
        self._put(self._splitter.finish())
        if self._silent:
            return
        if self._reasoning and not self._answer:
            _write(sys.stderr, "\n")
        elif not self._answer or not self._answer[-1].endswith("\n"):
            _write(sys.stdout, "\n")

    def _put(self, split: Split) -> None:
        if split.reasoning:
            self._begin(self._reasoning, sys.stderr, "(thinking) ")
            self._reasoning.append(split.reasoning)
            if not self._silent and sys.stderr.isatty():
                _write(sys.stderr, sanitize(split.reasoning))
        if split.answer:
            if self._reasoning:
                self._begin(self._answer, sys.stderr, "\n\n")
            self._answer.append(split.answer)
            if not self._silent:
                _write(sys.stdout, sanitize(split.answer) if sys.stdout.isatty() else split.answer)

    def _begin(self, part: list[str], stream: TextIO, mark: str) -> None:
        if not part and not self._silent and stream.isatty():
            _write(stream, mark)


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()

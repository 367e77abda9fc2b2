"""Reasoning: where a model thinks aloud before it answers, and how a streaming reader tells the two apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

# How models mark their reasoning, in the order in which they are looked for.
_KNOWN = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    (
        "<|channel|>analysis<|message|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
    ("<|channel>thought\n", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
_SWITCHES = ("enable_thinking", "thinking")
_EFFORTS = ("reasoning_effort", "thinking_effort")


@dataclass(frozen=True, slots=True)
class Markers:
    """The texts around a model's reasoning; `bare` may stand before an answer that has none."""

    open: str
    close: str
    bare: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """Text that has become final: of the reasoning and of the answer."""

    reasoning: str = ""
    answer: str = ""


def find_markers(sources: Sequence[str], added_tokens: Collection[str]) -> Markers | None:
    """The markers that a template's texts name, else those that the vocabulary holds, else `None`.

    The closing one is what counts: a template that opens the block in the generation prompt may name only that.
    """
    for known in _KNOWN:
        if any(known[1] in source for source in sources):
            return Markers(*known)
    return next((Markers(*known) for known in _KNOWN if set(known) <= set(added_tokens)), None)


def find_switch(variables: Collection[str]) -> str | None:
    """The variable of a template that turns thinking on and off."""
    return next((name for name in _SWITCHES if name in variables), None)


def find_effort(variables: Collection[str]) -> str | None:
    """The variable of a template that says how hard to think ("low", "medium", "high")."""
    return next((name for name in _EFFORTS if name in variables), None)


class ReasoningSplitter:
    """Splits a reply into reasoning and answer as its released text arrives.

    Only a block at the reply's start is reasoning: an answer may speak about `<think>`. Blank space around the
    block belongs to neither part. Half a marker is held back, and so is blank space that may turn out to stand
    before one.

    Args:
        markers: the model's; `None` makes everything the answer.
        opened: the prompt ends inside the block (the template opened it), so the reply starts with reasoning.
        dropped: texts to leave out: where markers are special tokens, the reply must be decoded with
            `skip_special_tokens=False`, and this takes out the other special tokens.

    Attributes:
        reasoned: the reply has a block of reasoning, if only an empty one.
    """

    def __init__(
        self, markers: Markers | None, *, opened: bool = False, dropped: Collection[str] = ()
    ) -> None:
        self._markers = markers
        self._dropped = tuple(
            text for text in dropped if markers is None or text not in (markers.open, markers.close)
        )
        self._held = ""
        self._state = "answer" if markers is None else "reasoning" if opened else "start"
        self.reasoned = self._state == "reasoning"
        self._begun = markers is None  # the present part has text other than blank space

    @property
    def thinking(self) -> bool:
        """Whether the reader is inside the reasoning."""
        return self._state == "reasoning"

    def push(self, text: str) -> Split:
        """Take released text, return what can be told apart."""
        self._held += text
        return self._advance(final=False)

    def finish(self) -> Split:
        """The reply is over: return what was held."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> Split:
        reasoning = ""
        if self._state == "start":
            self._start(final=final)
        if self._state == "reasoning":
            reasoning = self._reason(final=final)
        answer = self._answer(final=final) if self._state == "answer" else ""
        return Split(reasoning, answer)

    def _start(self, *, final: bool) -> None:
        """Decide whether the reply starts with a block; until that is certain, hold."""
        assert self._markers is not None
        opening, bare, text = self._markers.open, self._markers.bare, self._held.lstrip()
        if text.startswith(opening):
            self._held, self._state, self.reasoned = text[len(opening) :], "reasoning", True
        elif bare and text.startswith(bare):
            self._held, self._state = text[len(bare) :], "answer"
        elif final or (text and not opening.startswith(text) and not bare.startswith(text)):
            # What was held is the answer, blank space in front of it included.
            self._state, self._begun = "answer", True

    def _reason(self, *, final: bool) -> str:
        assert self._markers is not None
        closing = self._markers.close
        end = self._held.find(closing)
        if end >= 0:
            text, self._held = self._held[:end].rstrip(), self._held[end + len(closing) :]
            text = text if self._begun else text.lstrip()
            self._state, self._begun = "answer", False
            return self._without_dropped(text)
        keep = 0 if final else overlap(self._held, (closing, *self._dropped))
        text = self._held[: len(self._held) - keep]
        text = text[: len(text.rstrip())]
        self._held = "" if final else self._held[len(text) :]
        return self._begin(self._without_dropped(text))

    def _answer(self, *, final: bool) -> str:
        keep = 0 if final else overlap(self._held, self._dropped)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._begin(self._without_dropped(text))

    def _begin(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text

    def _without_dropped(self, text: str) -> str:
        for dropped in self._dropped:
            text = text.replace(dropped, "")
        return text


def overlap(text: str, markers: Collection[str]) -> int:
    """The length of the longest end of `text` that a marker goes on from, without being complete."""
    longest = min(len(text), max((len(marker) for marker in markers), default=1) - 1)
    for size in range(longest, 0, -1):
        if any(size < len(marker) and marker.startswith(text[-size:]) for marker in markers):
            return size
    return 0

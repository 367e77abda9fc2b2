"""A prompt's ids put together from rendered text and from the ids that the model wrote itself.

A reply that the model generated is an atom: the template sees one private-use character in its place, and its
ids are taken over as they are. What stands around the atoms is text and is tokenized.

    rendered  <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎ ⟨0⟩ <|im_end|>⏎<|im_start|>user⏎...
    ids       \\___________________ header _____________________/ reply \\____ text _______________...

The reply's own ids end with the `<|im_end|>` that the model wrote, so the template's is left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nanochat.engine.text_encoder import Place
from nanochat.engine.tokenizer import Tokenizer
from nanochat.templating.reasoning import Markers
from nanochat.templating.structure import Marked

REASONING = "\ue000"  # stands for a reply's reasoning where texts are compared
Encode = Callable[[Marked, Place], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Reply:
    """The ids of a generated reply, taken apart: `ids` = what leads in, reasoning, what leads over, answer, end.

    `lead` is the text before the answer with `REASONING` in place of the reasoning; "" when there is none.
    """

    ids: tuple[int, ...]
    lead: str
    reasoning: tuple[int, ...]
    answer: tuple[int, ...]
    end: int | None


@dataclass(frozen=True, slots=True)
class Atom:
    """The place of a reply in a rendered chat: of its reasoning, or of its answer."""

    message: int
    reasoning: bool


Piece = Marked | Atom


def take_apart(tokenizer: Tokenizer, ids: Sequence[int], markers: Markers | None, *, reasons: bool) -> Reply:
    """Take a reply's ids apart; `reasons` says that it has reasoning."""
    closing = "" if markers is None else markers.close
    ends = bool(ids) and ids[-1] in tokenizer.added and tokenizer.added[ids[-1]].content != closing
    body, end = (tuple(ids[:-1]), ids[-1]) if ends else (tuple(ids), None)

    def text(start: int, stop: int) -> str:
        return tokenizer.decode(body[start:stop], skip_special_tokens=False)

    if markers is None or not reasons:
        bare = "" if markers is None else markers.bare
        over = _completed(tokenizer, body, bare) if bare and text(0, 8).lstrip().startswith(bare) else 0
        return Reply(tuple(ids), bare if over else "", (), body[over:], end)
    begun = _completed(tokenizer, body, markers.open)
    over = _completed(tokenizer, body, closing)
    if not over:  # cut off while it was thinking
        return Reply(tuple(ids), text(0, begun) + REASONING, body[begun:], (), end)
    begun = (
        begun if begun < over else 0
    )  # the template had opened the block; what opens here is in the answer
    close = next(at for at in range(over - 1, -1, -1) if closing in text(at, over))
    lead = text(0, begun) + REASONING + closing
    while over < len(body) and body[over] not in tokenizer.added and not text(over, over + 1).strip():
        over += 1
    return Reply(tuple(ids), lead, body[begun:close], body[over:], end)


def _completed(tokenizer: Tokenizer, ids: Sequence[int], marker: str) -> int:
    """How many of `ids` it takes to complete `marker`; 0 when it does not occur."""
    index = tokenizer.added_tokens.get(marker)
    if index is not None:
        return ids.index(index) + 1 if index in ids else 0
    if marker not in tokenizer.decode(ids, skip_special_tokens=False):
        return 0
    sizes = range(len(ids) + 1)
    return bisect_left(
        sizes, True, key=lambda size: marker in tokenizer.decode(ids[:size], skip_special_tokens=False)
    )


def parse(rendered: Marked, marks: Mapping[str, Atom]) -> list[Piece] | None:
    """Text and atoms in order; `None` when a template repeats an atom or mixes up their order.

    The list begins and ends with text, and has text between any two atoms.
    """
    found = (
        [(at, marks[character]) for at, character in enumerate(rendered.text) if character in marks]
        if marks
        else []
    )
    order = [(atom.message, not atom.reasoning) for _, atom in found]
    if order != sorted(set(order)):
        return None
    pieces: list[Piece] = []
    start = 0
    for at, atom in found:
        pieces += (rendered.cut(start, at), atom)
        start = at + 1
    return [*pieces, rendered.cut(start, len(rendered.text))]


class Composer:
    """Writes one prompt's ids."""

    def __init__(self, tokenizer: Tokenizer, encode: Encode) -> None:
        self._tokenizer = tokenizer
        self._encode = encode
        self._end: int | None = None  # how the reply before the next text ended
        self.ids: list[int] = []

    def text(self, marked: Marked) -> None:
        """Append a text; the end of the reply before it is written by that reply."""
        if self._end is not None:
            marked = self._after_end(marked, self._end)
            self._end = None
        if marked.text:
            self.ids += self._encode(marked, self._place())

    def header(self, pieces: Sequence[Piece], reply: Reply, asked: Marked | None) -> bool:
        """Append what stands before a reply's answer, up to where the model went on by itself.

        Args:
            pieces: as the template renders it now, with the reply's reasoning as an atom if it is there.
            reply: the reply.
            asked: the text after the reply before, up to the end of the prompt that this one answered.

        Returns:
            Whether the whole reply follows: its reasoning is still there, or it has none. Blank space makes no
            difference: models put it elsewhere than templates do, and what was read and written is the truth.
        """
        shown = "".join(piece.text if isinstance(piece, Marked) else REASONING for piece in pieces)
        if asked is not None and "".join(shown.split()) == "".join((asked.text + reply.lead).split()):
            self.text(asked)
            return True
        for piece in pieces:
            if isinstance(piece, Marked):
                self.text(piece)
            else:
                self.ids += reply.reasoning
        return False

    def reply(self, reply: Reply, *, whole: bool) -> None:
        """Append a reply, or only its answer, which the template then ends in its own way."""
        if whole:
            self.ids += reply.ids if reply.end is None else reply.ids[:-1]
            self._end = reply.end
        else:
            self.ids += reply.answer

    def _after_end(self, marked: Marked, end: int) -> Marked:
        """The text after a reply without the end that the reply has itself.

        Where the template ends the turn in another way than the model did, the template's way is kept: the
        model has not read its last id yet, so that costs nothing.
        """
        token = self._tokenizer.added[end]
        start = len(marked.text) - len(marked.text.lstrip())
        if not marked.text.startswith(token.content, start):
            return marked
        self.ids.append(end)
        start += len(token.content)
        while token.rstrip and marked.text[start : start + 1].isspace():
            start += 1
        return marked.cut(start, len(marked.text))

    def _place(self) -> Place:
        if not self.ids:
            return Place.START
        return Place.AFTER_TOKEN if self.ids[-1] in self._tokenizer.added else Place.INSIDE


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading ids two lists share."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(at for at in range(shorter) if left[at] != right[at])

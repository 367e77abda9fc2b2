"""Structure and text: what a template writes may become special tokens, what people write may not.

A template mixes both into one string, and nothing in that string says which is which. So the texts are marked
on their way in. `Structure.render` asks the template up to three times:

1. as it is: this is the text that Transformers would render;
2. guarded: in every message, each character that a protected token can start or end with is replaced by a
   private-use character of its own that occurs nowhere else. A protected token in the result was written by
   the template, also where it would otherwise have come about by joining (a template that deletes `/think`
   makes a marker of `<|im_/thinkend|>`; one that writes `<` before a text makes one of `think>`). Turned back,
   the result is nearly always equal to 1; then it is the text, and says where its structure is;
3. where 1 and 2 differ (a template that looks for `<tool_response>` in a message, say), with only the first
   character of complete protected tokens replaced. That text is taken if it has the structure of 2, else 2 is.

No protected token can be made of text within a message, since it is broken at its first character; nor by
joining text to what the template writes, or to other text, since it would start or end with a character that
is not there. A token whose middle alone comes from a message (`<|` + role + `|>`) would pass: roles are from a
fixed list, and names in tools, which some templates write as `<` + name + `>`, get a stand-in where they occur
inside of a protected token (but for words of JSON Schema, which templates look for). Tokens that start or end
with letters or blanks (`Human:`) are protected as a whole only.

`Structure.encode` then checks what the tokenizer makes of the text: the protected ids must be exactly those
written by the template. If so, the ids are Transformers' ids by construction. If not (a message that spells a
marker out, or full-width signs that a normalizer turns into one), every piece between the structure is encoded
on its own by an encoder that does not know protected tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from nanochat.engine.text_encoder import Place, TextEncoder
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import ChatRejected, InvalidTemplate

_HTML_TAG = re.compile(
    "</?(?:a|b|blockquote|br|caption|code|del|div|em|h[1-6]|hr|i|img|li|ol|p|pre|s|span|strong|sub|sup|table|tbody|td|"
    "tfoot|th|thead|tr|u|ul)/?>"
)
Rewrite = Callable[[str], str]
_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd]")


def unused_characters(texts: Iterable[str]) -> Iterator[str]:
    """Private-use characters that occur in none of `texts`."""
    used = {character for text in texts if not text.isascii() for character in _PRIVATE_USE.findall(text)}
    return (
        chr(code) for code in chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)) if chr(code) not in used
    )


@dataclass(frozen=True, slots=True)
class Span:
    """A protected token in a text: text[start:end]."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Marked:
    """A text and where its structure is."""

    text: str
    spans: tuple[Span, ...]

    @property
    def tokens(self) -> list[str]:
        """The texts of the structure."""
        return [self.text[span.start : span.end] for span in self.spans]

    def cut(self, start: int, end: int) -> Marked:
        """The part from `start` to `end`; a token that reaches over an edge is no structure there."""
        inside = (span for span in self.spans if start <= span.start and span.end <= end)
        return Marked(
            self.text[start:end], tuple(Span(span.start - start, span.end - start) for span in inside)
        )


class Structure:
    """The protected tokens of one template and tokenizer.

    Protected are all special tokens, the added tokens that the template is known to write, `markers` (of
    reasoning), and added tokens that look like markers (`<tool_call>`). Other added tokens are read in everybody's
    text as the tokenizer does: runs of blanks, HTML tags, words.
    """

    def __init__(self, tokenizer: Tokenizer, written: Sequence[str], markers: Iterable[str] = ()) -> None:
        """`written` are texts that the template writes."""
        self._tokenizer = tokenizer
        extra = frozenset(markers)
        ids = {
            index
            for index, token in tokenizer.added.items()
            if token.content.strip()
            and index not in tokenizer.unknown_ids
            and (
                token.special
                or token.content in extra
                or _looks_like_a_marker(token.content)
                or (not token.content.isalnum() and any(token.content in text for text in written))
            )
        }
        self.ids = frozenset(ids)
        self.texts = frozenset(tokenizer.added[index].content for index in ids) | extra
        self._tokens = {tokenizer.added[index].content: index for index in ids}

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        """A protected text."""
        return _any_of(self.texts)

    @cached_property
    def _structure(self) -> re.Pattern[str]:
        """A protected token, the longest that starts somewhere, as the tokenizer finds it."""
        return _any_of(self._tokens)

    @cached_property
    def _edges(self) -> str:
        """Characters that a protected text starts or ends with, but for letters, digits and blanks."""
        edges = {text[end] for text in self.texts for end in (0, -1)}
        return "".join(sorted(edge for edge in edges if not edge.isalnum() and not edge.isspace()))

    @cached_property
    def _keeping(self) -> TextEncoder:
        return TextEncoder(self._tokenizer.backend, self._tokenizer.added, frozenset())

    @cached_property
    def _guarding(self) -> TextEncoder:
        benign = {index: token for index, token in self._tokenizer.added.items() if index not in self.ids}
        return TextEncoder(self._tokenizer.backend, benign, self.ids)

    def render(
        self,
        render: Callable[[Rewrite], str],
        texts: Sequence[str],
        unused: Iterator[str],
        names: Sequence[str] = (),
    ) -> Marked:
        """The text of a chat and its structure.

        Args:
            render: renders the chat after applying a function to each of its texts.
            texts: those texts.
            unused: characters that neither they nor the template hold.
            names: those of the texts that the template may put inside of its own signs.

        Raises:
            ChatRejected, InvalidTemplate: whatever `render` raises.
        """
        inside = frozenset(name for name in names if self._is_inside(name))
        if (
            not inside
            and not any(edge in text for edge in self._edges for text in texts)
            and not any(self._whole.search(text) for text in texts)
        ):
            return self._find(render(_same), {})
        first = {text[0] for text in self.texts} | {name.lstrip()[0] for name in inside}
        stand_ins = dict(zip(sorted(first | set(self._edges)), unused, strict=False))
        guarded = self._find(render(lambda text: self._guard(text, stand_ins, inside)), stand_ins)
        try:
            if render(_same) == guarded.text:
                return guarded
            broken = self._find(render(lambda text: self._break(text, stand_ins)), stand_ins)
        except (ChatRejected, InvalidTemplate):
            return guarded  # the template objects to what a text says, not to the chat
        return broken if broken.tokens == guarded.tokens else guarded

    def _break(self, text: str, stand_ins: dict[str, str]) -> str:
        """`text` with a stand-in for the first character of each protected text, overlapping ones too."""
        pieces: list[str] = []
        done, match = 0, self._whole.search(text)
        while match is not None:
            start = match.start()
            pieces += (text[done:start], stand_ins[text[start]])
            done = start + 1
            match = self._whole.search(text, done)
        return "".join([*pieces, text[done:]])

    def _is_inside(self, name: str) -> bool:
        """Whether signs around a name would make a protected text of it."""
        name = name.strip().lower()
        return bool(name) and any(name in text[1:-1].lower() for text in self.texts)

    def _guard(self, text: str, stand_ins: dict[str, str], inside: frozenset[str]) -> str:
        """`text` broken, and with stand-ins for all edges, and for the first character of a name `inside`."""
        if text in inside:
            start = len(text) - len(text.lstrip())
            text = text[:start] + stand_ins[text[start]] + text[start + 1 :]
        text = self._break(text, stand_ins)
        for edge in self._edges:
            text = text.replace(edge, stand_ins[edge])
        return text

    def _find(self, rendered: str, stand_ins: dict[str, str]) -> Marked:
        """The structure of a rendered text, and the text with stand-ins turned back."""
        for stand_in in stand_ins.values():
            rendered = rendered.replace(json.dumps(stand_in)[1:-1], stand_in)  # a template's own JSON
        spans = tuple(
            Span(*match.span()) for match in self._structure.finditer(rendered) if self._stands(match)
        )
        for character, stand_in in stand_ins.items():
            rendered = rendered.replace(stand_in, character)
        return Marked(rendered, spans)

    def _stands(self, match: re.Match[str]) -> bool:
        """Whether the tokenizer takes a match: some tokens count as whole words only."""
        if not self._tokenizer.added[self._tokens[match[0]]].single_word:
            return True
        around = (
            match.string[max(0, match.start() - 1) : match.start()]
            + match.string[match.end() : match.end() + 1]
        )
        return not any(character.isalnum() or character == "_" for character in around)

    def encode(self, marked: Marked, place: Place) -> list[int]:
        """Ids of a text that stands at `place`: protected ids come from its structure only."""
        expected = [self._tokens[text] for text in marked.tokens]
        if place is Place.START:
            ids: list[int] = self._tokenizer.backend.encode(marked.text, add_special_tokens=False).ids
        else:
            ids = self._keeping.encode(marked.text, place)
        if [index for index in ids if index in self.ids] == expected:
            return ids
        return self._encode_pieces(marked, expected, place)

    def _encode_pieces(self, marked: Marked, expected: list[int], place: Place) -> list[int]:
        ids: list[int] = []
        start, swallow = 0, False
        for span, index in zip(marked.spans, expected, strict=True):
            token = self._tokenizer.added[index]
            piece = marked.text[start : span.start]
            piece = piece.lstrip() if swallow else piece
            piece = piece.rstrip() if token.lstrip else piece
            ids += [*self._guarding.encode(piece, place if not start else Place.AFTER_TOKEN), index]
            start, swallow = span.end, token.rstrip
        piece = marked.text[start:].lstrip() if swallow else marked.text[start:]
        return ids + self._guarding.encode(piece, Place.AFTER_TOKEN if start else place)


def _looks_like_a_marker(text: str) -> bool:
    """Signs around something with a letter or digit, but for the HTML tags that some vocabularies hold."""
    signs = all(not edge.isalnum() and not edge.isspace() for edge in (text[0], text[-1]))
    return signs and len(text) > 2 and any(map(str.isalnum, text)) and not _HTML_TAG.fullmatch(text)


def _same(text: str) -> str:
    return text


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of some texts; nothing when there are none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")

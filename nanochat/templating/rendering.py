"""A chat as its template writes it, with generated replies left out: text, structure and places of replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from nanochat.engine.text_encoder import Place
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import ChatRejected, InvalidTemplate
from nanochat.templating.chat import Message, Options
from nanochat.templating.composition import Atom, Piece, parse
from nanochat.templating.reasoning import Markers, find_effort, find_switch
from nanochat.templating.structure import Marked, Rewrite, Structure, unused_characters
from nanochat.templating.template import Template


class Shape(NamedTuple):
    """What the template sees of a message. An opaque one is a private-use character to it."""

    role: str
    content: str
    reasoning: str | None
    opaque: bool


class Renderer:
    """Renders chats with one template for one tokenizer.

    Attributes:
        switch: the template's variable for thinking on and off, or `None`.
        effort: its variable for how hard to think, or `None`.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, markers: Markers | None) -> None:
        """`markers` are the texts around the model's reasoning."""
        self._template, self._tokenizer, self._markers = template, tokenizer, markers
        self.switch, self.effort = find_switch(template.variables), find_effort(template.variables)
        self._rendered = lru_cache(8)(self._render_shapes)
        self._encoded = lru_cache(256)(self._encode)

    def encode(self, marked: Marked, place: Place) -> tuple[int, ...]:
        """The ids of a piece of a rendered chat; remembered, since most of a chat stays as it is."""
        return self._encoded(marked, place)

    def _encode(self, marked: Marked, place: Place) -> tuple[int, ...]:
        return tuple(self._structure.encode(marked, place))

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message is rendered, rather than refused or left out."""
        user = {"role": "user", "content": "hello"}
        try:
            return "\ue000" in self._plain([{"role": "system", "content": "\ue000"}, user], Options())
        except ChatRejected:
            return False

    def pieces(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        add_generation_prompt: bool,
        unknown: int | None = None,
    ) -> tuple[Piece, ...]:
        """The chat as the template writes it, generated replies (and message `unknown`) as atoms."""
        opaque = {at for at, message in enumerate(messages) if message.token_ids or at == unknown}
        while True:
            shapes = shapes_of(messages, opaque)
            pieces = self._rendered(shapes, options, add_generation_prompt)
            found = {
                piece.message for piece in pieces or () if isinstance(piece, Atom) and not piece.reasoning
            }
            if pieces is not None and found == opaque:
                return pieces
            # The template leaves something out, or does more with a text than writing it: then it sees the text.
            opaque &= found

    def _render_shapes(
        self, shapes: tuple[Shape, ...], options: Options, add_generation_prompt: bool
    ) -> tuple[Piece, ...] | None:
        texts = [
            text for shape in shapes if not shape.opaque for text in (shape.content, shape.reasoning or "")
        ]
        unused = unused_characters([*texts, self._template.source])
        marks: dict[str, Atom] = {}
        stands: list[dict[str, str]] = []
        for at, shape in enumerate(shapes):
            stands.append({})
            for name in ("reasoning", "content") if shape.opaque else ():
                if getattr(shape, name) is not None:
                    stands[at][name] = next(unused)
                    marks[stands[at][name]] = Atom(at, name == "reasoning")

        def render(rewrite: Rewrite) -> str:
            chat: list[dict[str, str]] = []
            for shape, stand in zip(shapes, stands, strict=True):
                content = stand.get("content", rewrite(shape.content))
                reasoning = (
                    None if shape.reasoning is None else stand.get("reasoning", rewrite(shape.reasoning))
                )
                chat.append(_as_given(shape.role, content, reasoning))
            return self._plain(chat, options, add_generation_prompt)

        pieces = parse(self._structure.render(render, texts, unused), marks)
        return None if pieces is None else tuple(pieces)

    def _plain(
        self, chat: Sequence[Mapping[str, Any]], options: Options, add_generation_prompt: bool = True
    ) -> str:
        variables: dict[str, Any] = dict(self._tokenizer.named_tokens)
        if self.switch is not None and options.thinking is not None:
            variables[self.switch] = options.thinking
        if self.effort is not None and options.effort is not None:
            variables[self.effort] = options.effort
        return self._template.render(
            chat, add_generation_prompt=add_generation_prompt, now=options.now, variables=variables
        )

    @cached_property
    def _structure(self) -> Structure:
        """Protected are also the tokens that the template puts together when it renders."""
        written = list(self._template.literals)
        turns = [("system", "a", None), ("user", "b", None), ("assistant", "c", "d"), ("user", "e", None)]
        for start in (0, 1):
            for thinking in (None, True, False):
                try:
                    chat = [_as_given(*turn) for turn in turns[start:]]
                    written.append(self._plain(chat, Options(thinking)))
                except (ChatRejected, InvalidTemplate):
                    continue  # the template's own refusal comes with the user's chat
        markers = () if self._markers is None else (self._markers.open.strip(), self._markers.close)
        return Structure(self._tokenizer, written, markers)


def shapes_of(messages: Sequence[Message], opaque: set[int]) -> tuple[Shape, ...]:
    """The messages as the template is to see them; those at the indices `opaque` without their texts."""
    return tuple(
        Shape(message.role, "", None if message.reasoning is None else "", True)
        if at in opaque
        else Shape(message.role, message.content, message.reasoning, False)
        for at, message in enumerate(messages)
    )


def _as_given(role: str, content: str, reasoning: str | None) -> dict[str, str]:
    """A message as Transformers hands it to a template: reasoning goes by two names."""
    if reasoning is None:
        return {"role": role, "content": content}
    return {"thinking": reasoning, "role": role, "content": content, "reasoning_content": reasoning}

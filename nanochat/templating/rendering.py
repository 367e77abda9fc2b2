"""A chat as its template writes it, with generated replies left out: text, structure and places of replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from nanochat.engine.text_encoder import Place
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import ChatRejected, InvalidTemplate
from nanochat.templating.chat import Message, Options
from nanochat.templating.composition import Atom, Piece, parse
from nanochat.templating.plain import Plain
from nanochat.templating.reasoning import Markers, find_effort, find_switch
from nanochat.templating.structure import Marked, Rewrite, Structure, unused_characters
from nanochat.templating.template import Template

_MARK = "\ue000"  # what is looked for in a look at a template
_ESCAPED = json.dumps(_MARK)[1:-1]


class Shape(NamedTuple):
    """What the template sees of a message. An opaque one is a private-use character to it."""

    role: str
    content: str
    reasoning: str | None
    opaque: bool
    fields: Plain | None = None


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
            return _MARK in self._plain([{"role": "system", "content": _MARK}, user], Options())
        except ChatRejected:
            return False

    @cached_property
    def takes_text(self) -> bool:
        """Whether a message's content may be a text."""
        return _MARK in self._probe([{"role": "user", "content": _MARK}])

    @cached_property
    def takes_parts(self) -> frozenset[str]:
        """The roles whose content may be a list of parts; elsewhere templates fail on it, or write it as Python does."""
        chats: list[list[dict[str, Any]]] = []
        for before in ((), ("user",), ("user", "assistant")):
            chats += [[{"role": role, "content": "a"} for role in before]]
        parts = [{"type": "text", "text": _MARK}]
        found: set[str] = set()
        for role, before in (
            ("system", chats[0]),
            ("user", chats[0]),
            ("assistant", chats[1]),
            ("tool", chats[2]),
        ):
            after = [{"role": "user", "content": "a"}] if role == "system" else []
            written = self._probe([*before, {"role": role, "content": parts}, *after])
            if _MARK in written and not any(f"{quote}text{quote}" in written for quote in "'\""):
                found.add(role)
        return frozenset(found)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether tools are written. A template that does not take the plain chats of this look may still do that."""
        schema = {"type": "object", "properties": {}}
        tool = {"type": "function", "function": {"name": _MARK, "description": "a", "parameters": schema}}
        system, user = ({"role": role, "content": "a"} for role in ("system", "user"))
        options = Options(variables=Plain.of("tools", {"tools": [tool]}))
        looks = [self._probe(chat, options) for chat in ([user], [system, user])]
        return "tools" in self._template.source and (not any(looks) or any(_MARK in look for look in looks))

    def _probe(self, chat: Sequence[Mapping[str, Any]], options: Options | None = None) -> str:
        """How the template writes a chat, `_MARK` in it included; nothing if it does not take it."""
        try:
            written = self._plain(chat, options or Options())
        except (ChatRejected, InvalidTemplate):
            return ""
        return written.replace(_ESCAPED, _MARK)

    def pieces(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        add_generation_prompt: bool,
        unknown: int | None = None,
        continued: bool = False,
    ) -> tuple[Piece, ...]:
        """The chat as the template writes it, generated replies (and message `unknown`) as atoms.

        `continued` leaves out what the template writes after the text of the last message.
        """
        opaque = {at for at, message in enumerate(messages) if message.token_ids or at == unknown}
        while True:
            shapes = shapes_of(messages, opaque)
            pieces = self._rendered(shapes, options, add_generation_prompt, continued)
            found = {
                piece.message for piece in pieces or () if isinstance(piece, Atom) and not piece.reasoning
            }
            if pieces is not None and found == opaque:
                return pieces
            # The template leaves something out, or does more with a text than writing it: then it sees the text.
            opaque &= found

    def _render_shapes(
        self, shapes: tuple[Shape, ...], options: Options, add_generation_prompt: bool, continued: bool
    ) -> tuple[Piece, ...] | None:
        data = [shape.fields for shape in shapes if shape.fields is not None]
        data += [] if options.variables is None else [options.variables]
        texts = [
            text for shape in shapes if not shape.opaque for text in (shape.content, shape.reasoning or "")
        ] + [text for given in data for text in given.texts()]
        unused = unused_characters([*texts, self._template.source])
        end = next(unused)
        marks: dict[str, Atom] = {}
        stands: list[dict[str, str]] = []
        for at, shape in enumerate(shapes):
            stands.append({})
            for name in ("reasoning", "content") if shape.opaque else ():
                if getattr(shape, name) is not None:
                    stands[at][name] = next(unused)
                    marks[stands[at][name]] = Atom(at, name == "reasoning")

        def render(rewrite: Rewrite) -> str:
            chat = [_message(shape, stand, rewrite) for shape, stand in zip(shapes, stands, strict=True)]
            if continued:
                _append(chat[-1], end + " ")  # a blank tells whether the template trims texts
            return self._plain(chat, options, add_generation_prompt, rewrite)

        names = [name for given in data for name in given.names()]
        rendered = self._structure.render(render, texts, unused, names)
        pieces = parse(_up_to(rendered, end) if continued else rendered, marks)
        return None if pieces is None else tuple(pieces)

    def _plain(
        self,
        chat: Sequence[Mapping[str, Any]],
        options: Options,
        add_generation_prompt: bool = True,
        rewrite: Rewrite = str,
    ) -> str:
        variables: dict[str, Any] = dict(self._tokenizer.named_tokens)
        if options.variables is not None:
            variables |= options.variables.copy(rewrite)
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
        else Shape(message.role, message.content, message.reasoning, False, message.fields)
        for at, message in enumerate(messages)
    )


def _as_given(role: str, content: str, reasoning: str | None) -> dict[str, str]:
    """A message as Transformers hands it to a template: reasoning goes by two names."""
    if reasoning is None:
        return {"role": role, "content": content}
    return {"thinking": reasoning, "role": role, "content": content, "reasoning_content": reasoning}


def _message(shape: Shape, stand: Mapping[str, str], rewrite: Rewrite) -> dict[str, Any]:
    """A message for the template; `stand` is what stands for the texts of an opaque one."""
    content = stand.get("content", rewrite(shape.content))
    reasoning = None if shape.reasoning is None else stand.get("reasoning", rewrite(shape.reasoning))
    message: dict[str, Any] = _as_given(shape.role, content, reasoning)
    if shape.fields is not None:
        message |= shape.fields.copy(rewrite)
    return message


def _append(message: dict[str, Any], text: str) -> None:
    """Put a text at the end of a message's content."""
    content: Any = message.get("content", "")
    if isinstance(content, str):
        message["content"] = content + text
    else:
        content[-1]["text"] += text


def _up_to(rendered: Marked, end: str) -> Marked:
    """What stands before `end` and its blank; without blank space where the template has trimmed it."""
    at = rendered.text.rfind(end)
    if at < 0:
        raise ChatRejected(
            "The model's chat template leaves out the end of the last message: it cannot be continued."
        )
    kept = rendered.text.startswith(end + " ", at)
    return rendered.cut(0, at if kept else len(rendered.text[:at].rstrip()))

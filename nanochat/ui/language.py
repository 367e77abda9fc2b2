"""A real model's language: its tokenizer and chat template behind what a chat needs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from nanochat import prompt
from nanochat.engine.tokenizer import Tokenizer
from nanochat.hub import LocalModel
from nanochat.prompt import ChatTemplate, Options, ReasoningSplitter
from nanochat.storage.records import Message, Role
from nanochat.ui.chat_model import Asked, Piece
from nanochat.ui.shelf import reference

_BLOCK = 16  # tokens; less is not worth a request of its own
_ROLES = {Role.USER: "user", Role.ASSISTANT: "assistant", Role.SYSTEM: "system", Role.TOOL: "tool"}


class Reader:
    """Tells reasoning from answer; what a continued reply began with has been read already."""

    def __init__(self, splitter: ReasoningSplitter, begun: str = "") -> None:
        self._splitter = splitter
        if begun:
            splitter.push(begun)

    @property
    def reasoned(self) -> bool:
        """Whether the reply has a block of reasoning, if only an empty one."""
        return self._splitter.reasoned

    def push(self, text: str) -> Piece:
        """Take in the next piece."""
        split = self._splitter.push(text)
        return Piece(split.answer, split.reasoning)

    def finish(self) -> Piece:
        """What was held back."""
        split = self._splitter.finish()
        return Piece(split.answer, split.reasoning)


class Language:
    """Implements `ChatModel`. Any thread may call."""

    def __init__(self, model: LocalModel, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._defaults: Mapping[str, Any] = {}

    @classmethod
    def read(cls, model: LocalModel) -> Language:
        """Read the tokenizer and the template. Raises InvalidModel, InvalidTemplate, UnsupportedModel."""
        # It imports torch: in a worker, after the first frame.
        from nanochat.engine.models.config import ModelConfig

        config = ModelConfig.from_folder(
            model.path
        )  # first: a model that does not run needs no chat template
        tokenizer = Tokenizer.from_folder(model.path)
        language = cls(model, tokenizer, ChatTemplate.from_folder(model.path, tokenizer))
        language._defaults = config.generation_defaults
        return language

    @property
    def name(self) -> str:
        """How chats refer to the model."""
        return reference(self._model)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The model's own sampling values."""
        return self._defaults

    @property
    def can_think(self) -> bool:
        """Whether the template has a switch for reasoning."""
        return self._template.can_switch_thinking

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._tokenizer.encode(text, special=False))

    def prompt(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0,
        partial: Sequence[int] = (), begin: str = "",
    ) -> Asked:  # fmt: skip
        """What asks for the next reply."""
        rendered = self._template.render(self._turns(messages, system_prompt), _options(thinking, started))
        begun = list(partial)
        while begun and begun[-1] in self._tokenizer.special_ids:  # its own end: go on before it
            begun.pop()
        begun += self._tokenizer.encode(begin, special=False)
        text = self._tokenizer.decode(begun, skip_special_tokens=self._template.skips_special)
        reader = Reader(self._template.splitter(rendered), text)
        return Asked((*rendered.ids, *begun), reader, self._template.skips_special)

    def warm(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> tuple[int, ...]:
        """What the next prompt starts with, when more of it than a block has not been read yet."""
        turns = self._turns(messages, system_prompt)
        if not turns or turns[-1].role != "assistant":
            return ()
        after = self._template.after_reply(turns, _options(thinking, started))
        return after.ids if after.new > _BLOCK else ()

    def tokens(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> int:
        """How many tokens a chat has that stands so."""
        turns = self._turns(messages, system_prompt)
        asks = bool(turns) and turns[-1].role != "assistant"
        options = _options(thinking, started)
        return len(self._template.render(turns, options, add_generation_prompt=asks).ids) if turns else 0

    def first_kept(
        self, messages: Sequence[Message], limit: int, *, system_prompt: str, thinking: bool | None,
        started: float = 0.0,
    ) -> int | None:  # fmt: skip
        """How many of the oldest messages must go so that the prompt has at most `limit` tokens; None: it cannot.

        What is kept begins with a message of the user's, also with one of several that have no reply between them.
        """
        options = _options(thinking, started)

        def fits(first: int) -> bool:
            turns = self._turns(messages[first:], system_prompt)
            return len(self._template.render(turns, options).ids) <= limit

        starts = [at for at, message in enumerate(messages) if message.role is Role.USER and at > 0]
        if fits(0):
            return 0
        if not starts or not fits(starts[-1]):
            return None
        return starts[bisect_left(starts, True, key=fits)]

    def _turns(self, messages: Sequence[Message], system_prompt: str) -> list[prompt.Message]:
        """The messages as the template takes them.

        A reply that never began is left out, and what the user said before and after it is one turn: templates
        want user and assistant to take turns.
        """
        turns: list[prompt.Message] = []
        if system_prompt:
            turns.append(prompt.Message("system", system_prompt))
        for message in messages:
            if message.role is Role.ASSISTANT and not message.content and not message.packed_ids:
                continue
            turn = self._turn(message)
            if turns and turn.role == "user" == turns[-1].role:
                turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\n{turn.content}")
            else:
                turns.append(turn)
        return turns

    def _turn(self, message: Message) -> prompt.Message:
        if message.role is not Role.ASSISTANT:
            return prompt.Message(_ROLES[message.role], message.content)
        own = message.model == self.name  # another model's ids mean nothing to this one
        reasoned = bool(message.reasoning) or bool(message.metrics.get("reasoned"))
        thinking = message.params.get("thinking")
        return prompt.Message(
            "assistant", message.content, message.reasoning if reasoned else None,
            message.token_ids if own else (), thinking if isinstance(thinking, bool) else None,
        )  # fmt: skip


def _options(thinking: bool | None, started: float) -> Options:
    return Options(thinking=thinking, now=datetime.fromtimestamp(started) if started else datetime.now())

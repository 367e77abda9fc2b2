"""Messages to token ids: the chat template, thinking, what fits, and what of it the engine has read already.

Everything here is a function of a chat's list of messages, so edit, regenerate and fork need nothing special:
they are other lists. A reply that the model generated keeps its token ids, and the next prompt contains them as
they are (design, decision 1):

    prompt of turn 2 = prompt of turn 1 + ids of reply 1 + ids of the new text

unless the template itself rewrites earlier turns. Thinking models do: the history shows their replies without
the reasoning, or without the empty block that switched it off. That is found by comparing what the template
writes now before a reply's answer with what it had written when it asked for that reply. Then the answer's ids
are kept, the rest of that turn is written anew, and `Prompt.reusable` says how many leading ids still match what
the engine has read. Right after a reply, `ChatTemplate.after_reply` gives the ids that the next prompt will start
with, whatever the user types: reading them in idle time (max_tokens=0) takes the rewriting off the next turn.

Texts of messages never become special tokens: `templating/structure.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import EmptyPrompt, UsageError
from nanochat.templating.chat import ROLES, Message, Options, Prompt
from nanochat.templating.composition import Composer, Piece, Reply, common, take_apart
from nanochat.templating.reasoning import ReasoningSplitter, find_markers
from nanochat.templating.rendering import Renderer, Shape, shapes_of
from nanochat.templating.source import read_template, read_tool_template
from nanochat.templating.structure import Marked
from nanochat.templating.template import Template

__all__ = ["ROLES", "ChatTemplate", "Message", "Options", "Prompt", "ReasoningSplitter"]

_REMEMBERED_TURNS = 4096  # a short text each
_COMPARED_TURNS = 32  # in a chat opened anew, replies further back are not compared with what they answered


class ChatTemplate:
    """A model's chat template with its tokenizer. Threads may share it.

    Attributes:
        markers: the texts around the model's reasoning, or `None`.
        thinking_switch: the template's variable for thinking on and off, or `None`.
        can_switch_thinking: `Options.thinking` has an effect.
        can_set_effort: `Options.effort` has an effect.
        skips_special: what to generate with as `SamplingParams.skip_special_tokens`. False where the markers of
            reasoning are special tokens: without them in the text nothing could be told apart.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        """Use `template`; `from_folder` finds a model's own."""
        self.template, self.tokenizer = template, tokenizer
        self.markers = find_markers([template.source], tokenizer.added_tokens)
        self._renderer = Renderer(template, tokenizer, self.markers)
        self.thinking_switch = self._renderer.switch
        self.can_switch_thinking = self.thinking_switch is not None
        self.can_set_effort = self._renderer.effort is not None
        marker_text = "" if self.markers is None else self.markers.open + self.markers.close
        self._special_texts = [tokenizer.added[index].content for index in tokenizer.special_ids]
        self.skips_special = not any(text in marker_text for text in self._special_texts)
        self._asked: dict[tuple[tuple[Shape, ...], Options], Marked] = {}
        self._take_apart = lru_cache(256)(self._take_reply_apart)

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of the model in `folder`: chat_template.jinja, else the one in tokenizer_config.json.

        Raises:
            InvalidTemplate: there is none, or it is damaged; the text says what to do.
        """
        return cls(Template(read_template(folder)), tokenizer)

    @classmethod
    def for_tools(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template for chats with tools, of a model that has one beside that of `from_folder`."""
        source = read_tool_template(folder)
        return None if source is None else cls(Template(source), tokenizer)

    @property
    def takes_text(self) -> bool:
        """Whether a message's content may be a text, as most templates want it."""
        return self._renderer.takes_text

    @property
    def takes_parts(self) -> frozenset[str]:
        """The roles of messages whose content may be a list of parts."""
        return self._renderer.takes_parts

    @property
    def takes_tools(self) -> bool:
        """Whether the template writes tools."""
        return self._renderer.takes_tools

    def render(
        self,
        messages: Sequence[Message],
        options: Options,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> Prompt:
        """The prompt for the next reply to `messages`.

        Args:
            messages: the chat.
            options: how it is rendered.
            add_generation_prompt: begin the reply; without it the prompt ends with the last message's end.
            continue_final_message: end with the last message's text instead, so that the model goes on with it.

        Raises:
            EmptyPrompt: no messages.
            UsageError: the last message has no text to continue, or a reply is to begin after it as well.
            ChatRejected: the template does not take them (and putting the system message into the first user
                message does not help), or leaves out the text that is to be continued.
            InvalidTemplate: the template fails or goes beyond its limits.
        """
        if continue_final_message and messages:
            _check_continued(messages[-1], add_generation_prompt)
            if messages[-1].token_ids:
                return self._continued(messages[:-1], messages[-1], options)
        chat, folded = self._folded(messages)
        pieces = self._renderer.pieces(
            chat, options, add_generation_prompt=add_generation_prompt, continued=continue_final_message
        )
        return self._prompt(chat, options, pieces, self._compose(chat, options, pieces), folded=folded)

    def _continued(self, before: Sequence[Message], reply: Message, options: Options) -> Prompt:
        """The prompt that the model had answered with `reply`, and that reply as the model left it, but for its end."""
        asked = self.render(before, _then(options, reply))
        ended = self._take_apart(reply.token_ids, reply.reasoning is not None).end is not None
        body = reply.token_ids[:-1] if ended else reply.token_ids
        text = self.tokenizer.decode(body, skip_special_tokens=False)
        splitter = self.splitter(asked)
        splitter.push(text)
        ids = asked.ids + body
        return Prompt(ids, len(ids), False, asked.text + text, splitter.thinking, asked.folded)

    def after_reply(self, messages: Sequence[Message], options: Options) -> Prompt:
        """What the next prompt will start with, whatever the user types; `messages` end with the reply.

        Where `new` is more than a block, let the engine read `ids` now with `max_tokens=0`.
        """
        if not messages or messages[-1].role != "assistant":
            raise UsageError("after_reply is for a chat that ends with a reply.")
        chat, folded = self._folded([*messages, Message("user", "")])
        pieces = self._renderer.pieces(chat, options, add_generation_prompt=False, unknown=len(chat) - 1)
        ids = self._compose(chat, options, pieces, until=len(chat) - 1)
        return self._prompt(chat, options, pieces, ids, folded=folded)

    def reply(self, prompt: Prompt, token_ids: Sequence[int], options: Options) -> Message:
        """The message that a reply to `prompt` is; `token_ids` as the engine returned them."""
        splitter = self.splitter(prompt)
        first = splitter.push(self.tokenizer.decode(token_ids, skip_special_tokens=self.skips_special))
        rest = splitter.finish()
        reasoning = first.reasoning + rest.reasoning if splitter.reasoned else None
        return Message("assistant", first.answer + rest.answer, reasoning, tuple(token_ids), options.thinking)

    def splitter(self, prompt: Prompt) -> ReasoningSplitter:
        """Splits the text of the reply to `prompt` as it is released."""
        dropped = () if self.skips_special else self._special_texts
        return ReasoningSplitter(self.markers, opened=prompt.opened, dropped=dropped)

    def _folded(self, messages: Sequence[Message]) -> tuple[list[Message], bool]:
        """The messages, without a system message if the template takes none."""
        if not messages:
            raise EmptyPrompt("A chat needs at least one message.")
        system, chat = messages[0], list(messages)
        first = next((at for at, message in enumerate(messages) if message.role == "user"), None)
        if system.role != "system" or first is None or not system.content or self._renderer.takes_system:
            return chat, False
        text = f"{system.content}\n\n{chat[first].content}"
        chat[first] = replace(chat[first], content=text, fields=None)  # its parts, or its name
        return chat[1:], True

    def _compose(
        self, messages: Sequence[Message], options: Options, pieces: Sequence[Piece], until: int | None = None
    ) -> list[int]:
        """The ids of a chat; up to the last certain one before message `until` if that is given."""
        composer = Composer(self.tokenizer, self._renderer.encode)
        pending: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Marked) or piece.reasoning:
                pending.append(piece)
            elif piece.message == until:
                break
            else:
                message = messages[piece.message]
                reply = self._take_apart(message.token_ids, message.reasoning is not None)
                whole = composer.header(pending, reply, self._asked_for(messages, piece.message, options))
                composer.reply(reply, whole=whole)
                pending = []
        for piece in pending:
            if isinstance(piece, Marked):
                # What stands before an unknown text is certain up to the last special token.
                end = len(piece.text) if until is None else max((span.end for span in piece.spans), default=0)
                composer.text(piece.cut(0, end))
        return composer.ids

    def _asked_for(self, messages: Sequence[Message], at: int, options: Options) -> Marked | None:
        """What the template wrote after the reply before, when it asked for the reply `messages[at]`."""
        before = messages[:at]
        key = (
            shapes_of(before, {i for i, m in enumerate(before) if m.token_ids}),
            _then(options, messages[at]),
        )
        known = self._asked.get(key)
        if (
            known is None
            and before
            and sum(bool(message.token_ids) for message in messages[at:]) <= _COMPARED_TURNS
        ):
            last = self._renderer.pieces(before, key[1], add_generation_prompt=True)[-1]
            assert isinstance(last, Marked)
            if len(self._asked) >= _REMEMBERED_TURNS:
                self._asked.clear()
            known = self._asked[key] = last
        return known

    def _prompt(
        self,
        messages: Sequence[Message],
        options: Options,
        pieces: Sequence[Piece],
        ids: list[int],
        *,
        folded: bool,
    ) -> Prompt:
        text = "".join(
            piece.text
            if isinstance(piece, Marked)
            else (
                messages[piece.message].reasoning or ""
                if piece.reasoning
                else messages[piece.message].content
            )
            for piece in pieces
        )
        opened = self.markers is not None and text.rstrip().endswith(self.markers.open.rstrip())
        last = max((at for at, message in enumerate(messages) if message.token_ids), default=0)
        if not last:
            return Prompt(tuple(ids), 0, False, text, opened, folded)
        reply, before, then = messages[last], messages[:last], _then(options, messages[last])
        read = self._compose(before, then, self._renderer.pieces(before, then, add_generation_prompt=True))
        read += reply.token_ids
        reusable = common(ids, read)
        ended = self._take_apart(reply.token_ids, reply.reasoning is not None).end is not None
        return Prompt(tuple(ids), reusable, reusable < len(read) - ended, text, opened, folded)

    def _take_reply_apart(self, ids: tuple[int, ...], reasons: bool) -> Reply:
        return take_apart(self.tokenizer, ids, self.markers, reasons=reasons)


def _then(options: Options, reply: Message) -> Options:
    """The options with which a reply was asked for."""
    return options if reply.thinking is None else replace(options, thinking=reply.thinking)


def _check_continued(message: Message, add_generation_prompt: bool) -> None:
    if add_generation_prompt:
        raise UsageError(
            "continue_final_message goes on with the last message, add_generation_prompt begins another one: give "
            "add_generation_prompt=False with it."
        )
    if not message.content and message.fields is not None:
        raise UsageError("The last message has no text that could be continued.")

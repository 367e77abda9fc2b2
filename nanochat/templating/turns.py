"""Chats as scripts give them, dictionaries in the shape of OpenAI's and vLLM's, read into messages."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from nanochat.errors import UsageError
from nanochat.templating.chat import Message
from nanochat.templating.plain import Plain

CONTENT_FORMATS = ("auto", "string", "openai")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_FIELDS = {
    "assistant": ("tool_calls", "name"),
    "tool": ("tool_call_id", "name"),
    "user": ("name",),
    "system": ("name",),
}

Turn = Message | Mapping[str, Any]
Chat = Sequence[Turn]


def read_chats(
    messages: Chat | Sequence[Chat], content_format: str, *, takes_text: bool, takes_parts: Collection[str]
) -> list[list[Message]]:
    """One chat or several.

    Args:
        messages: see `LLM.chat`.
        content_format: "string": contents that are lists of parts become one text, a line each; "openai": all contents
            become such lists; "auto": each stays what it is where the template takes that, and becomes the other if not.
        takes_text: the template takes texts.
        takes_parts: the roles of whose messages it takes lists of parts.

    Raises:
        UsageError: what is no chat, no message, no text.
    """
    if content_format not in CONTENT_FORMATS:
        raise UsageError(
            f"chat_template_content_format is one of {', '.join(CONTENT_FORMATS)}, not {content_format!r:.80}"
        )
    if content_format == "auto" and takes_parts and not takes_text:
        content_format = "openai"
    many = _listed(messages)
    chats = [many] if many and isinstance(many[0], (Message, Mapping)) else [_listed(chat) for chat in many]
    return [[_message(turn, content_format, takes_parts) for turn in chat] for chat in chats]


def _listed(given: object) -> list[Any]:
    if isinstance(given, (str, bytes, Mapping, Message)) or not isinstance(given, Iterable):
        raise UsageError(
            f'a chat is a list of messages such as {{"role": "user", "content": "Hi"}}, not {given!r:.80}'
        )
    return list(cast(Iterable[Any], given))


def _message(turn: object, content_format: str, takes_parts: Collection[str]) -> Message:
    if isinstance(turn, Message):
        if content_format != "openai" or turn.fields is not None:
            return turn
        return replace(turn, token_ids=(), fields=Plain.of("a message", _as_parts([turn.content])))
    if not isinstance(turn, Mapping):
        raise UsageError(f"a message needs a role and a content that are texts, not {turn!r:.200}")
    turn = cast(Mapping[str, Any], turn)
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str):
        raise UsageError(f"a message needs a role that is a text, not {dict(turn)!r:.200}")
    fields = {name: turn[name] for name in _FIELDS.get(role, ()) if turn.get(name) is not None}
    if "tool_calls" in fields:
        fields["tool_calls"] = [_tool_call(call) for call in _listed_calls(fields["tool_calls"])]
    texts = [] if content is None and fields.get("tool_calls") else _texts(content, turn)
    listed = content_format == "auto" and role in takes_parts and not isinstance(content, str)
    if listed or content_format == "openai":
        fields |= _as_parts(texts)
    return Message(
        role, "\n".join(texts), _reasoning(turn), fields=Plain.of("a message", fields) if fields else None
    )


def _texts(content: object, turn: Mapping[str, Any]) -> list[str]:
    if isinstance(content, str):
        return [content]
    if isinstance(content, (list, tuple)):
        return [_text(part) for part in cast("Sequence[object]", content)]
    raise UsageError(
        "a message needs a content that is a text or a list of parts such as {'type': 'text', 'text': 'Hi'}, not "
        f"{dict(turn)!r:.200}"
    )


def _text(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = cast("Mapping[str, Any]", part).get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise UsageError(f"a message has a part of the type {kind!r:.40}: models here read nothing but text")
    text = cast("Mapping[str, Any]", part).get("text") if isinstance(part, Mapping) else None
    if kind is None or not isinstance(text, str):
        raise UsageError(f"a part of a content is {{'type': 'text', 'text': 'Hi'}}, not {part!r:.80}")
    return text


def _as_parts(texts: Sequence[str]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text} for text in texts]}


def _reasoning(turn: Mapping[str, Any]) -> str | None:
    for name in _REASONING:
        given = turn.get(name)
        if given is not None:
            if not isinstance(given, str):
                raise UsageError(f"{name} of a message is a text, not {given!r:.80}")
            return given
    return None


def _listed_calls(calls: object) -> list[Any]:
    if not isinstance(calls, (list, tuple)):
        raise UsageError(f"tool_calls of a message is a list, not {calls!r:.80}")
    return list(cast("Sequence[Any]", calls))


def _tool_call(call: object) -> dict[str, Any]:
    """A call of a tool whose arguments are a dictionary, as templates want them: OpenAI's are JSON in a text."""
    function = cast("Mapping[str, Any]", call).get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise UsageError(f"a call in tool_calls needs a function, not {call!r:.120}")
    function = dict(cast("Mapping[str, Any]", function))
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise UsageError(f"arguments of a call in tool_calls are no JSON: {arguments!r:.80}") from error
    return dict(cast("Mapping[str, Any]", call)) | {"function": function | {"arguments": arguments}}

"""ChatGPT's export: conversations.json, a list of conversations, each a mapping of nodes that is a tree.

What a user saw is taken, with every branch: the user's and the assistant's texts, and the model's thoughts as
reasoning. Calls of tools, their results and hidden context have no place in a chat of ours and are left out; what hung
from them hangs from the message before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from nanochat.errors import ChatImportError
from nanochat.exchange.bundle import ChatBundle
from nanochat.exchange.planting import Turn, chat_id, plant
from nanochat.storage.records import Role, storable

_KEPT = (Role.USER, Role.ASSISTANT)


def from_chatgpt(conversations: Sequence[Mapping[str, Any]]) -> tuple[ChatBundle, ...]:
    """The conversations that hold a message. Raises ChatImportError where a mapping is no tree.

    Source: the files of chat.openai.com's data export, 2023 to 2025.
    """
    found = (_conversation(each, place) for place, each in enumerate(conversations))
    return tuple(bundle for bundle in found if bundle is not None)


def _conversation(data: Mapping[str, Any], place: int) -> ChatBundle | None:
    where = f"Conversation {place} of the export"
    mapping = _object(data.get("mapping"))
    nodes = {name: _object(node) for name, node in mapping.items()}
    if not nodes:
        return None
    created = _time(data.get("create_time"), 0.0)
    turns, places = _turns(nodes, created, where)
    if not turns:
        return None
    current = places.get(_string(data.get("current_node")))
    name = _string(data.get("conversation_id")) or _string(data.get("id")) or min(nodes)
    return plant(
        chat_id("chatgpt", storable(name)), _string(data.get("title")), turns, key=f"chatgpt {name}",
        head=len(turns) - 1 if current is None else current,
        created=created, updated=_time(data.get("update_time"), created),
    )  # fmt: skip


def _turns(
    nodes: Mapping[str, Mapping[str, Any]], created: float, where: str
) -> tuple[list[Turn], dict[str, int | None]]:
    """The turns, parents first, and for every node the place of the turn that it became or hangs from."""
    turns: list[Turn] = []
    places: dict[str, int | None] = {}
    children = _children(nodes)
    # `alone`: no other branch has parted since the turn above.
    waiting: list[tuple[str, int | None, str, bool]] = [
        (name, None, "", False) for name in reversed(children[""])
    ]
    while waiting:
        name, above, thoughts, alone = waiting.pop()
        turn = _turn(nodes[name], above, created, name)
        if turn is None:
            thoughts = "\n\n".join(filter(None, (thoughts, _thoughts(nodes[name]))))
        elif alone and above is not None and turn.role is turns[above].role is Role.ASSISTANT:
            # An answer in pieces, between calls of tools: one message here, as templates need turns to alternate.
            turns[above].content += "\n\n" + turn.content
            turns[above].reasoning = "\n\n".join(filter(None, (turns[above].reasoning, thoughts)))
            thoughts = ""
        else:
            turn.reasoning = thoughts if turn.role is Role.ASSISTANT else ""
            above, thoughts, alone = len(turns), "", True
            turns.append(turn)
        places[name] = above
        below = children.get(name, [])
        waiting += [(child, above, thoughts, alone and len(below) == 1) for child in reversed(below)]
    if len(places) != len(nodes):
        raise ChatImportError(
            f"{where} is no tree: {len(nodes) - len(places)} of its messages run in a circle."
        )
    return turns, places


def _children(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The children of each node in their order; under "" those that hang from nothing in the mapping."""
    order = {
        child: place
        for node in nodes.values()
        for place, child in enumerate(_list(node.get("children")))
        if isinstance(child, str)
    }
    found: dict[str, list[str]] = {"": []}
    for name in sorted(nodes, key=lambda each: order.get(each, -1)):
        parent = _string(nodes[name].get("parent"))
        found.setdefault(parent if parent in nodes else "", []).append(name)
    return found


def _turn(node: Mapping[str, Any], above: int | None, created: float, name: str) -> Turn | None:
    """The turn that a node is, or `None` for one that no user saw."""
    message = _object(node.get("message"))
    metadata = _object(message.get("metadata"))
    role = _string(_object(message.get("author")).get("role"))
    shown = message.get("recipient") in (None, "all") and not metadata.get(
        "is_visually_hidden_from_conversation"
    )
    text = _text(_object(message.get("content")))
    if role not in _KEPT or not shown or not text:
        return None
    return Turn(
        role=Role(role), content=text, parent=above, created=_time(message.get("create_time"), created), key=name,
        model=_string(metadata.get("model_slug")) if role == Role.ASSISTANT else "",
    )  # fmt: skip


def _text(content: Mapping[str, Any]) -> str:
    kind = _string(content.get("content_type"))
    if kind == "code":
        return _string(content.get("text"))
    if kind not in ("text", "multimodal_text"):
        return ""
    return "\n\n".join(filter(None, (_part(part) for part in _list(content.get("parts")))))


def _part(part: object) -> str:
    """A piece of a message; of an image or a sound, the words in it or a word for it."""
    if isinstance(part, str):
        return part
    values = _object(part)
    return _string(values.get("text")) or f"[{_string(values.get('content_type')) or 'attachment'}]"


def _thoughts(node: Mapping[str, Any]) -> str:
    content = _object(_object(node.get("message")).get("content"))
    if content.get("content_type") != "thoughts":
        return ""
    thoughts = [_object(each) for each in _list(content.get("thoughts"))]
    pairs = [(_string(each.get("summary")), _string(each.get("content"))) for each in thoughts]
    return "\n\n".join("\n".join(filter(None, pair)) for pair in pairs if any(pair))


def _object(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return cast(Sequence[object], value) if isinstance(value, list) else ()


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _time(value: object, otherwise: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return otherwise
    return float(value) if 0 <= value < 1e11 else otherwise

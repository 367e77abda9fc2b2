"""Chats and templates that the prompt tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATES = {
    file.stem: file.read_bytes().decode()
    for file in sorted((Path(__file__).parent / "data" / "templates").glob("*.jinja"))
}


def _turn(user: str, *replies: Any) -> list[dict[str, Any]]:
    reply = [{"role": "assistant", "content": text} | extra for text, extra in replies]
    return [{"role": "user", "content": user}, *reply]


def _chat(*turns: Any, system: str | None = None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for user, *reply in turns:
        messages += _turn(user, *[(text, {}) for text in reply])
    return messages


_CODE = "Why?\n```python\ndef f(x):\n    return x < 1 and x > 0  # <b>|</b>\n```\n\n\n  thanks"
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": _chat(("What is 2+2?",)),
    "with a system message": _chat(("Hello there",), system="Be brief."),
    "three turns": _chat(
        ("Hi", "Hello! How are you?"), ("Fine.", "Good."), ("Tell me more",), system="You are kind."
    ),
    "code": _chat((_CODE, "Because:\n\n```\n  a <= b\n```"), ("ok <tag> &amp; [x] {y} {{ z }} {% raw %}",)),
    "Chinese and emoji": _chat(
        ("你好，世界 😀👩‍👩‍👧", "你好！\n\n很高兴"), ("Привет é à ü",), system="用中文回答。"
    ),
    "spaces around": _chat(("  leading\n\n", "\n\n  answer \n"), ("\ttabs\t",), system="  padded  \n"),
    "empty texts": _chat(("", ""), ("x",), system=""),
    "ends with the reply": _chat(("Q", "A"), ("Q2", "A2")),
    "long": _chat(("word " * 400, "reply " * 200), ("and\n" * 100,)),
    "thinking": [
        *_turn("How many r in strawberry?", ("Three.", {"reasoning_content": "\ns-t-r... count: 3\n"})),
        *_turn("Sure?", ("Yes.", {"reasoning_content": "Check again."})),
        {"role": "user", "content": "Thanks"},
    ],
    "thinking at the end": _turn("How many?", ("Three.", {"reasoning_content": "one two three"})),
    "a tool": [
        *_turn("Weather?", ("I look.", {})),
        {"role": "tool", "content": '{"rain": true}'},
        {"role": "tool", "content": "sunny later"},
    ],
    "switches in the text": _chat(("Explain /no_think please /nothink",), system="/think about it"),
    "two system messages": [
        {"role": "system", "content": "First."},
        {"role": "user", "content": "a"},
        {"role": "system", "content": "Second."},
        {"role": "user", "content": "b"},
    ],
}

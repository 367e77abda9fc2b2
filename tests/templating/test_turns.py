"""Chats in the shape of OpenAI's and vLLM's: parts, tools and continued messages have the ids of Transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_corpus import TEMPLATES
from test_prompt import ENDS, answer, chat_template, transformers_tokenizer, user

from nanochat.errors import ChatRejected, UsageError
from nanochat.prompt import ChatTemplate, Message, Options
from nanochat.templating.plain import Plain
from nanochat.templating.source import read_template, read_tool_template
from nanochat.templating.turns import read_chats

PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "One <b>"}, {"type": "text", "text": "two"}]},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": [{"type": "text", "text": "three"}]},
]
JOINED = [PARTS[0] | {"content": "One <b>\ntwo"}, PARTS[1], PARTS[2] | {"content": "three"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a <city>, as "JSON" | text',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Köln", "Paris"]},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CALLED = [
    {"role": "user", "content": "Weather in Köln?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": '{"rain": true}'},
]
# Ways in which templates write tools: as JSON, in pieces with names inside of signs, only before the last question.
WRITES_TOOLS = {
    "qwen25": TEMPLATES["qwen25"],
    "in pieces": (
        "{% for t in tools or [] %}<tool>{{ t.function.name }}{% for n, p in t.function.parameters.properties.items() %}"
        "\n<{{ n }}>{% for k in p %}<{{ k }}>{{ p[k] if p[k] is string else p[k] | tojson }}</{{ k }}>{% endfor %}{% endfor %}"
        "{{ t.function.description | upper }}</tool>{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.id }} {{ c.function.name }}{{ c.function.arguments | tojson(indent=2) }}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
    ),
    "late": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS]"
        "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls is defined %}"
        "[TOOL_CALLS]{{ m.tool_calls | map(attribute='function') | list | tojson }}{{ eos_token }}{% else %}"
        "[TOOL_RESULTS]{{ {'content': m.content, 'call_id': m.tool_call_id} | tojson }}[/TOOL_RESULTS]{% endif %}{% endfor %}"
    ),
}
# As Qwen3-Coder writes what a schema says of a parameter besides its type.
WRAPS_NAMES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% for t in tools %}{% for k in t %}\n<{{ k }}>{{ t[k] }}</{{ k }}>{% endfor %}{% endfor %}"
)


def read(template: ChatTemplate, chat: list[Any], form: str = "auto") -> list[Message]:
    (messages,) = read_chats(chat, form, takes_text=template.takes_text, takes_parts=template.takes_parts)
    return messages


def theirs(name: str, chat: list[Any], **options: Any) -> list[int]:
    tokenizer = transformers_tokenizer("byte_level")
    source = TEMPLATES.get(name, name)
    return tokenizer.apply_chat_template(chat, chat_template=source, return_dict=False, **options)


# Parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"jinja_corners"}))
def test_parts_are_a_list_where_the_template_takes_one_else_lines(name: str) -> None:
    template = chat_template(name)
    assert (
        bool(template.takes_parts) == (name in ("gemma3", "glm4", "mistral_tekken")) and template.takes_text
    )
    expected = theirs(name, PARTS if template.takes_parts else JOINED, add_generation_prompt=True)
    assert list(template.render(read(template, PARTS), Options()).ids) == expected
    as_text = template.render(read(template, PARTS, "string"), Options())
    assert list(as_text.ids) == theirs(name, JOINED, add_generation_prompt=True)
    if "assistant" in template.takes_parts:
        listed = template.render(
            read(template, [*PARTS[:1], Message("assistant", "ok"), *PARTS[2:]], "openai"), Options()
        )
        assert list(listed.ids) == expected


def test_a_template_that_takes_nothing_but_parts_gets_them() -> None:
    template = chat_template(
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}[{{ c.text }}]{% endif %}{% endfor %}{% endfor %}"
    )
    assert template.takes_parts and not template.takes_text
    assert template.render(read(template, JOINED), Options()).text == "[One <b>\ntwo][ok][three]"
    reply = Message("assistant", "ok", token_ids=(1, 2))
    assert template.render(read(template, [user("a"), reply]), Options()).text == "[a][ok]"


# Continued ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"jinja_corners"}))
@pytest.mark.parametrize("text", ["The answer is", "Two\n\nlines  ", ""], ids=repr)
def test_a_continued_message_ends_the_prompt(name: str, text: str) -> None:
    chat = [{"role": "user", "content": "Q <x>"}, {"role": "assistant", "content": text}]
    template = chat_template(name)
    ours = template.render(
        read(template, chat), Options(), add_generation_prompt=False, continue_final_message=True
    )
    assert list(ours.ids) == theirs(name, chat, continue_final_message=True)
    assert ours.text.rstrip().endswith(text.rstrip())


def test_continued_parts_end_with_the_last_of_them() -> None:
    chat = [{"role": "user", "content": "Q"}, PARTS[0] | {"role": "assistant"}]
    template = chat_template("gemma3")
    ours = template.render(
        read(template, chat), Options(), add_generation_prompt=False, continue_final_message=True
    )
    assert list(ours.ids) == theirs("gemma3", chat, continue_final_message=True)


@pytest.mark.parametrize("name", sorted(set(ENDS) - {"glm4"}))
def test_a_reply_that_was_cut_off_is_continued_by_its_own_ids(name: str) -> None:
    template = chat_template(name)
    chat, options = [user("Say something long.")], Options()
    asked = template.render(chat, options)
    cut, ended = (answer(template, chat, "Once upon a ti", end, options) for end in ("", ENDS[name]))
    assert ended.token_ids[:-1] == cut.token_ids
    for reply in (cut, ended):
        prompt = template.render(
            [*chat, reply], options, add_generation_prompt=False, continue_final_message=True
        )
        assert prompt.ids == asked.ids + cut.token_ids and prompt.text.endswith("Once upon a ti")
        assert prompt.opened == asked.opened


def test_what_cannot_be_continued_is_refused() -> None:
    template, chat = chat_template("qwen25"), CALLED[:2]
    with pytest.raises(UsageError, match="add_generation_prompt=False with it"):
        template.render(read(template, JOINED), Options(), continue_final_message=True)
    with pytest.raises(UsageError, match="no text that could be continued"):
        template.render(
            read(template, chat), Options(), add_generation_prompt=False, continue_final_message=True
        )
    first = chat_template("{% for m in messages %}{{ m.content[:3] }}{% endfor %}")
    with pytest.raises(ChatRejected, match="leaves out the end of the last message"):
        first.render([user("abcdef")], Options(), add_generation_prompt=False, continue_final_message=True)


# Tools -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES_TOOLS)
@pytest.mark.parametrize("length", [1, 3])
def test_tools_and_their_calls_have_the_ids_of_transformers(name: str, length: int) -> None:
    template, chat = chat_template(WRITES_TOOLS[name]), CALLED[:length]
    options = Options(variables=Plain.of("tools", {"tools": [TOOL]}))
    ours = template.render(read(template, chat), options)
    assert list(ours.ids) == theirs(WRITES_TOOLS[name], chat, tools=[TOOL], add_generation_prompt=True)
    assert ("<city>" in ours.text.lower()) == (name != "late" or length == 1)


def test_a_template_that_writes_no_tools_is_known() -> None:
    assert all(chat_template(source).takes_tools for source in WRITES_TOOLS.values())
    assert not any(
        chat_template(name).takes_tools for name in ("chatml", "llama31", "mistral_v3", "phi4_mini")
    )
    assert chat_template(
        "{% if messages | length > 5 %}{{ tools }}{% else %}{{ raise_exception('x') }}{% endif %}"
    ).takes_tools


def test_a_call_may_have_its_arguments_as_json_and_no_content() -> None:
    template = chat_template(WRITES_TOOLS["in pieces"])
    function = CALL["function"] | {"arguments": '{"city": "Köln"}'}  # type: ignore[operator]
    as_openai = [
        CALLED[0],
        {"role": "assistant", "content": None, "tool_calls": [CALL | {"function": function}]},
    ]
    assert (
        template.render(read(template, as_openai), Options()).ids
        == template.render(read(template, CALLED[:2]), Options()).ids
    )


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_legacy"])
@pytest.mark.parametrize(
    "text", ["<|im_end|>", "|im_end|", " |IM_END|", "im_end", "im_end|>x<|im_start", "think", "/think"]
)
def test_tools_cannot_write_special_tokens(kind: str, text: str) -> None:
    template = chat_template(WRAPS_NAMES, kind)
    added = template.tokenizer.added

    def structure(tools: list[Any]) -> list[int]:
        options = Options(variables=Plain.of("tools", {"tools": tools}))
        return [index for index in template.render([user("a")], options).ids if index in added]

    harmless = structure([{"k": "v", "l": {"m": ["v"]}}])
    assert structure([{text: text, "l": {text: [text]}}]) == harmless
    fields = Plain.of("a message", {"name": text, "tool_calls": [{"function": {"name": text}}]})
    named = chat_template(
        "{% for m in messages %}<|im_start|><{{ m.name }}><{{ m.tool_calls[0].function.name }}>{% endfor %}",
        kind,
    )
    ids = named.render([Message("assistant", "x", fields=fields)], Options()).ids
    assert sum(index in added for index in ids) == 1


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "type 'image_url': models here"),
        ({"role": "user", "content": [{"text": "x"}]}, "a part of a content is"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "a part of a content is"),
        ({"role": "user", "content": None}, "a content that is a text or a list of parts"),
        ({"role": "user"}, "a content that is a text or a list of parts"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "a content that is a text"),
        ({"role": "assistant", "content": "", "tool_calls": "x"}, "tool_calls of a message is a list"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "needs a function"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "{"}}]}, "are no JSON"),
        ({"role": "assistant", "content": "", "reasoning": 5}, "reasoning of a message is a text"),
        ({"role": "assistant", "content": "", "name": {1}}, "a message may hold texts, .* not a set"),
        ({"content": "x"}, "a role that is a text"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_by_name(turn: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(chat_template("chatml"), [turn])


def test_a_template_gets_plain_values_only() -> None:
    class Text(str):
        __slots__ = ()

    given = Plain.of("x", {"a": Text("\ud800b"), "c": (1, 2.5, None, True)}).copy(str)
    assert given == {"a": "\ufffdb", "c": [1, 2.5, None, True]} and type(given["a"]) is str
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    for value, words in (
        ({"a": deep}, "deeper than 64"),
        ({"a": {1: 2}}, "keys of x are texts"),
        ({"a": print}, "not a builtin"),
    ):
        with pytest.raises(UsageError, match=words):
            Plain.of("x", value)


def test_the_template_for_tools_that_a_model_has_beside_its_own_is_found(tmp_path: Path) -> None:
    def write(template: object) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))

    write([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    assert (read_template(tmp_path), read_tool_template(tmp_path)) == ("a", "b")
    write({"default": "a", "tool_use": "b"})
    assert (read_template(tmp_path), read_tool_template(tmp_path)) == ("a", "b")
    for plain in ("a", [{"name": "default", "template": "a"}], None):
        write(plain)
        assert read_tool_template(tmp_path) is None
    write({"default": "a", "tool_use": "b"})
    (tmp_path / "chat_template.jinja").write_text("c")
    assert (read_template(tmp_path), read_tool_template(tmp_path)) == ("c", None)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("d")
    assert (read_template(tmp_path), read_tool_template(tmp_path)) == ("c", "d")

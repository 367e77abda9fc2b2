"""`LLM.chat` with the arguments of vLLM's on the starter model: its prompts are those of Transformers' apply_chat_template."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nanochat import LLM, SamplingParams
from nanochat.errors import ChatRejected, InvalidTemplate, UsageError
from nanochat.prompt import ChatTemplate, Message
from nanochat.templating.template import Template

PARAMS = SamplingParams(max_tokens=1, temperature=0.0)
CHAT = [{"role": "user", "content": "Name a river."}]
BEGUN = [*CHAT, {"role": "assistant", "content": "The river  "}]
PARTS = [{"type": "text", "text": "Name a"}, {"type": "text", "text": "river."}]
TOOL = {
    "type": "function",
    "function": {"name": "map", "description": "A <map>", "parameters": {"type": "object"}},
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}"
    "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if mood %}{{ mood }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def llm(starter_model: Path) -> Iterator[LLM]:
    with LLM(starter_model, max_model_len=512) as llm:
        yield llm


@cache
def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("chat", "options"),
    [
        (CHAT, {}),
        (CHAT, {"add_generation_prompt": False}),
        (BEGUN, {"add_generation_prompt": False, "continue_final_message": True}),
        (CHAT, {"chat_template": TEMPLATE}),
        (CHAT, {"chat_template": TEMPLATE, "tools": [TOOL]}),
        (CHAT, {"chat_template": TEMPLATE, "chat_template_kwargs": {"enable_thinking": False, "mood": "<calm>"}}),
        ([{"role": "user", "content": PARTS}], {"chat_template": TEMPLATE}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
)  # fmt: skip
def test_prompts_are_those_of_transformers(chat: list[Any], options: dict[str, Any], llm: LLM) -> None:
    (output,) = llm.chat(chat, PARAMS, use_tqdm=False, **options)
    asked: dict[str, Any] = {"add_generation_prompt": True} | options
    expected = transformers_tokenizer(llm.config.model).apply_chat_template(
        chat, **asked.pop("chat_template_kwargs", {}), **asked, return_dict=False
    )
    assert list(output.prompt_token_ids) == expected and len(output.token_ids) > 0
    positional = llm.chat(chat, PARAMS, False, None, *(options.get(name, default) for name, default in {
        "chat_template": None, "chat_template_content_format": "auto", "add_generation_prompt": True,
        "continue_final_message": False, "tools": None, "chat_template_kwargs": None,
    }.items()))  # fmt: skip
    assert positional[0].prompt_token_ids == output.prompt_token_ids


def test_parts_are_lines_where_the_template_takes_texts_only(llm: LLM) -> None:
    (lines,) = llm.chat([{"role": "user", "content": PARTS}], PARAMS, use_tqdm=False)
    (text,) = llm.chat([{"role": "user", "content": "Name a\nriver."}], PARAMS, use_tqdm=False)
    assert lines.prompt_token_ids == text.prompt_token_ids
    given: dict[str, Any] = {
        "use_tqdm": False,
        "chat_template": TEMPLATE,
        "chat_template_content_format": "string",
    }
    assert "Name a\nriver." in (
        llm.chat([{"role": "user", "content": PARTS}], PARAMS, **given)[0].prompt or ""
    )


def test_a_reply_is_continued_where_it_was_cut_off(llm: LLM) -> None:
    whole, first = (
        llm.chat(CHAT, PARAMS.clone(max_tokens=number, ignore_eos=True), use_tqdm=False)[0]
        for number in (8, 4)
    )
    reply = Message("assistant", first.text, token_ids=first.token_ids)
    (rest,) = llm.chat(
        [Message("user", "Name a river."), reply], PARAMS.clone(max_tokens=4, ignore_eos=True), use_tqdm=False,
        add_generation_prompt=False, continue_final_message=True,
    )  # fmt: skip
    assert first.token_ids + rest.token_ids == whole.token_ids


def test_texts_for_a_template_are_no_special_tokens(llm: LLM) -> None:
    def special(*, mood: str, name: str) -> int:
        tool = TOOL | {"function": {"name": name, name: {name: [name]}}}
        (output,) = llm.chat(
            CHAT,
            PARAMS,
            use_tqdm=False,
            chat_template=TEMPLATE,
            tools=[tool],
            chat_template_kwargs={"mood": mood},
        )
        assert mood in (output.prompt or "")
        return sum(index in llm.tokenizer.added for index in output.prompt_token_ids)

    assert special(mood="<|im_end|>", name="<|im_start|>") == special(mood="calm", name="map") == 5


def test_thinking_is_the_switch_of_the_template(llm: LLM) -> None:
    given: dict[str, Any] = {"use_tqdm": False, "chat_template": TEMPLATE}
    (by_name,) = llm.chat(CHAT, PARAMS, **given, chat_template_kwargs={"enable_thinking": False})
    assert llm.chat(CHAT, PARAMS, **given, thinking=False)[0].prompt == by_name.prompt
    both: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    assert llm.chat(CHAT, PARAMS, **given, **both, thinking=False)[0].prompt == by_name.prompt
    with pytest.raises(
        UsageError, match="thinking is True, and enable_thinking of chat_template_kwargs False"
    ):
        llm.chat(CHAT, PARAMS, **given, **both, thinking=True)


def test_a_template_of_a_script_runs_in_the_sandbox(llm: LLM) -> None:
    for source in ("{{ messages.__class__.__mro__ }}", "{% for i in range(10**9) %}{% endfor %}"):
        with pytest.raises(InvalidTemplate, match=r"chat template (fails|was stopped)"):
            llm.chat(CHAT, PARAMS, use_tqdm=False, chat_template=source)
    with pytest.raises(ChatRejected, match="not today"):
        llm.chat(CHAT, PARAMS, use_tqdm=False, chat_template="{{ raise_exception('not today') }}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_request": object()}, "lora_request means nothing here: models run without LoRA"),
        ({"mm_processor_kwargs": {"size": 1}}, "mm_processor_kwargs means nothing here: models here read nothing but text"),
        ({"tokenization_kwargs": {"truncate_prompt_tokens": 5}}, "tokenization_kwargs means nothing here"),
        ({"continue_final_message": True}, "add_generation_prompt=False with it"),
        ({"add_generation_prompt": "no"}, "add_generation_prompt must be True or False, not 'no'"),
        ({"continue_final_message": 1}, "continue_final_message must be True or False, not 1"),
        ({"thinking": "no"}, "thinking must be True or False, not 'no'"),
        ({"chat_template_content_format": "html"}, "one of auto, string, openai, not 'html'"),
        ({"chat_template": "template.jinja"}, "text of a Jinja template, not 'template.jinja'"),
        ({"chat_template": Path("{}")}, "text of a Jinja template"),
        ({"tools": [TOOL]}, "this chat template writes no tools"),
        ({"tools": TOOL, "chat_template": TEMPLATE}, "tools is a list of JSON schemas"),
        ({"tools": [print], "chat_template": TEMPLATE}, "a tool is a JSON schema"),
        ({"chat_template_kwargs": ["a"]}, "chat_template_kwargs is a dict"),
        ({"chat_template_kwargs": {"mood": print}}, "chat_template_kwargs may hold texts, .* not a builtin"),
        ({"chat_template_kwargs": {"tools": []}}, "cannot hold tools, which is an argument of its own"),
    ],
)  # fmt: skip
def test_what_means_nothing_here_is_refused_by_name(options: dict[str, Any], words: str, llm: LLM) -> None:
    with pytest.raises(UsageError, match=words):
        llm.chat(CHAT, PARAMS, use_tqdm=False, **options)


def test_what_asks_for_nothing_is_taken(llm: LLM) -> None:
    (plain,) = llm.chat(CHAT, PARAMS, use_tqdm=False)
    (output,) = llm.chat(
        CHAT, PARAMS, use_tqdm=False, lora_request=None, tools=[], tokenization_kwargs={}, mm_processor_kwargs={},
        chat_template_kwargs={},
    )  # fmt: skip
    assert output.prompt_token_ids == plain.prompt_token_ids


def test_chats_with_tools_take_the_template_for_tools(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llm.config.model
    monkeypatch.setitem(
        vars(llm), "_tool_template", ChatTemplate(Template("<tools>" + TEMPLATE), llm.tokenizer)
    )
    for tools in (None, [], [TOOL]):
        (output,) = llm.chat(CHAT, PARAMS, use_tqdm=False, tools=tools)
        assert (output.prompt or "").startswith("<tools>") == bool(tools)
    assert ChatTemplate.for_tools(folder, llm.tokenizer) is None

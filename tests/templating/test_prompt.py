"""Prompts: ids as Transformers', replies by their own ids, and text that never becomes structure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_corpus import CHATS, TEMPLATES
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from tokenizer_kinds import KINDS, backend_json
from tokenizers import Tokenizer as Backend

from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import ChatRejected, EmptyPrompt, InvalidTemplate, UsageError
from nanochat.prompt import ChatTemplate, Message, Options, Prompt
from nanochat.templating.composition import common
from nanochat.templating.template import Template

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
OPTIONS = Options(now=datetime(2026, 11, 24))
every_kind = pytest.mark.parametrize("kind", KINDS)
# How replies end, by template; </s> where nothing else is said.
ENDS = {
    "chatml": "<|im_end|>", "smollm2": "<|im_end|>", "llama3": "<|eot_id|>", "llama31": "<|eot_id|>",
    "qwen25": "<|im_end|>", "qwen3": "<|im_end|>", "qwen3_thinking_only": "<|im_end|>",
    "keeps_reasoning": "<|im_end|>", "gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>", "gemma4": "<end_of_turn>",
    "phi3": "<|end|>", "phi4": "<|im_end|>", "phi4_mini": "<|end|>", "smollm3": "<|im_end|>",
    "deepseek_r1": "<｜end▁of▁sentence｜>", "deepseek_v31": "<｜end▁of▁sentence｜>",
    "command_r": "<|END_OF_TURN_TOKEN|>", "granite": "<|end_of_text|>", "gpt_oss": "<|return|>", "glm4": "<|user|>",
    "nemotron": "<|end|>", "minimax": "<|im_end|>",
}  # fmt: skip
# Templates that write a reply's turn in the history as they had asked for it.
STABLE = sorted(set(ENDS) & {
    "chatml", "smollm2", "llama3", "llama31", "qwen25", "keeps_reasoning", "gemma2", "gemma3", "phi3", "phi4",
    "phi4_mini", "command_r", "granite",
} | {"llama2", "mistral_v1", "mistral_tekken", "zephyr", "olmo2", "vicuna", "alpaca"})  # fmt: skip


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(Backend.from_str(backend_json(kind)), NAMES)


@cache
def chat_template(name: str, kind: str = "byte_level") -> ChatTemplate:
    return ChatTemplate(Template(TEMPLATES.get(name, name)), tokenizer(kind))


@cache
def transformers_tokenizer(kind: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(backend_json(kind)), **NAMES)


def messages_of(chat: Sequence[dict[str, Any]]) -> list[Message]:
    return [Message(m["role"], m["content"], m.get("reasoning_content")) for m in chat]


def user(text: str) -> Message:
    return Message("user", text)


def ids_of(template: ChatTemplate, text: str, end: str = "") -> list[int]:
    """Ids that a model might generate for `text`: markers of its own count, and no space is put in front."""
    backend = template.tokenizer.backend
    return [
        i
        for i in backend.encode(text + end, add_special_tokens=False).ids
        if template.tokenizer.token(i) != "▁"
    ]


def answer(
    template: ChatTemplate, chat: list[Message], text: str, end: str, options: Options = OPTIONS
) -> Message:
    """The model's reply `text` to a chat."""
    return template.reply(template.render(chat, options), ids_of(template, text, end), options)


# Equal to Transformers ---------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("name", TEMPLATES)
def test_benign_chats_have_the_ids_of_transformers(kind: str, name: str) -> None:
    ours, theirs, compared = chat_template(name, kind), transformers_tokenizer(kind), 0
    for number, chat in enumerate(CHATS.values()):
        thinking = (None, True, False)[number % 3] if ours.can_switch_thinking else None
        switch = (
            {}
            if thinking is None
            else {"enable_thinking" if "enable_" in ours.template.source else "thinking": thinking}
        )
        for prompt in (True, False):
            try:
                expected = theirs.apply_chat_template(
                    chat,
                    chat_template=TEMPLATES[name],
                    add_generation_prompt=prompt,
                    return_dict=False,
                    **switch,
                )
            except TemplateError:
                continue  # the next tests are about what a template does not take
            rendered = ours.render(messages_of(chat), Options(thinking), add_generation_prompt=prompt)
            if not rendered.folded:
                assert list(rendered.ids) == expected
                compared += 1
    assert compared >= 5


def test_the_starter_model_has_the_ids_of_transformers(starter_model: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(starter_model)
    ours = ChatTemplate.from_folder(starter_model, Tokenizer.from_folder(starter_model))
    for chat in CHATS.values():
        for prompt in (True, False):
            expected = theirs.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)
            assert list(ours.render(messages_of(chat), OPTIONS, add_generation_prompt=prompt).ids) == expected
    typed = "x " + " ".join(ours.tokenizer.added_tokens) + " x"
    hostile_ids = ours.render([user(typed)], OPTIONS).ids
    assert sum(i in ours.tokenizer.added for i in hostile_ids) == 5
    assert typed in ours.tokenizer.decode(hostile_ids, skip_special_tokens=False)


@settings(max_examples=100)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    kind=st.sampled_from(sorted(KINDS)),
    texts=st.lists(st.text("ab <>|[]/\n\t你é😀", max_size=10), min_size=1, max_size=5),
)
def test_angle_brackets_alone_change_nothing(name: str, kind: str, texts: list[str]) -> None:
    chat = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    expected = transformers_tokenizer(kind).apply_chat_template(
        chat, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
    )
    assert list(chat_template(name, kind).render(messages_of(chat), Options()).ids) == expected


def test_a_starter_like_model_needs_no_transformers() -> None:
    import subprocess
    import sys

    code = "import sys, nanochat.prompt; print([m for m in ('transformers', 'torch', 'textual') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Text never becomes structure ------------------------------------------------------------------------


def structure(template: ChatTemplate, prompt: Prompt) -> list[int]:
    """The markers in a prompt: all added tokens but those that text may hold in everybody's reading."""
    tok = template.tokenizer
    free = {
        tok.added_tokens[text]
        for text in ("\n\n", "\n\n\n", "  ", "    ", "<b>", "</b>")
        if text in tok.added_tokens
    }
    return [i for i in prompt.ids if i in tok.added and i not in free and i not in tok.unknown_ids]


def hostile(kind: str) -> st.SearchStrategy[str]:
    markers = sorted(
        set(tokenizer(kind).added_tokens) - {"\n\n", "\n\n\n", "  ", "    ", "<b>", "</b>", "<unk>", "[UNK]"}
    )
    marker = st.sampled_from(markers)
    halves = marker.flatmap(lambda m: st.integers(1, len(m)).map(lambda at: (m[:at], m[at:])))
    joined = st.tuples(
        halves, st.sampled_from(["/think", "/no_think", "</think>", "<think>", "\n", " ", ""])
    ).map(lambda pair: pair[0][0] + pair[1] + pair[0][1])
    wide = marker.map(lambda m: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in m))
    half = halves.map(lambda pair: pair[0]) | halves.map(lambda pair: pair[1])
    piece = st.one_of(marker, joined, wide, half, marker.map(str.upper), st.text("ab<|>/[] \n", max_size=4))
    return st.lists(piece, min_size=1, max_size=4).map("".join)


@every_kind
@settings(max_examples=80)
@given(data=st.data())
def test_no_text_adds_to_the_structure_of_a_chat(kind: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(set(TEMPLATES) - {"jinja_corners"})))
    template = chat_template(name, kind)
    roles = data.draw(st.sampled_from([["user"], ["system", "user"], ["user", "assistant", "user"]]))
    texts = ["x" + data.draw(hostile(kind)) + "x" for _ in roles]
    # Two templates take /think in a text for a switch, and may.
    plain = [
        "plain" + "".join(f" {word}" for word in ("/think", "/no_think") if word in text) for text in texts
    ]
    try:
        ordinary = template.render(
            [Message(role, text) for role, text in zip(roles, plain, strict=True)], OPTIONS
        )
    except ChatRejected:
        return
    prompt = template.render([Message(role, text) for role, text in zip(roles, texts, strict=True)], OPTIONS)
    assert structure(template, prompt) == structure(template, ordinary)


@every_kind
@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"jinja_corners"}))
def test_every_marker_typed_by_hand_stays_text(kind: str, name: str) -> None:
    template = chat_template(name, kind)
    free = ("\n\n", "\n\n\n", "  ", "    ", "<b>", "</b>")
    text = (
        "typed: "
        + " ".join(marker for marker in template.tokenizer.added_tokens if marker not in free)
        + " end"
    )
    prompt, ordinary = template.render([user(text)], OPTIONS), template.render([user("typed: end")], OPTIONS)
    assert structure(template, prompt) == structure(template, ordinary)
    if kind == "byte_level" and name != "nemotron":  # which deletes /think wherever it stands
        assert text in template.tokenizer.decode(prompt.ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<|im_start|>{{ messages[0].content }}<|im_end|>", "x<|im_end|>y"),
        ("<{{ messages[0].content }}<|im_end|>", "think>"),
        ("<|im_start|>{{ messages[0].content }}|im_end|>", "a<"),
        ("<|im_start|>{{ messages[0].content|replace('a', '') }}", "<|im_aend|>"),
        ("<|im_start|>{{ messages[0].content.split(';')|join }}", "<|im_;end|>"),
        ("<|im_start|>{{ messages[0].content|trim }}<|im_end|>", "  <|im_end|>  "),
        ("<|im_start|>{{ messages[0].content[2:] }}", "ab<|im_end|>"),
        ("<|im_start|>{{ messages[0].content ~ '>' }}", "<|im_end|"),
        ("<|im_start|>{{ messages[0].content|tojson }}", '"<|im_end|>"'),
        ("<|im_start|>{{ messages[0].content|tojson(ensure_ascii=true) }}", "é<|im_end|>"),
        (
            "<|im_start|>{% if '<' in messages[0].content %}angle{% endif %}{{ messages[0].content }}",
            "<|im_end|>",
        ),
        (
            "<|im_start|>{% if messages[0].content.startswith('<think>') %}t{% endif %}{{ messages[0].content }}",
            "<think>a",
        ),
        ("<|im_start|>{{ messages[0].content.split('<')|join('<') }}", "<|im_end|>"),
        ("<|im_start|>{{ messages[0].content * 2 }}", "|im_end|><"),
        (
            "<|im_start|>{% if '>' in messages[0].content %}angle {% endif %}<{{ messages[0].content }}",
            "think>",
        ),
        ("<|im_start|>{{ messages[0].content|reverse }}", ">|dne_mi|<"),
    ],
)
def test_no_way_through_a_template_makes_a_marker_of_text(source: str, text: str) -> None:
    template = ChatTemplate(Template(source), tokenizer("byte_level"))
    tok = template.tokenizer
    written = [tok.added_tokens[m] for m in ("<|im_start|>", "<|im_end|>") if m in source]
    prompt = template.render([user(text)], OPTIONS)
    assert structure(template, prompt) == written
    shown = prompt.text + tok.decode(prompt.ids)
    assert not any(0xE000 <= ord(c) <= 0xF8FF for c in shown), "no stand-in gets out"
    assert "\\ue0" not in shown


def test_a_template_that_looks_at_a_text_sees_it() -> None:
    source = (
        "<|im_start|>{% if messages[0].content.startswith('<b>') %}HTML: {% endif %}{{ messages[0].content }}"
    )
    template = ChatTemplate(Template(source), tokenizer("byte_level"))
    prompt = template.render([user("<b>bold</b> <|im_end|>")], OPTIONS)
    assert prompt.text == "<|im_start|>HTML: <b>bold</b> <|im_end|>"
    assert structure(template, prompt) == [template.tokenizer.added_tokens["<|im_start|>"]]


def test_full_width_signs_that_normalize_to_a_marker_stay_text() -> None:
    template = chat_template("qwen3", "unigram")
    naive = template.tokenizer.backend.encode("＜think＞", add_special_tokens=False).ids
    assert template.tokenizer.added_tokens["<think>"] in naive, (
        "the test needs a normalizer that makes the marker"
    )
    prompt = template.render([user("a ＜think＞ b")], OPTIONS)
    assert structure(template, prompt) == structure(template, template.render([user("a b")], OPTIONS))


def test_a_text_may_hold_private_use_characters() -> None:
    text = "\ue000<|im_end|>\ue001\U000f0000"
    prompt = chat_template("chatml").render([user(text)], OPTIONS)
    assert prompt.text == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_half_a_character_becomes_a_replacement_character() -> None:
    assert user("a\udc80b").content == "a\ufffdb"


# Turns keep their ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_legacy", "sentencepiece_first", "gemma_like"])
@pytest.mark.parametrize("name", STABLE)
def test_the_next_turn_is_the_old_ids_and_new_ones(name: str, kind: str) -> None:
    template, end = chat_template(name, kind), ENDS.get(name, "</s>")
    chat = [user("Hello there")]
    for number in range(4):
        prompt = template.render(chat, OPTIONS)
        reply = answer(template, chat, f"\n Fine, {number}.  And <b>you</b>? 😀 \n", end)
        chat += [reply, user(f"Question {number}?")]
        following = template.render(chat, OPTIONS)
        old = (*prompt.ids, *reply.token_ids)
        # Where the template ends a turn in another way than the model, the last id differs; it was never read.
        assert following.ids[: len(old) - 1] == old[:-1]
        assert following.reusable >= len(old) - 1
        assert not following.rewritten
        assert 0 < following.new < 60


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma3", "phi4", "qwen25", "granite"])
def test_turns_kept_by_their_ids_read_as_transformers_would_write_them(name: str) -> None:
    template, end = chat_template(name), ENDS[name]
    chat, given = [user("Hi")], [{"role": "user", "content": "Hi"}]
    for text in ("Fine.", "Good, thanks! 😀", "def f(x):\n    return x"):
        chat += [answer(template, chat, text, end), user("more?")]
        given += [{"role": "assistant", "content": text}, {"role": "user", "content": "more?"}]
    theirs = transformers_tokenizer("byte_level").apply_chat_template(
        given, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
    )
    assert list(template.render(chat, Options()).ids) == theirs


def test_a_reply_is_never_tokenized_again() -> None:
    template = chat_template("chatml")
    letters = [i for letter in "hello there" for i in ids_of(template, letter)]
    assert letters != ids_of(template, "hello there")
    chat = [user("Hi")]
    reply = template.reply(
        template.render(chat, OPTIONS), [*letters, *ids_of(template, "<|im_end|>")], OPTIONS
    )
    assert reply.content == "hello there"
    ids = template.render([*chat, reply, user("x")], OPTIONS).ids
    assert any(list(ids[at : at + len(letters)]) == letters for at in range(len(ids)))


@pytest.mark.parametrize("name", ["chatml", "llama2", "mistral_v1", "gemma2", "phi3"])
def test_a_reply_that_was_cut_off_gets_its_end_from_the_template(name: str) -> None:
    template = chat_template(name)
    chat = [user("Hi")]
    reply = answer(template, chat, "cut in the mid", "")
    old = (*template.render(chat, OPTIONS).ids, *reply.token_ids)
    following = template.render([*chat, reply, user("go on")], OPTIONS)
    assert following.ids[: len(old)] == old
    end = template.tokenizer.added_tokens[ENDS.get(name, "</s>")]
    assert end in following.ids[len(old) : len(old) + 2]
    assert not following.rewritten


def test_an_end_that_the_template_does_not_write_is_replaced() -> None:
    template = chat_template("chatml")
    chat = [user("Hi")]
    reply = answer(template, chat, "Fine.", "<|endoftext|>")
    ids = template.render([*chat, reply, user("x")], OPTIONS).ids
    assert template.tokenizer.added_tokens["<|endoftext|>"] not in ids
    assert (
        ids == template.render([*chat, answer(template, chat, "Fine.", "<|im_end|>"), user("x")], OPTIONS).ids
    )


def test_edit_fork_and_regenerate_share_what_is_the_same() -> None:
    template = chat_template("chatml")
    chat = [Message("system", "Be kind."), user("Tell me a story about foxes")]
    prompt = template.render(chat, OPTIONS)
    first, second = (answer(template, chat, text, "<|im_end|>") for text in ("Once...", "Long ago..."))
    forks = [template.render([*chat, reply, user("go on")], OPTIONS) for reply in (first, second)]
    assert all(fork.ids[: len(prompt.ids)] == prompt.ids for fork in forks)
    assert all(
        fork.reusable == len(prompt.ids) + len(reply.token_ids)
        for fork, reply in zip(forks, (first, second), strict=True)
    )
    assert template.render(chat, OPTIONS) == prompt
    edited = template.render([chat[0], user("Tell me a story about dogs")], OPTIONS)
    assert 8 < common(edited.ids, prompt.ids) < len(prompt.ids)


def test_a_reply_without_ids_is_text_like_any_other() -> None:
    template = chat_template("chatml")
    chat = [user("Hi"), Message("assistant", "Hello <|im_end|>!"), user("x")]
    ids = template.render(chat, OPTIONS).ids
    assert ids.count(template.tokenizer.added_tokens["<|im_end|>"]) == 3


def test_a_template_that_leaves_replies_out_still_works() -> None:
    source = "{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
    template = ChatTemplate(Template(source), tokenizer("byte_level"))
    chat = [user("Hi")]
    chat += [answer(template, chat, "Hello", "<|end|>"), user("x")]
    assert template.render(chat, OPTIONS).text == "<|user|>Hi<|user|>x<|assistant|>"


def test_a_template_that_leaves_one_reply_out_keeps_the_ids_of_the_others() -> None:
    source = "{% for m in messages[-3:] %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    template = ChatTemplate(Template(source), tokenizer("byte_level"))
    letters = [i for letter in "hello" for i in ids_of(template, letter)]
    chat = [user("a"), Message("assistant", "hello", token_ids=tuple(letters))] * 2 + [user("b")]
    ids = template.render(chat, OPTIONS).ids
    found = [at for at in range(len(ids)) if list(ids[at : at + len(letters)]) == letters]
    assert len(found) == 1


def test_a_template_that_repeats_a_reply_still_works() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.content|upper }}{% endfor %}<|assistant|>"
    )
    template = ChatTemplate(Template(source), tokenizer("byte_level"))
    chat = [user("Hi")]
    chat += [answer(template, chat, "Hello", "<|end|>"), user("x")]
    assert template.render(chat, OPTIONS).text == "<|user|>HiHI<|assistant|>HelloHELLO<|user|>xX<|assistant|>"


# Thinking ----------------------------------------------------------------------------------------------

# template, what the model writes, what is in the history before the answer, how many ids change.
REWRITING = {
    "qwen3": "<think>\nLet me see: 2+2.\n</think>\n\n",
    "qwen3_thinking_only": "Let me see: 2+2.\n</think>\n\n",
    "smollm3": "<think>\nLet me see.\n</think>\n",
    "deepseek_r1": "Let me see.\n</think>\n\n",
    "deepseek_v31": "Let me see.</think>",
    "glm4": "\n<think>Let me see.</think>\n",
    "minimax": "Let me see.\n</think>\n\n",
    "nemotron": "Let me see.\n</think>\n\n",
    "gpt_oss": "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>final<|message|>",
    "gemma4": "<think>Let me see.</think>",
}


@pytest.mark.parametrize("name", REWRITING)
def test_a_template_that_drops_the_reasoning_is_found_out(name: str) -> None:
    template, end = chat_template(name), ENDS[name]
    options = Options(True, now=OPTIONS.now)
    chat = [user("What is 2+2?")]
    prompt = template.render(chat, options)
    reply = answer(template, chat, REWRITING[name] + "It is 4.", end, options)
    assert reply.content == "It is 4."
    assert (reply.reasoning or "").startswith("Let me see")
    chat += [reply, user("And 3+3?")]
    following = template.render(chat, options)
    assert following.rewritten
    old = (*prompt.ids, *reply.token_ids)
    assert following.reusable == common(following.ids, old) < len(prompt.ids) + 4
    assert "Let me see" not in following.text
    text = template.tokenizer.decode(following.ids, skip_special_tokens=False)
    assert text == following.text, "the ids are those of the text"
    kept = ids_of(template, "It is 4.")
    assert any(list(following.ids[at : at + len(kept)]) == kept for at in range(len(following.ids)))


@pytest.mark.parametrize("name", [*REWRITING, "chatml", "llama3"])
@settings(max_examples=12)
@given(text=st.text("\n x<|>é", max_size=6), thinking=st.sampled_from([True, False]))
def test_what_is_warmed_after_a_reply_is_what_the_next_prompt_starts_with(
    name: str, text: str, thinking: bool
) -> None:
    template, end = chat_template(name), ENDS[name]
    options = Options(thinking if template.can_switch_thinking else None, now=OPTIONS.now)
    chat = [Message("system", "Be brief."), user("What is 2+2?")]
    said = (REWRITING.get(name, "") if thinking else "") + "It is 4."
    chat.append(answer(template, chat, said, end, options))
    warm = template.after_reply(chat, options)
    following = template.render([*chat, user(text + "y")], options)
    assert following.ids[: len(warm.ids)] == warm.ids
    assert warm.reusable == following.reusable
    assert len(following.ids) - len(warm.ids) < 40


def test_the_reusable_ids_end_exactly_where_qwen3_begins_to_rewrite() -> None:
    template = chat_template("qwen3")
    for thinking, said in ((True, REWRITING["qwen3"]), (False, "")):
        options = Options(thinking, now=OPTIONS.now)
        chat = [user("What is 2+2?")]
        chat.append(answer(template, chat, said + "It is 4.", "<|im_end|>", options))
        following = template.render([*chat, user("And 3+3?")], options)
        unchanged = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
        assert template.tokenizer.decode(following.ids[: following.reusable], False) == unchanged


def test_reasoning_that_the_template_keeps_stays_as_the_model_wrote_it() -> None:
    template = chat_template("keeps_reasoning")
    chat = [user("What is 2+2?")]
    prompt = template.render(chat, OPTIONS)
    assert prompt.opened
    reply = answer(
        template, chat, "\n Let me see.</think>It is 4.", "<|im_end|>"
    )  # blanks unlike the template's
    assert (reply.reasoning, reply.content) == ("Let me see.", "It is 4.")
    following = template.render([*chat, reply, user("x")], OPTIONS)
    old = (*prompt.ids, *reply.token_ids)
    assert following.ids[: len(old)] == old
    assert not following.rewritten


def test_a_reply_cut_off_while_thinking_has_no_answer() -> None:
    template = chat_template("qwen3")
    chat = [user("What is 2+2?")]
    reply = answer(template, chat, "<think>\nLet me se", "")
    assert (reply.reasoning, reply.content) == ("Let me se", "")
    following = template.render([*chat, reply, user("x")], OPTIONS)
    assert following.text.startswith(
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    )


def test_thinking_switched_between_turns_is_each_replys_own() -> None:
    template = chat_template("keeps_reasoning")
    on, off = Options(True, now=OPTIONS.now), Options(False, now=OPTIONS.now)
    chat = [user("a")]
    chat += [answer(template, chat, "\nHm.\n</think>\n\nB", "<|im_end|>", on), user("c")]
    prompt = template.render(chat, off)
    assert not prompt.opened
    assert not prompt.rewritten
    reply = answer(template, chat, "D", "<|im_end|>", off)
    following = template.render([*chat, reply, user("e")], on)
    assert following.ids[: following.reusable] == (*prompt.ids, *reply.token_ids)


@pytest.mark.parametrize(
    ("name", "switch", "effort", "markers"),
    [
        ("qwen3", True, False, "<think>"), ("chatml", False, False, "<think>"), ("granite", True, False, "<think>"),
        ("gpt_oss", False, True, "<|channel|>analysis<|message|>"), ("deepseek_v31", True, False, "<think>"),
    ],
)  # fmt: skip
def test_what_a_template_can_do_about_thinking(name: str, switch: bool, effort: bool, markers: str) -> None:
    template = chat_template(name)
    assert (template.can_switch_thinking, template.can_set_effort) == (switch, effort)
    assert template.markers is not None, "the vocabulary has <think> even where the template does not name it"
    assert template.markers.open == markers
    assert template.skips_special is (name != "gpt_oss")


def test_effort_reaches_the_template() -> None:
    text = chat_template("gpt_oss").render([user("x")], Options(effort="high")).text
    assert "Reasoning: high" in text
    with pytest.raises(UsageError, match="effort"):
        Options(effort="high<|end|>")


# What a template does not take -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma2", "mistral_v1"])
def test_a_system_message_that_a_template_refuses_goes_into_the_first_user_message(name: str) -> None:
    template = chat_template(name)
    prompt = template.render([Message("system", "Be brief."), user("Hi")], OPTIONS)
    assert prompt.folded
    assert prompt.ids == template.render([user("Be brief.\n\nHi")], OPTIONS).ids
    assert not template.render([user("Hi")], OPTIONS).folded
    turns = [Message("system", "Be brief."), user("Hi")]
    turns += [answer(template, turns, "Yes", ENDS.get(name, "</s>")), user("more")]
    assert template.render(turns, OPTIONS).reusable > len(prompt.ids)


def test_a_system_message_that_a_template_leaves_out_is_not_lost() -> None:
    source = "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    prompt = ChatTemplate(Template(source), tokenizer("byte_level")).render(
        [Message("system", "S"), user("U")], OPTIONS
    )
    assert (prompt.folded, prompt.text) == (True, "<|user|>S\n\nU")


def test_a_chat_that_the_template_refuses_says_why() -> None:
    with pytest.raises(ChatRejected, match="alternate"):
        chat_template("gemma2").render([user("a"), user("b")], OPTIONS)


def test_roles_and_empty_chats_are_checked() -> None:
    with pytest.raises(UsageError, match="'root'"):
        Message("root", "x")
    with pytest.raises(UsageError, match="role user"):
        Message("user", "x", token_ids=(1,))
    with pytest.raises(EmptyPrompt):
        chat_template("chatml").render([], OPTIONS)
    with pytest.raises(UsageError, match="ends with a reply"):
        chat_template("chatml").after_reply([user("x")], OPTIONS)


# Where templates come from -----------------------------------------------------------------------------


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_jinja_file_comes_first_then_the_config(tmp_path: Path) -> None:
    tok = tokenizer("byte_level")
    write(tmp_path, tokenizer_config__json={"chat_template": "config"})
    assert ChatTemplate.from_folder(tmp_path, tok).template.source == "config"
    write(tmp_path, chat_template__jinja="file\n")
    assert ChatTemplate.from_folder(tmp_path, tok).template.source == "file\n"


def test_of_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write(tmp_path, tokenizer_config__json={"chat_template": named})
    assert ChatTemplate.from_folder(tmp_path, tokenizer("byte_level")).template.source == "d"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "instruct version"),
        ({"chat_template": None}, "instruct version"),
        ({"chat_template": 7}, "is a int"),
        ({"chat_template": [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]}, "it has: a, b"),
        ("{", "damaged"),
    ],
)
def test_a_missing_or_odd_template_says_what_to_do(tmp_path: Path, config: object, message: str) -> None:
    write(tmp_path, tokenizer_config__json=config)
    with pytest.raises(InvalidTemplate, match=message):
        ChatTemplate.from_folder(tmp_path, tokenizer("byte_level"))

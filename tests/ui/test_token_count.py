"""What the context meter says of a chat whose end no engine counted."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_corpus import TEMPLATES
from fake_engine import MODEL, FakeEngine, FakeLanguage
from stage import on_stage
from tokenizer_kinds import backend_json
from tokenizers import Tokenizer as Backend

from nanochat.engine.tokenizer import Tokenizer
from nanochat.history import History
from nanochat.prompt import ChatTemplate
from nanochat.storage.records import Message, Role, Status, Tab
from nanochat.templating.template import Template
from nanochat.ui.language import Language


def left_by_a_kill(home: Path, *, turns: int = 0) -> None:
    """An open tab with whole turns, a question of two words and three words of a reply that nobody ended."""
    with History.open(home / "data" / "chats") as history:
        chat = history.chats.create().id
        for _ in range(turns):
            asked = history.messages.add(chat, Role.USER, "one two")
            reply = history.replies.begin(chat, asked.id, model=MODEL.name)
            figures = {"prompt_tokens": 300, "output_tokens": 50}
            history.replies.finish(reply.id, Status.DONE, "one two three", metrics=figures)
        asked = history.messages.add(chat, Role.USER, "one two")
        reply = history.replies.begin(chat, asked.id, model=MODEL.name)
        history.replies.checkpoint(reply.id, "one two three", token_ids=(1, 2, 3))
        history.tabs.save([Tab(chat, active=True)])


async def test_after_a_kill_the_meter_counts_the_restored_chat(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path)
    async with on_stage(tmp_path) as stage:
        await stage.until(lambda: "ctx 13/1.0k" in stage.status)  # 2 + 4 and 3 + 4
        assert stage.statuses() == ["done", "interrupted"]


async def test_what_was_counted_before_the_kill_is_not_all_there_is(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path, turns=1)
    async with on_stage(tmp_path) as stage:
        await stage.until(lambda: "ctx 26/1.0k" in stage.status)


async def test_the_meter_counts_when_the_model_comes_after_the_chat(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path)
    async with on_stage(tmp_path, FakeEngine(load_at_once=False)) as stage:
        await stage.until(lambda: stage.engine.loads)
        assert "ctx 13" not in stage.status
        stage.engine.finish_load()
        await stage.until(lambda: "ctx 13/1.0k" in stage.status)


async def test_a_chat_in_another_tab_is_counted_when_it_is_shown(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path)
    with History.open(tmp_path / "data" / "chats") as history:
        tabs = history.tabs.restore()
        history.tabs.save([Tab(None, "a draft", active=True), *(Tab(tab.chat) for tab in tabs)])
    async with on_stage(tmp_path) as stage:
        await stage.until(lambda: "ctx 0/1.0k" in stage.status)
        await stage.press("alt+2")
        await stage.until(lambda: "ctx 13/1.0k" in stage.status)


async def test_what_the_engine_counted_stays(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as stage:
        await stage.ask("one two")
        assert (
            "ctx 9/1.0k" in stage.status
        )  # 2 + 4 and the reply's 3; the tokenizer would add the reply's turn
        await stage.press("ctrl+t", "alt+1")
        await stage.app.tokens._show_chat()
        assert "ctx 9/1.0k" in stage.status


async def test_a_chat_is_counted_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def tokens(self: FakeLanguage, messages: Sequence[Message], **how: Any) -> int:
        threads.append(threading.current_thread())
        return 13

    monkeypatch.setattr(FakeLanguage, "tokens", tokens)
    left_by_a_kill(tmp_path)
    async with on_stage(tmp_path) as stage:
        await stage.until(lambda: "ctx 13/1.0k" in stage.status)
        assert threading.main_thread() not in threads


@pytest.mark.parametrize("template", ["smollm2", "llama3", "gemma3"])
def test_a_language_counts_a_chat_as_the_next_prompt_will_have_it(template: str) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer(Backend.from_str(backend_json("byte_level")), names)
    language = Language(MODEL, tokenizer, ChatTemplate(Template(TEMPLATES[template]), tokenizer))
    how: dict[str, Any] = {"system_prompt": "Be brief.", "thinking": None, "started": 1e9}

    def said(role: Role, text: str) -> Message:
        return Message(id=text, parent="", role=role, content=text)

    asked = [said(Role.USER, "How are you?")]
    assert language.tokens(asked, **how) == len(language.prompt(asked, **how).ids)
    answered = [*asked, said(Role.ASSISTANT, "I am well.")]
    again = [*answered, said(Role.USER, "And now?")]
    assert language.tokens(asked, **how) < language.tokens(answered, **how) < language.tokens(again, **how)
    assert language.tokens([], **(how | {"system_prompt": ""})) == 0


@pytest.mark.parametrize("merged", [False, True], ids=["answered", "stopped before the first token"])
def test_the_fewest_of_the_oldest_messages_go_also_where_a_message_has_no_reply(merged: bool) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer(Backend.from_str(backend_json("byte_level")), names)
    language = Language(MODEL, tokenizer, ChatTemplate(Template(TEMPLATES["smollm2"]), tokenizer))
    how: dict[str, Any] = {"system_prompt": "Be brief.", "thinking": None, "started": 1e9}
    messages: list[Message] = []
    for number in range(4):
        for role, text in ((Role.USER, f"Question {number} " + "word " * 20), (Role.ASSISTANT, "Answer.")):
            content = "" if merged and role is Role.ASSISTANT else text
            messages.append(Message(id=f"{role}{number}", parent="", role=role, content=content))
    messages.append(Message(id="last", parent="", role=Role.USER, content="last"))

    def needed(first: int) -> int:
        return len(language.prompt(messages[first:], **how).ids)

    starts = [0, 2, 4, 6, 8]
    for first in starts:
        assert language.first_kept(messages, needed(first), **how) == first
    for first, later in itertools.pairwise(starts):
        assert language.first_kept(messages, needed(first) - 1, **how) == later
    assert language.first_kept(messages, needed(8) - 1, **how) is None
    assert language.first_kept(messages[-1:], needed(8) - 1, **how) is None

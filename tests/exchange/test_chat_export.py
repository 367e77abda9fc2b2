"""Chats out and in: JSON with the same ids, Markdown with the same texts, other programs' exports, damaged files."""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.errors import ChatImportError
from nanochat.exchange.bundle import ChatBundle
from nanochat.exchange.json_file import to_json
from nanochat.exchange.markdown_file import from_markdown, to_markdown
from nanochat.exchange.planting import Turn, plant
from nanochat.exchange.reading import MAX_FILE_BYTES, from_json_text, read_chats
from nanochat.history import History
from nanochat.storage.records import Role, Status, storable

FIXED = settings(max_examples=40, suppress_health_check=list(HealthCheck))
TEXT = st.text(max_size=40).map(storable) | st.text(alphabet='\\#\n `-<>!"ab', max_size=60)
MARK_LIKE = st.sampled_from(
    [
        "## User <!-- nanochat -->",
        "\\## Assistant <!-- nanochat {} -->\n",
        "### Answer <!-- nanochat -->",
        "---\n",
        "\r\n",
        "-->",
    ]
)
CONTENT = st.lists(TEXT | MARK_LIKE, max_size=3).map("".join)
JSON_VALUES = st.dictionaries(
    st.text(max_size=8).map(storable),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8).map(storable) | st.lists(st.integers(0, 9), max_size=3),
    max_size=3,
)  # fmt: skip


@st.composite
def trees(draw: st.DrawFn, *, linear: bool = False) -> ChatBundle:
    """A chat of any shape with any texts."""
    times = st.floats(0, 4e9, allow_nan=False)
    turns: list[Turn] = []
    for place in range(draw(st.integers(1, 6))):
        parent = place - 1 if linear else draw(st.integers(-1, place - 1))
        role = draw(st.sampled_from([Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL]))
        turns.append(
            Turn(
                role=role, content=draw(CONTENT), parent=None if parent < 0 else parent, created=draw(times),
                reasoning=draw(CONTENT), model=draw(TEXT), status=draw(st.sampled_from(list(Status))), error=draw(TEXT),
                params=draw(JSON_VALUES), metrics=draw(JSON_VALUES),
            )
        )  # fmt: skip
    head = len(turns) - 1 if linear else draw(st.integers(0, len(turns) - 1))
    # Each time another id: the examples share two histories.
    return plant(
        secrets.token_hex(8), draw(TEXT), turns, head=head, created=draw(times), updated=draw(times),
        settings=draw(JSON_VALUES),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[History, History]]:
    """Two histories that have nothing to do with each other; each example brings chats of its own."""
    folder = tmp_path_factory.mktemp("json")
    with History.open(folder / "first") as first, History.open(folder / "second") as second:
        yield first, second
        assert first.check() == second.check() == ()


@FIXED
@given(bundles=st.lists(trees(), min_size=1, max_size=2))
def test_json_gives_back_the_same_chats_with_the_same_ids(
    pair: tuple[History, History], bundles: list[ChatBundle]
) -> None:
    first, second = pair
    first.take_in(bundles)
    out = [first.bundle(bundle.id) for bundle in bundles]
    back = from_json_text(to_json(out))
    assert list(back) == out == list(from_json_text(to_json(out, ascii_only=True)))
    done = second.take_in(back)
    assert (done.new_chats, done.new_messages) == (len(out), sum(len(each.messages) - 1 for each in out))
    assert [second.bundle(bundle.id) for bundle in out] == out
    again = second.take_in(back)
    assert (again.new_chats, again.new_messages) == (0, 0)
    assert [second.bundle(bundle.id) for bundle in out] == out


@FIXED
@given(bundle=trees(linear=True))
def test_markdown_gives_back_the_same_texts_as_a_new_chat(bundle: ChatBundle) -> None:
    (back,) = from_markdown(to_markdown(bundle))
    wrote, read = bundle.path(), back.path()
    assert [(m.role, m.content, m.reasoning, m.created) for m in read] == [
        (m.role, m.content, m.reasoning, m.created) for m in wrote
    ]
    replies = [(m.model, m.status) for m in wrote if m.role is Role.ASSISTANT]
    assert [(m.model, m.status) for m in read if m.role is Role.ASSISTANT] == replies
    assert back.title == bundle.title and back.settings == bundle.settings and back.id != bundle.id


def conversation(history: History) -> str:
    chat = history.chats.create(settings={"system_prompt": "Be brief."}).id
    question = history.messages.add(chat, Role.USER, "Why is the sky blue?\n\tReally?")
    for text in ("Rayleigh.", "Scattering."):
        running = history.replies.begin(chat, question.id, model="org/tiny", params={"seed": 1})
        history.replies.finish(
            running.id, Status.DONE, text, reasoning="light…", token_ids=(1, 2), metrics={"ttft": 0.25}
        )
    history.messages.drop_before(chat, question.id, 2)
    history.chats.pin(chat)
    return chat


def half_way(history: History, *, stored: str = "") -> str:
    """A chat whose reply is being written; with `stored`, it goes on from a reply that was stopped."""
    chat = history.chats.create().id
    question = history.messages.add(chat, Role.USER, "Why is the sky blue?")
    if stored:
        stopped = history.replies.begin(chat, question.id, model="org/tiny")
        history.replies.finish(stopped.id, Status.STOPPED, stored, token_ids=(1, 2))
    running = history.replies.begin(chat, question.id, model="org/tiny", content=stored)
    history.replies.checkpoint(running.id, f"{stored}Light", reasoning="waves", token_ids=(1, 2, 3))
    return chat


@pytest.mark.parametrize("stored", ["", "Because. "])
def test_a_reply_that_is_being_written_is_exported_with_its_text_so_far(
    history: History, tmp_path: Path, stored: str
) -> None:
    bundle = history.bundle(half_way(history, stored=stored))
    texts = {"md": to_markdown(bundle), "json": to_json([bundle])}
    for kind, text in texts.items():
        path = tmp_path / f"chat.{kind}"
        path.write_text(text, encoding="utf-8")
        with History.open(tmp_path / kind) as other:
            (chat,) = other.take_in(read_chats(path)).chats
            reply = other.messages.open(chat).messages[-1]
            assert (reply.role, reply.content, reply.reasoning, reply.model, reply.status) == (
                Role.ASSISTANT, f"{stored}Light", "waves", "org/tiny", Status.INTERRUPTED,
            )  # fmt: skip
            assert reply.variants == (2 if stored and kind == "json" else 1) and other.check() == ()
    assert history.messages.open(bundle.id).running[0].content == f"{stored}Light"


def test_a_reply_without_a_word_yet_and_one_elsewhere_do_not_change_where_an_export_stands(
    history: History,
) -> None:
    chat = half_way(history, stored="Because. ")
    stopped = next(m for m in history.bundle(chat).messages if m.status is Status.STOPPED)
    history.messages.go(chat, stopped.id)
    bundle = history.bundle(chat)
    assert to_markdown(bundle).count("## Assistant") == 1 and "Light" not in to_markdown(bundle)
    assert "Light" in to_json([bundle])
    history.replies.begin(chat, history.messages.add(chat, Role.USER, "And at night?").id, model="org/tiny")
    assert history.bundle(chat).with_unfinished().path()[-1].content == "And at night?"


def test_markdown_is_readable_and_its_front_matter_is_yaml(history: History) -> None:
    yaml = pytest.importorskip("yaml")
    chat = conversation(history)
    history.chats.rename(chat, 'A "title": with \x9b colons # and 漢字')
    text = to_markdown(history.bundle(chat))
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert (
        values["title"] == 'A "title": with \x9b colons # and 漢字'
        and "漢字" in front
        and "\x9b" not in front
    )
    assert values["settings"] == {"system_prompt": "Be brief."} and values["nanochat"] == 1
    assert (
        "\nWhy is the sky blue?\n\tReally?\n" in body and "\nScattering.\n" in body and "Rayleigh" not in body
    )


def test_no_value_ends_a_comment_of_the_markdown() -> None:
    turn = Turn(
        role=Role.ASSISTANT,
        content="x",
        parent=None,
        created=1.0,
        model="a --> <b>",
        status=Status.FAILED,
        error="-->",
    )
    bundle = plant("a" * 16, "-->", [turn], head=0, created=1.0, updated=1.0)
    text = to_markdown(bundle)
    assert text.split("---\n", 2)[2].count("-->") == 1
    (read,) = from_markdown(text)[0].path()
    assert (read.model, read.error) == ("a --> <b>", "-->")


def test_markdown_edited_by_hand_is_read(history: History) -> None:
    text = "---\nnanochat: 1\ntitle: My chat\n---\n"
    text += "## User <!-- nanochat -->\nHi\n## Assistant <!-- nanochat -->\nHello\n"
    text = text.replace("\n", "\r\n")
    done = history.take_in(from_markdown(text))
    assert history.chats.get(done.chats[0]).title == "My chat"
    read = history.messages.open(done.chats[0]).messages
    assert [(m.role, m.content) for m in read] == [(Role.USER, "Hi"), (Role.ASSISTANT, "Hello")]


def test_everything_of_a_chat_survives_the_trip_through_json(history: History, tmp_path: Path) -> None:
    chat = conversation(history)
    bundle = history.bundle(chat)
    with History.open(tmp_path / "other") as other:
        other.take_in(from_json_text(to_json([bundle])))
        assert other.bundle(chat) == bundle
        there, here = other.messages.open(chat), history.messages.open(chat)
        assert there.messages == here.messages and there.dropped == here.dropped
        assert (there.chat.title, there.chat.pinned, there.chat.head) == (
            here.chat.title,
            True,
            here.chat.head,
        )
        assert other.messages.variants(chat, there.messages[1].id)[0].content == "Rayleigh."


def test_importing_a_chat_that_went_on_elsewhere_merges_and_moves_on(
    history: History, tmp_path: Path
) -> None:
    chat = conversation(history)
    with History.open(tmp_path / "laptop") as laptop:
        laptop.take_in([history.bundle(chat)])
        more = laptop.messages.add(chat, Role.USER, "And at night?")
        back = laptop.bundle(chat)
    done = history.take_in([back])
    assert (done.new_chats, done.new_messages) == (0, 1)
    assert history.messages.open(chat).messages[-1].id == more.id


def test_a_merge_does_not_move_a_chat_that_stands_elsewhere(history: History, tmp_path: Path) -> None:
    chat = conversation(history)
    old = history.bundle(chat)
    mine = history.messages.add(chat, Role.USER, "mine")
    with History.open(tmp_path / "laptop") as laptop:
        laptop.take_in([old])
        laptop.messages.add(chat, Role.USER, "theirs")
        history.take_in([laptop.bundle(chat)])
    (shown,) = [m for m in history.messages.open(chat).messages if m.role is Role.USER][1:]
    assert (shown.id, shown.variant, shown.variants) == (mine.id, 1, 2)


def test_an_import_brings_back_a_deleted_chat(history: History) -> None:
    chat = conversation(history)
    bundle = history.bundle(chat)
    history.messages.hide(chat, bundle.messages[1].id)
    history.chats.delete(chat)
    history.take_in([bundle])
    assert history.chats.list()[0].id == chat and history.bundle(chat) == bundle


def test_forks_share_their_messages_after_the_trip_too(history: History, tmp_path: Path) -> None:
    chat = conversation(history)
    fork = history.chats.fork(chat, history.messages.open(chat).messages[0].id).id
    history.messages.add(fork, Role.USER, "in the fork")
    with History.open(tmp_path / "other") as other:
        done = other.take_in([history.bundle(chat), history.bundle(fork)])
        assert done.new_messages == 4
        assert [m.content for m in other.messages.open(fork).messages][1:] == ["in the fork"]


def damage(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def apply(chat: dict[str, Any]) -> None:
        chat["messages"][1].update(changes)

    return apply


@pytest.mark.parametrize(
    "change",
    [
        damage(content="forged"), damage(id="0" * 64), damage(parent="0" * 64), damage(parent=None), damage(nonce="zz"),
        damage(role="root"), damage(role="admin"), damage(status="running"), damage(token_ids=[-1]),
        damage(token_ids=[2**31]), damage(token_ids=["x"]), damage(token_ids=[True]), damage(created=float("nan")),
        damage(created=1e300), damage(created="now"), damage(content=None), damage(content="\ud800"), damage(params=[]),
        damage(params={"a": json.loads("[" * 40 + "]" * 40)}), damage(nonce="00" * 9),
        lambda chat: chat.update(id="../../etc"), lambda chat: chat.update(head="f" * 64),
        lambda chat: chat.update(messages=[]), lambda chat: chat.update(messages=chat["messages"][1:]),
        lambda chat: chat.update(messages=chat["messages"][::-1]), lambda chat: chat.update(messages={}),
        lambda chat: chat.update(settings=None), lambda chat: chat.update(title=5), lambda chat: chat.pop("dropped"),
        lambda chat: chat.update(dropped=[{"first_kept": "e" * 64, "turns": 1, "created": 0}]),
        lambda chat: chat.update(dropped=[{"first_kept": chat["head"], "turns": -1, "created": 0}]),
    ],
)  # fmt: skip
def test_a_forged_or_damaged_json_is_refused_whole(
    history: History, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    good, bad = conversation(history), conversation(history)
    data = json.loads(to_json([history.bundle(good), history.bundle(bad)]))
    change(data["chats"][1])
    with History.open(tmp_path / "other") as other:
        with pytest.raises(ChatImportError):
            other.take_in(from_json_text(json.dumps(data)))
        assert other.chats.list() == () and other.check() == ()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "null", '"x"', "{}", "[" * 100_000, '{"format": "nanochat chats"}', "[{}]", "9" * 5000,
        '{"format": "nanochat chats", "version": 99, "chats": []}', '{"format": "nanochat chats", "version": 1}',
        '{"format": "nanochat chats", "version": 1, "chats": [1]}',
        '{"format": "nanochat chats", "version": true, "chats": 3}',
    ],
)  # fmt: skip
def test_text_that_is_no_export_is_refused_in_words(text: str) -> None:
    with pytest.raises(ChatImportError):
        from_json_text(text)


def test_a_newer_export_says_so() -> None:
    with pytest.raises(ChatImportError, match=r"version 99.*Update nanochat"):
        from_json_text('{"format": "nanochat chats", "version": 99, "chats": []}')


@pytest.mark.parametrize(
    "text",
    [
        "---\n", "---\nnanochat: 1\n---\n",
        "---\nnanochat: 2\n---\n## User <!-- nanochat -->\nx\n", "---\na: 1\n---\nx",
        "---\nnanochat: 1\n---\n## Root <!-- nanochat -->\nx\n",
        "---\nnanochat: 1\n---\n## Nobody <!-- nanochat -->\nx\n",
        '---\nnanochat: 1\n---\n## User <!-- nanochat {"status": 7} -->\nx\n',
    ],
)  # fmt: skip
def test_markdown_that_is_no_chat_is_refused_in_words(text: str) -> None:
    with pytest.raises(ChatImportError):
        from_markdown(text)


@given(st.text(max_size=200), st.booleans())
def test_no_text_makes_an_import_fail_but_in_words(text: str, front: bool) -> None:
    for read in (from_json_text, from_markdown):
        with suppress(ChatImportError):
            read(("---\nnanochat: 1\n---\n## User <!-- nanochat -->\n" if front else "") + text)


def test_files_are_bounded_and_told_apart_by_their_content(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path, words in (
        (huge, "at most 256 MiB"), (tmp_path / "missing", "cannot be read"), (tmp_path, "not a file"),
        (tmp_path / "export.zip", "conversations.json"), (tmp_path / "latin", "UTF-8"),
    ):  # fmt: skip
        if path.name == "export.zip":
            path.write_bytes(b"PK\x03\x04rest")
        if path.name == "latin":
            path.write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(ChatImportError, match=words):
            read_chats(path)


# --- ChatGPT


def node(
    name: str, parent: str | None, role: str = "user", text: str | None = None, **message: Any
) -> dict[str, Any]:
    content = message.pop("content", {"content_type": "text", "parts": [text]})
    body = None if text is None and "author" not in message and content.get("parts") == [None] else {
        "id": name, "author": {"role": role}, "content": content, "create_time": 5.5, "recipient": "all", **message,
    }  # fmt: skip
    return {"id": name, "parent": parent, "children": [], "message": body}


def export(*nodes: dict[str, Any], current: str = "", **values: Any) -> list[dict[str, Any]]:
    mapping = {each["id"]: each for each in nodes}
    for each in nodes:
        if each["parent"] in mapping:
            mapping[each["parent"]]["children"].append(each["id"])
    head = current or nodes[-1]["id"]
    return [{"title": "T", "create_time": 1.5, "update_time": 2.5, "conversation_id": "c-1", "mapping": mapping,
             "current_node": head, **values}]  # fmt: skip


def read(data: object) -> ChatBundle:
    (bundle,) = from_json_text(json.dumps(data))
    return bundle


def test_chatgpt_conversations_come_with_their_branches_and_models() -> None:
    bundle = read(
        export(
            node("root", None), node("s", "root", "system", ""), node("q", "s", "user", "2+2?"),
            node("a1", "q", "assistant", "5", metadata={"model_slug": "gpt-4"}), node("a2", "q", "assistant", "4"),
            node("q2", "a1", "user", "sure?"), current="a2",
        )
    )  # fmt: skip
    assert [m.content for m in bundle.path()] == ["2+2?", "4"]
    by_text = {m.content: m for m in bundle.messages}
    assert by_text["5"].model == "gpt-4" and by_text["sure?"].parent == by_text["5"].id
    assert by_text["5"].parent == by_text["4"].parent == by_text["2+2?"].id
    assert (bundle.title, bundle.created, bundle.updated, by_text["4"].created) == ("T", 1.5, 2.5, 5.5)


def test_chatgpt_thoughts_become_reasoning_and_tools_are_left_out() -> None:
    thoughts = {
        "content_type": "thoughts",
        "thoughts": [{"summary": "Plan", "content": "add"}, {"summary": "", "content": ""}],
    }
    image = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
    bundle = read(
        export(
            node("q", None, "user", content={"content_type": "multimodal_text", "parts": [image, "What is it?"]}),
            node("h", "q", "user", "hidden", metadata={"is_visually_hidden_from_conversation": True}),
            node("t", "h", "assistant", content=thoughts),
            node("r", "t", "assistant", content={"content_type": "reasoning_recap", "content": "Thought for 5s"}),
            node("a", "r", "assistant", "Let me look."),
            node("call", "a", "assistant", content={"content_type": "code", "text": "search()"}, recipient="browser"),
            node("out", "call", "tool", "42 results"),
            node("b", "out", "assistant", "A cat."),
        )
    )  # fmt: skip
    question, answer = bundle.path()
    assert question.content == "[image_asset_pointer]\n\nWhat is it?"
    assert (answer.content, answer.reasoning) == ("Let me look.\n\nA cat.", "Plan\nadd")


def test_chatgpt_answers_on_two_branches_are_not_joined() -> None:
    bundle = read(
        export(
            node("q", None, "user", "q"), node("a", "q", "assistant", "first"), node("t1", "a", "tool", "x"),
            node("b1", "t1", "assistant", "left"), node("t2", "a", "tool", "y"), node("b2", "t2", "assistant", "right"),
        )
    )  # fmt: skip
    assert [m.content for m in bundle.messages[1:]] == ["q", "first", "left", "right"]
    assert [m.content for m in bundle.path()] == ["q", "first", "right"]


def test_importing_a_grown_chatgpt_export_again_adds_only_what_is_new(history: History) -> None:
    nodes = [node("q", None, "user", "one"), node("a", "q", "assistant", "1")]
    first = history.take_in([read(export(*nodes))])
    for each in nodes:
        each["children"] = []
    again = history.take_in([read(export(*nodes, node("q2", "a", "user", "two")))])
    assert (first.new_messages, again.new_chats, again.new_messages) == (2, 0, 1)
    assert [m.content for m in history.messages.open(again.chats[0]).messages] == ["one", "1", "two"]


def test_a_chatgpt_mapping_in_a_circle_is_refused() -> None:
    data = export(node("q", None, "user", "q"), node("a", "b", "user", "a"), node("b", "a", "user", "b"))
    with pytest.raises(ChatImportError, match="circle"):
        read(data)


def test_a_deep_chatgpt_conversation_is_read(history: History) -> None:
    nodes = [node("0", None, "user", "0")] + [
        node(str(n), str(n - 1), "user" if n % 2 == 0 else "assistant", str(n)) for n in range(1, 3000)
    ]
    done = history.take_in([read(export(*nodes))])
    assert len(history.messages.open(done.chats[0]).messages) == 3000


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["message", "parent", "children", "author", "role", "content", "content_type", "parts", "a"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), ANYTHING, max_size=3), ANYTHING, ANYTHING)
def test_any_values_in_a_chatgpt_export_are_read_or_refused(mapping: Any, title: Any, when: Any) -> None:
    data = {"mapping": mapping, "title": title, "create_time": when, "current_node": title}
    with suppress(ChatImportError):
        from_json_text(json.dumps([data]))


# --- llm


def llm_database(path: Path) -> Path:
    with sqlite3.connect(path) as database:
        database.executescript(
            """
            CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);
            CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT, prompt_json TEXT,
                options_json TEXT, response TEXT, response_json TEXT, conversation_id TEXT,
                duration_ms INTEGER, datetime_utc TEXT, input_tokens INTEGER, output_tokens INTEGER);
            INSERT INTO conversations VALUES ('c1', 'Sky', 'gpt-4o');
            INSERT INTO responses (id, model, prompt, system, options_json, response, conversation_id, datetime_utc,
                output_tokens) VALUES
                ('r2', 'gpt-4o', 'At night?', NULL, '{}', 'Dark.', 'c1', '2025-01-02T00:00:01+00:00', 2),
                ('r1', 'gpt-4o', 'Why blue?', 'Be brief.', '{"temperature": 0.5}', 'Rayleigh.', 'c1',
                 '2025-01-02T00:00:00', 3),
                ('r3', 'tiny', 'alone', NULL, 'not json', NULL, NULL, 'never', NULL);
            """
        )
    database.close()
    return path


def test_llms_database_gives_its_conversations(history: History, tmp_path: Path) -> None:
    path = llm_database(tmp_path / "logs.db")
    before = path.read_bytes()
    bundles = {bundle.title: bundle for bundle in read_chats(path)}
    assert bundles.keys() == {"Sky", "alone"}
    sky = bundles["Sky"].path()
    assert [m.content for m in sky] == ["Why blue?", "Rayleigh.", "At night?", "Dark."]
    assert (sky[1].model, sky[1].params, sky[1].metrics) == (
        "gpt-4o",
        {"temperature": 0.5},
        {"output_tokens": 3},
    )
    assert bundles["Sky"].settings == {"system_prompt": "Be brief."} and sky[0].created == 1735776000.0
    first, again = history.take_in(read_chats(path)), history.take_in(read_chats(path))
    assert (first.new_chats, first.new_messages, again.new_chats, again.new_messages) == (2, 6, 0, 0)
    assert path.read_bytes() == before and history.search("Rayleigh")


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE other (id)", "CREATE TABLE responses (id, prompt)",
        "CREATE VIEW responses AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i FROM n) "
        "SELECT i AS id, i AS prompt, i AS response, i AS conversation_id FROM n",
        "CREATE VIRTUAL TABLE responses USING fts5 (id, prompt, response, conversation_id)",
    ],
)  # fmt: skip
def test_a_database_that_is_not_llms_is_refused(tmp_path: Path, schema: str) -> None:
    with sqlite3.connect(tmp_path / "logs.db") as database:
        database.execute(schema)
    database.close()
    with pytest.raises(ChatImportError, match="not llm's"):
        read_chats(tmp_path / "logs.db")


def test_a_damaged_llm_database_is_read_right_or_refused(tmp_path: Path) -> None:
    whole = llm_database(tmp_path / "logs.db").read_bytes()
    chance, refused = random.Random(3), 0
    path = tmp_path / "broken.db"
    for _ in range(60):
        broken = bytearray(whole[: chance.randrange(100, len(whole))] if chance.random() < 0.5 else whole)
        broken[chance.randrange(16, len(broken))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        try:
            read_chats(path)
        except ChatImportError:
            refused += 1
    assert refused > 20


def test_an_import_that_fails_in_the_middle_leaves_nothing(history: History) -> None:
    good = plant(
        "a" * 16,
        "good",
        [Turn(role=Role.USER, content="x", parent=None, created=1.0)],
        head=0,
        created=1.0,
        updated=1.0,
    )
    with history.database.write() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    big = plant(
        "b" * 16, "big", [Turn(role=Role.USER, content="y" * 500_000, parent=None, created=1.0)],
        head=0, created=1.0, updated=1.0,
    )  # fmt: skip
    with pytest.raises(Exception, match="No space"):
        history.take_in([good, big])
    with history.database.write() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    assert history.chats.list() == () and history.check() == ()
    assert history.take_in([good, replace(big, title="later")]).new_chats == 2

"""The one registry: keys, slash commands, palette and help say the same."""

from __future__ import annotations

import pytest
from textual.widgets import TextArea

from nanochat.ui.actions import NO_KEY, Action, Registry, key_name, keys_of
from nanochat.ui.commands import REGISTRY
from nanochat.ui.keymap import as_textual, first_key, unknown
from nanochat.ui.screens.help import help_page
from nanochat.ui.screens.models import ModelsScreen
from nanochat.ui.widgets.chat_panel import ChatPanel
from nanochat.ui.widgets.model_list import ModelList
from nanochat.ui.widgets.prompt_box import PromptBox
from nanochat.ui.widgets.sidebar import ChatList
from nanochat.ui.widgets.transcript import Transcript

# What terminals do not send, or send as something else, and what tmux and screen keep for themselves.
UNSENT = {
    "ctrl+i",
    "ctrl+m",
    "ctrl+h",
    "ctrl+left_square_bracket",
    "ctrl+tab",
    "shift+enter",
    "ctrl+b",
    "ctrl+a",
    "ctrl+s",
}


def keys(action: Action) -> list[str]:
    return [key for key in action.keys.split(",") if key]


def test_every_action_can_be_reached_without_a_chord_that_terminals_do_not_send() -> None:
    for action in REGISTRY:
        reachable = [key for key in keys(action) if key not in UNSENT]
        assert reachable or action.slash or not action.keys, action.id


def test_no_two_actions_share_a_key() -> None:
    every = [key for action in REGISTRY for key in keys(action)]
    assert len(every) == len(set(every))


def test_the_sidebars_key_is_not_one_of_tmux_or_screen() -> None:
    assert {"ctrl+b", "ctrl+a"}.isdisjoint(keys(REGISTRY["chats.sidebar"]))


def test_a_key_that_the_text_field_has_for_itself_goes_first() -> None:
    taken = {key for binding in TextArea.BINDINGS for key in binding.key.split(",")}  # type: ignore[union-attr]
    for action in REGISTRY:
        if taken & set(keys(action)):
            assert action.priority, action.id


def test_every_binding_has_an_id_so_that_it_can_be_remapped() -> None:
    for widget in (PromptBox, Transcript, ChatList, ChatPanel, ModelsScreen, ModelList):
        for binding in widget.BINDINGS:
            assert binding.id, binding  # type: ignore[union-attr]
    for scope in ("app", "chat"):
        assert all(binding.id for binding in REGISTRY.bindings(scope))  # type: ignore[arg-type]


def test_slash_commands_take_an_argument_and_only_whole_words_count() -> None:
    action, argument = REGISTRY.find_slash("/set  temperature 0.7 ") or pytest.fail("no /set")
    assert (action.id, argument) == ("chat.set", "temperature 0.7")
    assert REGISTRY.find_slash("/HELP") is not None
    assert REGISTRY.find_slash("/hel") is None
    assert REGISTRY.find_slash("/usr/bin/env is a path") is None
    assert REGISTRY.find_slash("help") is None


def test_completion_puts_what_begins_so_first() -> None:
    names = [action.slash for action in REGISTRY.complete_slash("re")]
    assert names[:3] == ["reasoning", "rename", "reopen"]
    assert "copy" in names  # Copy *re*ply


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sys", ["system"]),
        ("modle", ["model", "models"]),
        ("regenerate", ["retry"]),
        ("exit", ["quit"]),
        ("xyz", []),
    ],
)
def test_a_command_that_is_none_is_answered_with_what_it_may_have_meant(name: str, meant: list[str]) -> None:
    assert REGISTRY.close_slash(name)[: max(1, len(meant))] == meant
    assert all(action.slash != name for action in REGISTRY)


def test_a_registry_refuses_two_actions_of_one_name() -> None:
    action = Action(id="one", title="One", help="", group="", run=lambda app, argument: None)
    with pytest.raises(ValueError, match="twice"):
        Registry((action, action))


def test_the_help_names_every_listed_action_with_its_keys_of_now() -> None:
    page = help_page(REGISTRY, {"tab.new": "ctrl+n"})
    text = page._body._entries  # type: ignore[attr-defined]
    terms = {term for term, _ in text}
    assert "Ctrl+N" in terms
    assert "Ctrl+T" not in terms
    for action in REGISTRY:
        if action.listed:
            assert any(action.help in meaning for _, meaning in text), action.id


def test_the_key_map_takes_keys_as_the_help_writes_them() -> None:
    keymap = as_textual(
        {"tab.new": "Ctrl+N, F9", "transcript.end": "G", "prompt.page_up": "PgUp", "help": " "}, REGISTRY
    )
    assert keymap == {"tab.new": "ctrl+n,f9", "transcript.end": "G", "prompt.page_up": "pageup"}


def test_a_key_that_the_user_gave_away_is_nobody_elses() -> None:
    keymap = as_textual({"prompt.send": "ctrl+t", "message.fork": "F2", "panel.leave": "escape"}, REGISTRY)
    assert keymap["chats.sidebar"] == "ctrl+g"
    assert keys_of(REGISTRY["tab.new"], keymap) == ""
    assert "reply.stop" not in keymap  # the panel's Esc is the panel's


def test_the_help_has_every_id_that_the_key_map_takes_and_no_other_is_known() -> None:
    page = help_page(REGISTRY, {})
    listed = {name for _, text in page._body._entries for name in text.split(", ")}  # type: ignore[attr-defined]
    assert {action.id for action in REGISTRY} <= listed
    assert {"prompt.send", "transcript.copy", "models.pause"} <= listed
    assert unknown({"tab.new": "x", "prompt.send": "y", "chat.new": "z"}, REGISTRY) == ["chat.new"]


def test_keys_read_as_on_a_keyboard() -> None:
    assert key_name("ctrl+pagedown") == "Ctrl+PgDn"
    assert key_name("f12") == "F12"
    assert key_name("left_square_bracket") == "["
    assert [key_name(key) for key in ("slash", "plus", "equals_sign", "minus", "ctrl+comma")] == [
        "/",
        "+",
        "=",
        "-",
        "Ctrl+,",
    ]
    assert keys_of(REGISTRY["log"], {}) == "F12, Ctrl+L"


def test_signs_are_keys_too_and_an_action_without_a_key_has_none_to_name() -> None:
    keymap = as_textual({"tab.new": "ctrl+,, ctrl++, -, =", "numbers": "ctrl+t"}, REGISTRY)
    assert keymap["tab.new"] == "ctrl+comma,ctrl+plus,minus,equals_sign"
    assert first_key("tab.new", "ctrl+t", {"tab.new": NO_KEY}) == ""
    assert first_key("tab.new", "ctrl+t", {"tab.new": f"{NO_KEY},f9"}) == "F9"

"""The help: every action with its keys and its slash command, read from the registry and the widgets' bindings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from textual.binding import Binding

from nanochat.ui.actions import Registry, key_name, keys_of
from nanochat.ui.screens.page import Page
from nanochat.ui.widgets.definitions import Definitions, Entry
from nanochat.ui.widgets.prompt_box import PromptBox
from nanochat.ui.widgets.sidebar import ChatList


def help_page(registry: Registry, keymap: Mapping[str, str]) -> Page:
    """The help as a page."""
    from nanochat.ui.screens.bench import BenchScreen
    from nanochat.ui.screens.models import ModelsScreen
    from nanochat.ui.widgets.transcript import Transcript

    entries: list[Entry] = []
    for group, actions in registry.groups().items():
        entries.append((group, ""))
        for action in actions:
            slash = f"/{action.slash} {action.argument}".rstrip() if action.slash else ""
            keys = keys_of(action, keymap)
            entries.append((keys or slash, action.help + (f" ({slash})" if keys and slash else "")))
    for title, bindings in (
        ("In the prompt", PromptBox.BINDINGS),
        ("On a message (Alt+↑ selects one)", Transcript.BINDINGS),
        ("In the list of chats", ChatList.BINDINGS),
        ("On the screen of models (F3)", ModelsScreen.BINDINGS),
        ("On the benchmark (F4)", BenchScreen.BINDINGS),
    ):
        entries.append((title, ""))
        entries += [
            (_keys(binding, keymap), binding.tooltip or binding.description)
            for binding in _bindings(bindings)
            if binding.description
        ]
    entries += [
        ("Other keys", ""),
        (
            "settings.toml",
            'Any key can be changed: [ui.keymap], "chat.new" = "ctrl+n"; ids as the palette names them.',
        ),
    ]
    return Page("Keys and commands", Definitions(entries))


def _bindings(entries: Iterable[object]) -> Iterable[Binding]:
    return (entry for entry in entries if isinstance(entry, Binding))


def _keys(binding: Binding, keymap: Mapping[str, str]) -> str:
    keys = keymap.get(binding.id or "", binding.key).split(",")
    return ", ".join(key_name(key) for key in keys[:3])

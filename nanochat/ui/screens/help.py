"""The help: every action with its keys and its slash command, read from the registry and the widgets' bindings."""

from __future__ import annotations

from collections.abc import Mapping

from textual.binding import Binding

from nanochat.ui.actions import Registry, key_name, keys_of
from nanochat.ui.keymap import widget_bindings
from nanochat.ui.screens.page import Page
from nanochat.ui.widgets.definitions import Definitions, Entry


def help_page(registry: Registry, keymap: Mapping[str, str]) -> Page:
    """The help as a page."""
    entries: list[Entry] = []
    for group, actions in registry.groups().items():
        entries.append((group, ""))
        for action in actions:
            slash = f"/{action.slash} {action.argument}".rstrip() if action.slash else ""
            keys = keys_of(action, keymap)
            entries.append((keys or slash, action.help + (f" ({slash})" if keys and slash else "")))
    for place, bindings in widget_bindings():
        entries.append((place, ""))
        entries += [
            (_keys(binding, keymap), binding.tooltip or binding.description)
            for binding in bindings
            if binding.description
        ]
    return Page("Keys and commands", Definitions([*entries, *_how_to_change(registry)]))


def _how_to_change(registry: Registry) -> list[Entry]:
    """Every id that the key map takes."""
    entries: list[Entry] = [
        ("Other keys", ""),
        (
            "settings.toml",
            'Any key can be changed: [ui.keymap], then "tab.new" = "ctrl+n, f9". The ids are:',
        ),
    ]
    groups: dict[str, list[str]] = {}
    for action in registry:  # those too that the help has no line for
        groups.setdefault(action.group, []).append(action.id)
    entries += [("", ", ".join(ids)) for ids in groups.values()]
    entries += [("", ", ".join(each.id for each in bindings if each.id)) for _, bindings in widget_bindings()]
    return entries


def _keys(binding: Binding, keymap: Mapping[str, str]) -> str:
    keys = keymap.get(binding.id or "", binding.key).split(",")
    return ", ".join(key_name(key) for key in keys[:3])

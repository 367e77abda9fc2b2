"""The keys as the user set them: the settings' key map read as people write keys, and what in it names no action."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from textual.binding import Binding

from nanochat.ui.actions import NO_KEY, Registry, key_name

_NAMES = {
    "esc": "escape", "pgup": "pageup", "pgdn": "pagedown", "return": "enter", "del": "delete",
    "↑": "up", "↓": "down", "←": "left", "→": "right", "?": "question_mark", "/": "slash",
    "[": "left_square_bracket", "]": "right_square_bracket", "_": "underscore", "-": "minus", "+": "plus", ",": "comma",
    "=": "equals_sign",
}  # fmt: skip
"""What people call keys, and Textual's names for them."""

_BETWEEN_KEYS = re.compile(r"(?<![^+]\+),")  # the comma of `ctrl+,` is a key


def as_textual(keymap: Mapping[str, str], registry: Registry) -> dict[str, str]:
    """A key map with keys as Textual calls them: `Ctrl+N, Esc` is `ctrl+n,escape`. One without a key is left out.

    What the user gave a key takes it from the action that usually has it.
    """
    read = {
        action: ",".join(_key(key.strip()) for key in _BETWEEN_KEYS.split(keys) if key.strip())
        for action, keys in keymap.items()
    }
    read = {action: keys for action, keys in read.items() if keys}
    names = {action.id for action in registry}
    taken = {
        key
        for name, keys in read.items()
        if name in names or name.startswith("prompt.")
        for key in keys.split(",")
    }
    for action in registry:
        keys = [key for key in action.keys.split(",") if key]
        if action.id not in read and taken & set(keys):
            read[action.id] = ",".join(key for key in keys if key not in taken) or NO_KEY
    return read


def priority_keys(keymap: Mapping[str, str], registry: Registry) -> set[str]:
    """The keys that belong to the application wherever the user is."""
    return {
        key
        for action in registry
        if action.priority
        for key in keymap.get(action.id, action.keys).split(",")
        if key not in ("", NO_KEY)
    }


def unknown(keymap: Mapping[str, str], registry: Registry) -> list[str]:
    """What the key map names that can have no key. Imports every widget: call from a worker."""
    known = {action.id for action in registry}
    known |= {binding.id for _, bindings in widget_bindings() for binding in bindings if binding.id}
    return [action for action in keymap if action not in known]


def first_key(action: str, usual: str, keymap: Mapping[str, str]) -> str:
    """The key to name in a hint, as a reader writes it; empty where the action has none."""
    keys = (key for key in keymap.get(action, usual).split(",") if key not in ("", NO_KEY))
    return next((key_name(key) for key in keys), "")


def widget_bindings() -> Iterator[tuple[str, list[Binding]]]:
    """The keys that belong to one place on the screen, under the place's name."""
    from nanochat.ui.screens.bench import BenchScreen
    from nanochat.ui.screens.models import ModelsScreen
    from nanochat.ui.widgets.chat_panel import ChatPanel
    from nanochat.ui.widgets.model_list import ModelList
    from nanochat.ui.widgets.prompt_box import PromptBox
    from nanochat.ui.widgets.sidebar import ChatList
    from nanochat.ui.widgets.transcript import Transcript

    yield "In the prompt", _bindings(PromptBox.BINDINGS)
    yield "On a message (Alt+↑ selects one)", _bindings(Transcript.BINDINGS)
    yield "In the list of chats", _bindings(ChatList.BINDINGS)
    yield "In the settings of a chat (F6)", _bindings(ChatPanel.BINDINGS)
    yield "On the screen of models (F3)", [*_bindings(ModelsScreen.BINDINGS), *_bindings(ModelList.BINDINGS)]
    yield "On the benchmark (F4)", _bindings(BenchScreen.BINDINGS)


def _bindings(entries: Iterable[object]) -> list[Binding]:
    return [entry for entry in entries if isinstance(entry, Binding)]


def _key(written: str) -> str:
    """One key by Textual's name. A single letter keeps its case: `G` is another key than `g`."""
    if len(written) == 1:
        return _NAMES.get(written, written)
    parts = written.lower().split("+")
    if parts[-1] == "":  # ctrl++
        parts[-2:] = ["+"]
    return "+".join(_NAMES.get(part, part) for part in parts)

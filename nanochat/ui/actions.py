"""The one registry of actions: key map, slash commands, command palette and help screen are all read from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Literal

from textual.binding import Binding

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.session import ChatSession

Scope = Literal["app", "chat"]
_ELSEWHERE = {  # what other chat programs call it
    "bye": "quit", "exit": "quit", "clear": "new", "reset": "new", "history": "chats", "save": "export", "load": "import",
}  # fmt: skip
NO_KEY = "unbound"  # no terminal sends it: an action without a key of its own has it, until the key map gives it one
Run = Callable[["NanochatApp", str], Awaitable[None] | None]
RunOnChat = Callable[["NanochatApp", "ChatSession", str], Awaitable[None] | None]


def on_chat(run: RunOnChat) -> Run:
    """What is done to one chat: the one that is shown when it is asked for, whatever tab is in front when it is done."""

    @wraps(run)
    def on_shown(app: NanochatApp, argument: str) -> Awaitable[None] | None:
        return run(app, app.shown, argument)

    return on_shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing that the user can do.

    Args:
        id: its name in the key map of the settings file, `chat.new`.
        title: its name on the screen.
        help: one sentence about what it does.
        group: the heading it stands under in the help.
        run: what does it; takes the application and the argument of the slash command ("" from a key). It is called
            in its turn, before the next key: which chat it is about is to be known then, not when it is awaited.
        keys: the keys it has unless the settings say otherwise, commas between.
        slash: its slash command, without the slash.
        argument: what may follow the slash command, in words.
        scope: `app` works on every screen, `chat` on the chat screen only.
        priority: whether the key works before the focused widget sees it.
        listed: whether palette and help show it.
    """

    id: str
    title: str
    help: str
    group: str
    run: Run
    keys: str = ""
    slash: str = ""
    argument: str = ""
    scope: Scope = "chat"
    priority: bool = False
    listed: bool = True


class Registry:
    """All actions, by id and by slash command."""

    def __init__(self, actions: Iterable[Action]) -> None:
        self._actions: dict[str, Action] = {}
        self._slash: dict[str, Action] = {}
        for action in actions:
            if action.id in self._actions or (action.slash and action.slash in self._slash):
                raise ValueError(f"{action.id} (/{action.slash}) is registered twice")
            self._actions[action.id] = action
            if action.slash:
                self._slash[action.slash] = action

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def __getitem__(self, action_id: str) -> Action:
        return self._actions[action_id]

    def bindings(self, scope: Scope) -> list[Binding]:
        """The key bindings of a scope; each has its action's id, so the settings can remap it."""
        return [
            Binding(
                action.keys or NO_KEY, f"run('{action.id}')", action.title,
                tooltip=action.help, id=action.id, show=False, priority=action.priority or not action.keys,
            )
            for action in self
            if action.scope == scope
        ]  # fmt: skip

    def find_slash(self, line: str) -> tuple[Action, str] | None:
        """The action and the argument of a typed line, or None when it is no slash command of ours."""
        if not line.startswith("/") or "\n" in line.strip():
            return None
        name, _, argument = line[1:].strip().partition(" ")
        action = self._slash.get(name.lower())
        return None if action is None else (action, argument.strip())

    def complete_slash(self, start: str) -> list[Action]:
        """The slash commands that begin with `start` (without the slash), then those whose title holds it."""
        start = start.lower()
        first = [self._slash[name] for name in sorted(self._slash) if name.startswith(start)]
        other = [a for _, a in sorted(self._slash.items()) if len(start) > 1 and start in a.title.lower()]
        return [*first, *(action for action in other if action not in first)]

    def close_slash(self, name: str) -> list[str]:
        """The slash commands that a name which is none of them may have meant, the likeliest first; at most four."""
        elsewhere = [_ELSEWHERE[name]] if name in _ELSEWHERE else []
        begins = [action.slash for action in self.complete_slash(name)]
        alike = get_close_matches(name, self._slash, n=4, cutoff=0.6)
        return list(dict.fromkeys((*elsewhere, *begins, *alike)))[:4]

    def groups(self) -> dict[str, list[Action]]:
        """The listed actions under their headings, in the order of registration."""
        groups: dict[str, list[Action]] = {}
        for action in self:
            if action.listed:
                groups.setdefault(action.group, []).append(action)
        return groups


def keys_of(action: Action, keymap: Mapping[str, str]) -> str:
    """The keys that an action has now, as a reader writes them: `Ctrl+T, F2`."""
    keys = keymap.get(action.id, action.keys).split(",")
    return ", ".join(key_name(key) for key in keys if key not in ("", NO_KEY))


def key_name(key: str) -> str:
    """One key as a reader writes it."""
    named = {
        "pageup": "PgUp",
        "pagedown": "PgDn",
        "escape": "Esc",
        "question_mark": "?",
        "left_square_bracket": "[",
        "slash": "/",
        "plus": "+",
        "minus": "-",
        "equals_sign": "=",
        "comma": ",",
    }
    named |= {
        "right_square_bracket": "]",
        "underscore": "_",
        "up": "↑",
        "down": "↓",
        "left": "←",
        "right": "→",
    }
    parts = key.strip().split("+")
    shown = [
        named.get(part) or (part if len(part) == 1 and len(parts) == 1 else part.capitalize())
        for part in parts
    ]
    return "+".join(shown)

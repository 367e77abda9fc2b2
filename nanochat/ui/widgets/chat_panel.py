"""The side panel with one chat's own settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import events
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static, TextArea

from nanochat.errors import InvalidSampling
from nanochat.sanitize import sanitize, sanitize_line
from nanochat.ui import stop_texts
from nanochat.ui.chat_settings import KNOBS, ChatSettings

if TYPE_CHECKING:
    from nanochat.ui.session import ChatSession

_HELP = {
    "model": "Enter chooses another model for this chat.",
    "thinking": "Enter turns the model's reasoning on or off.",
    "system": "What the model is told before the chat begins.",
}
_THINKING: tuple[bool | None, ...] = (None, True, False)
_THINKING_WORDS = {None: "Thinking: model's default", True: "Thinking: on", False: "Thinking: off"}


class SystemPrompt(TextArea):
    """The system prompt: several lines, taken when the focus leaves."""

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = sanitize(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        self.move_cursor(self.replace(text, *self.selection, maintain_selection_offset=False).end_location)


class ChatPanel(Vertical):
    """Shows and changes `ChatSettings`; every change is posted at once and holds from the next turn."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", id="panel.leave", tooltip="Back to the prompt."),
    ]

    @dataclass
    class Changed(Message):
        """This chat should have these settings from the next turn on; another may be shown by now."""

        session: ChatSession
        settings: ChatSettings

    @dataclass
    class ModelRequested(Message):
        """The user wants to choose this chat's model."""

    @dataclass
    class Left(Message):
        """The user is done here."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._session: ChatSession | None = None
        self._settings = ChatSettings()
        self._showing = False
        self._refused = ""  # the line whose value was refused
        self._filling = asyncio.Lock()  # who opens it twice at once waits for the first

    async def fill(self) -> None:
        """Make the lines, when they are wanted first: the first frame does not pay for them."""
        async with self._filling:
            if not self.children:
                error, about = Static("", id="panel-error"), Static("", id="panel-help")
                lines = VerticalScroll(*self._lines(), id="panel-lines", can_focus=False)
                await self.mount(
                    lines, Vertical(error, about, id="panel-said")
                )  # in sight, however low the screen is

    def _lines(self) -> Iterator[Widget]:
        """Model, thinking, system prompt, then a line for each knob."""
        yield Label("This chat, from the next turn", classes="panel-title")
        yield Static("", id="panel-note", classes="panel-note")
        yield Button("Model", id="panel-model", compact=True)
        yield Button(_THINKING_WORDS[None], id="panel-thinking", compact=True)
        yield Label("System prompt", classes="panel-label")
        yield SystemPrompt(id="panel-system", compact=True, highlight_cursor_line=False, placeholder="none")
        yield Label("Sampling · empty: the model's default", classes="panel-label")
        for knob in KNOBS:
            name = Label(knob.name.removesuffix("_penalty").replace("_", " "))
            line = Input(id=f"panel-{knob.name}", compact=True, select_on_focus=False)
            yield Horizontal(name, line, classes="panel-knob")

    def show(
        self, session: ChatSession, *, model: str, defaults: Mapping[str, Any], can_think: bool, note: str
    ) -> None:
        """Show a chat's settings, with the model's defaults where nothing is set.

        A line that is being written is left alone; it is taken for its own chat before another one is shown.
        """
        another, settings = session is not self._session, session.settings
        if another and (focused := self.screen.focused) is not None and self in focused.ancestors:
            self._taken(focused)
        if another:
            self._fault("")
        self._session, self._settings, self._showing = session, settings, True
        try:
            self.query_one("#panel-model", Button).label = Content(
                f"Model: {sanitize_line(settings.model or model)}"
            )
            thinking = self.query_one("#panel-thinking", Button)
            thinking.label = _THINKING_WORDS[settings.thinking]
            thinking.display = can_think
            system = self.query_one(SystemPrompt)
            if (another or not system.has_focus) and system.text != sanitize(settings.system_prompt):
                system.load_text(sanitize(settings.system_prompt))
            for knob in KNOBS:
                line = self.query_one(f"#panel-{knob.name}", Input)
                default = defaults.get(knob.name)
                line.placeholder = f"{knob.neutral if default is None else default} · {knob.span}"
                if another or not line.has_focus:
                    line.value = _shown(getattr(settings, knob.name))
            self.query_one("#panel-note", Static).update(Content(sanitize(note)))
            self.query_one("#panel-note").display = bool(note)
        finally:
            self._showing = False

    def on_hide(self) -> None:
        """What was refused is said no longer."""
        if self.children:
            self._fault("")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Choose a model, or the next way of thinking."""
        event.stop()
        if event.button.id == "panel-model":
            self.post_message(self.ModelRequested())
        else:
            place = _THINKING.index(self._settings.thinking)
            self._change("thinking", _THINKING[(place + 1) % len(_THINKING)])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take a value."""
        event.stop()
        self._take(event.input)
        self.screen.focus_next()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Say what the focused line does, and its range."""
        name = (event.widget.id or "").removeprefix("panel-")
        knob = next((knob for knob in KNOBS if knob.name == name), None)
        words = _HELP.get(name, "") if knob is None else f"{knob.name}: {knob.span}. {knob.help}"
        self.query_one("#panel-help", Static).update(Content(words))
        self.call_after_refresh(self._show_focused)

    def on_descendant_blur(self, event: events.DescendantBlur) -> None:
        """Take what was typed when the focus leaves."""
        self._taken(event.widget)

    def action_leave(self) -> None:
        """Back to the prompt."""
        self.post_message(self.Left())

    def _taken(self, widget: Widget) -> None:
        if isinstance(widget, Input):
            self._take(widget)
        elif isinstance(widget, SystemPrompt) and widget.text != self._settings.system_prompt:
            self._change("system_prompt", widget.text)

    def _take(self, line: Input) -> None:
        name = (line.id or "").removeprefix("panel-")
        knob = next((knob for knob in KNOBS if knob.name == name), None)
        if knob is None or self._showing:
            return
        if line.value.strip() == _shown(getattr(self._settings, name)):
            if name == self._refused:
                self._fault("")
            return
        try:
            self._change(name, knob.parse(line.value))
        except InvalidSampling as error:
            self._fault(f"{error}", name)

    def _change(self, name: str, value: Any) -> None:
        self._settings = self._settings.with_value(name, value)
        self._fault("")
        if self._session is not None:
            self.post_message(self.Changed(self._session, self._settings))

    def _fault(self, text: str, name: str = "") -> None:
        self._refused = name
        fault = self.query_one("#panel-error", Static)
        fault.update(Content(sanitize(text)))
        fault.display = bool(text)
        self.call_after_refresh(self._show_focused)

    def _show_focused(self) -> None:
        """What is said below took lines from the list: the focused one stays in sight."""
        focused = self.screen.focused
        if focused is not None and self in focused.ancestors:
            focused.scroll_visible(animate=False)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return stop_texts.write(cast("tuple[str, ...]", value))
    return f"{value:g}" if isinstance(value, float) else str(value)

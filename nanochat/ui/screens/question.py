"""A question with a few answers, over whatever screen asked it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from nanochat.sanitize import sanitize, sanitize_line
from nanochat.ui.widgets.facts import Facts


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its key, its words, and a line about what it does."""

    key: str
    label: str
    about: str = ""


class Question(ModalScreen[str | None]):
    """Asks; gives the chosen answer's key, or None after Esc. `facts` are lines of name and value below the text."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back", id="question.back")]

    def __init__(
        self, title: str, text: str, answers: Sequence[Answer], *, facts: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._title, self._text, self._answers = title, text, tuple(answers)
        self._facts = tuple(facts)

    def compose(self) -> ComposeResult:
        """A box with the text and the answers."""
        with Vertical(classes="dialog"):
            yield Label(Content(sanitize_line(self._title)), classes="dialog-title")
            if self._text or not self._facts:
                yield Static(Content(sanitize(self._text)), classes="dialog-text")
            if self._facts:
                yield Facts(self._facts, classes="dialog-text")
            yield OptionList(*(Option(_line(answer), id=answer.key) for answer in self._answers))
            yield Static("↑↓ choose · Enter take · Esc back", classes="dialog-hint")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Give the answer."""
        event.stop()
        self.dismiss(event.option_id)


class TextQuestion(ModalScreen[str | None]):
    """Asks for one line of text; gives it, or None after Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back", id="question.back")]

    def __init__(self, title: str, text: str = "", *, about: str = "") -> None:
        super().__init__()
        self._title, self._text, self._about = title, text, about

    def compose(self) -> ComposeResult:
        """A box with one line to fill."""
        with Vertical(classes="dialog"):
            yield Label(Content(sanitize_line(self._title)), classes="dialog-title")
            if self._about:
                yield Static(Content(sanitize(self._about)), classes="dialog-text")
            yield Input(sanitize_line(self._text), select_on_focus=False)
            yield Static("Enter take · Esc back", classes="dialog-hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Give the text."""
        event.stop()
        self.dismiss(event.value)


def _line(answer: Answer) -> Content:
    about = Content.assemble("\n  ", (sanitize_line(answer.about), "dim")) if answer.about else Content("")
    return Content.assemble((sanitize_line(answer.label), "bold"), about)

"""A question with a few answers, over whatever screen asked it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from nanochat.errors import NanochatError
from nanochat.sanitize import sanitize, sanitize_line
from nanochat.ui.screens.leaving import LeftOnce
from nanochat.ui.screens.page import LOW, NARROW
from nanochat.ui.widgets.facts import Facts
from nanochat.ui.widgets.paged_list import PagedList

MOST_ROWS = 14  # of answers
_HINT = "↑↓ choose · Enter take · Esc back"

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its key, its words, and a line about what it does."""

    key: str
    label: str
    about: str = ""


class Question(LeftOnce, ModalScreen[str | None]):
    """Asks; gives the chosen answer's key, or None after Esc. `facts` are lines of name and value below the text.

    On a low screen the answers scroll below a text that stays, and a long text scrolls above them.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back", id="question.back"),
        Binding("pagedown", "read(1)", "Read on", id="question.page_down", show=False, priority=True),
        Binding("pageup", "read(-1)", "Read back", id="question.page_up", show=False, priority=True),
    ]
    HORIZONTAL_BREAKPOINTS = NARROW
    VERTICAL_BREAKPOINTS = LOW

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
            with VerticalScroll(classes="dialog-text", can_focus=False):
                if self._text:
                    yield Static(Content(sanitize(self._text)))
                if self._facts:
                    yield Facts(self._facts)
            yield PagedList(*(Option(_line(answer), id=answer.key) for answer in self._answers))
            yield Static(_HINT, classes="dialog-hint")

    def on_mount(self) -> None:
        """Without a text there is no room for one."""
        self.query_one(".dialog-text").display = bool(self._text or self._facts)

    def on_resize(self) -> None:
        """Give text and answers the rows that the screen has."""
        self.call_after_refresh(self._share_rows)

    def _share_rows(self) -> None:
        """Answers first; where the text needs rows, too, it gets a third."""
        box, text, answers = (
            self.query_one(".dialog"),
            self.query_one(".dialog-text"),
            self.query_one(OptionList),
        )
        around = box.gutter.height + sum(
            child.styles.margin.height + (0 if child in (text, answers) else child.outer_size.height)
            for child in box.children if child.display
        )  # fmt: skip
        room = max(int(self.size.height * (0.9 if self.has_class("-tall") else 1.0)) - around, 2)
        said, asked = (
            text.virtual_size.height if text.display else 0,
            min(answers.virtual_size.height, MOST_ROWS),
        )
        asked = min(asked, max(room - said, 2 * room // 3))
        answers.styles.max_height, text.styles.max_height = asked, max(room - asked, 1)
        scrolls = said > room - asked
        self.query_one(".dialog-hint", Static).update(f"{_HINT} · PgUp PgDn read" if scrolls else _HINT)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The page keys are the list's where all of the text is in view, or nothing is yet: keys come early."""
        return action != "read" or any(text.max_scroll_y > 0 for text in self.query(".dialog-text"))

    def action_read(self, direction: int) -> None:
        """Scroll the text."""
        text = self.query_one(".dialog-text")
        (text.scroll_page_down if direction > 0 else text.scroll_page_up)(animate=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Give the answer."""
        event.stop()
        self.dismiss(event.option_id)


class TextQuestion(LeftOnce, ModalScreen[str | None]):
    """Asks for one line of text; gives it, or None after Esc. `wrong`: why the text that stands there was not taken."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back", id="question.back")]
    HORIZONTAL_BREAKPOINTS = NARROW
    VERTICAL_BREAKPOINTS = LOW

    def __init__(self, title: str, text: str = "", *, about: str = "", wrong: str = "") -> None:
        super().__init__()
        self._title, self._text, self._about, self._wrong = title, text, about, wrong

    def compose(self) -> ComposeResult:
        """A box with one line to fill."""
        with Vertical(classes="dialog"):
            yield Label(Content(sanitize_line(self._title)), classes="dialog-title")
            if self._about and not self._wrong:  # both have no room on a low screen
                yield Static(Content(sanitize(self._about)), classes="dialog-text")
            yield Input(sanitize_line(self._text), select_on_focus=False)
            if self._wrong:
                yield Static(Content(sanitize_line(self._wrong)), classes="dialog-wrong")
            yield Static("Enter take · Esc back", classes="dialog-hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Give the text."""
        event.stop()
        self.dismiss(event.value)


async def ask_until_done(
    ask: Callable[[ModalScreen[str | None]], Awaitable[str | None]],
    title: str,
    do: Callable[[str], Awaitable[Done]],
    *,
    text: str = "",
    about: str = "",
) -> Done | None:
    """Ask for a text and do something with it, until that is done or the user gives up: then None.

    What cannot be done is told below the text, which stays.
    """
    wrong = ""
    while text := (await ask(TextQuestion(title, text, about=about, wrong=wrong)) or "").strip():
        try:
            return await do(text)
        except NanochatError as error:
            wrong = str(error)
    return None


def _line(answer: Answer) -> Content:
    about = Content.assemble("\n  ", (sanitize_line(answer.about), "dim")) if answer.about else Content("")
    return Content.assemble((sanitize_line(answer.label), "bold"), about)

"""What an empty chat shows: on the first run what can be done about a model, later a few words to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from nanochat.sanitize import sanitize, sanitize_line
from nanochat.ui.widgets.paged_list import PagedList

LOGO = "nanochat"

_BAR_CELLS = 40


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing to begin with: its id, its words, and a line about it."""

    id: str
    label: str
    about: str


class Welcome(VerticalScroll, can_focus=False):
    """Stands where the transcript is, while there is nothing to show in it."""

    @dataclass
    class Chosen(Message):
        """The user took this offer."""

        id: str

    def compose(self) -> ComposeResult:
        """Name, words, offers, and how far the work on one is."""
        yield Static(Content.styled(LOGO, "bold $primary"), id="welcome-logo")
        yield Static("", id="welcome-text")
        yield PagedList(id="welcome-offers")
        yield Static("", id="welcome-progress-text")
        yield Static("", id="welcome-bar")
        yield Static("", id="welcome-hints")

    def on_mount(self) -> None:
        """Nothing is offered and nothing is under way yet."""
        self.offer("", ())
        self.progress("", None)

    def offer(self, text: str, offers: Sequence[Offer], hints: str = "") -> None:
        """Show some words and what can be chosen."""
        self.query_one("#welcome-text", Static).update(Content(sanitize(text)))
        choices = self.query_one(OptionList)
        fresh = [Option(_line(offer), id=offer.id) for offer in offers]
        if [option.id for option in choices.options] != [offer.id for offer in offers]:
            choices.set_options(fresh)
            choices.highlighted = 0 if fresh else None
        choices.display = bool(offers)
        self.query_one("#welcome-hints", Static).update(Content.styled(sanitize(hints), "dim"))

    def progress(self, text: str, share: float | None) -> None:
        """Show how far it is: words, and a share from 0 to 1, or None for words alone."""
        words = self.query_one("#welcome-progress-text", Static)
        words.update(Content(sanitize(text)))
        words.display = bool(text)
        bar = self.query_one("#welcome-bar", Static)
        bar.display = share is not None
        if share is not None:
            bar.update(_bar(share))

    def answer(self, verb: str) -> bool:
        """Keys of an empty prompt move among the offers and take one; returns whether there was one to take."""
        offers = self.query_one(OptionList)
        if not self.display or not offers.display:
            return False
        if verb == "up":
            offers.action_cursor_up()
        elif verb == "down":
            offers.action_cursor_down()
        elif verb == "enter":
            offers.action_select()
        return verb in ("up", "down", "enter")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take an offer."""
        event.stop()
        if event.option_id:
            self.post_message(self.Chosen(event.option_id))


def _bar(share: float) -> Content:
    full = round(_BAR_CELLS * min(max(share, 0.0), 1.0))
    return Content.assemble(
        ("━" * full, "$primary"), ("━" * (_BAR_CELLS - full), "$foreground 20%"), f" {share:4.0%}"
    )


def _line(offer: Offer) -> Content:
    return Content.assemble((sanitize_line(offer.label), "bold"), "\n  ", (sanitize_line(offer.about), "dim"))

"""Up and Down: what was sent before, and what was written on the way there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanochat.ui.draft import Draft
from nanochat.ui.recall import Recall

SENT = ("one", "two")


def full(draft: Draft | None) -> str | None:
    return None if draft is None else draft.full


def test_what_was_sent_is_found_again_and_down_comes_back_to_the_unsent_text() -> None:
    recall = Recall()
    assert full(recall.older(SENT, Draft("unsent"))) == "two"
    assert full(recall.older(SENT, Draft("two"))) == "one"
    assert recall.older(SENT, Draft("one")) is None
    assert full(recall.newer(Draft("one"))) == "two"
    assert full(recall.newer(Draft("two"))) == "unsent"
    assert recall.newer(Draft("unsent")) is None


def test_a_line_that_was_changed_is_kept_at_its_place() -> None:
    recall = Recall()
    recall.older(SENT, Draft())
    recall.older(SENT, Draft("two, changed"))
    assert full(recall.newer(Draft("one"))) == "two, changed"
    assert full(recall.newer(Draft("two, changed"))) == ""
    assert full(recall.older(SENT, Draft())) == "two, changed"


def test_what_other_tabs_send_meanwhile_moves_no_place() -> None:
    recall = Recall()
    recall.older(SENT, Draft("unsent"))
    assert full(recall.older((*SENT, "another tab's"), Draft("two"))) == "one"
    recall.newer(Draft("one"))
    assert full(recall.newer(Draft("two"))) == "unsent"
    recall.leave()
    assert full(recall.older((*SENT, "another tab's"), Draft())) == "another tab's"


def test_back_at_the_unsent_text_what_was_sent_since_is_there() -> None:
    recall = Recall()
    recall.older(SENT, Draft())
    recall.newer(Draft("two"))
    assert full(recall.older((*SENT, "three"), Draft())) == "three"


def test_what_was_sent_is_not_given_back_but_what_was_written_elsewhere_is() -> None:
    recall = Recall()
    recall.older(SENT, Draft("unsent"))
    recall.older(SENT, Draft("two, changed"))
    assert recall.texts(Draft("one")) == ["unsent", "two, changed"]
    assert recall.texts(Draft("one, too")) == ["unsent", "two, changed", "one, too"]
    assert recall.leave() == ["unsent", "two, changed"]
    assert recall.leave() == []
    assert recall.texts(Draft("next")) == ["next"]


def test_a_text_that_was_only_looked_up_is_all_there_is() -> None:
    recall = Recall()
    recall.older(SENT, Draft())
    assert recall.texts(Draft("two")) == ["two"]


@given(st.lists(st.sampled_from(["up", "down", "write", "enter"]), max_size=30))
def test_nothing_written_is_ever_gone(keys: list[str]) -> None:
    recall, sent, draft = Recall(), ["one", "two"], Draft()
    written: set[str] = set()
    for number, key in enumerate(keys):
        if key == "write":
            written.discard(draft.full)  # changed by its writer
            draft = Draft(f"{draft.full} {number}")
            written.add(draft.full)
        elif key == "enter":
            sent += [*recall.leave(), draft.full]
            draft = Draft()
        else:
            went = recall.older(sent, draft) if key == "up" else recall.newer(draft)
            draft = draft if went is None else went
        assert written <= {*sent, *recall.texts(draft)}

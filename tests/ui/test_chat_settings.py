from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import InvalidSampling, UsageError
from nanochat.ui import stop_texts
from nanochat.ui.chat_settings import KNOBS, ChatSettings, knob, named_and_value


def test_nothing_set_is_the_models_own_defaults() -> None:
    params = ChatSettings().sampling()
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (None, None, None, None)
    assert ChatSettings().as_json() == {}


@given(
    temperature=st.none() | st.floats(0, 100), top_k=st.none() | st.integers(0, 1000),
    seed=st.none() | st.integers(0, 99), system_prompt=st.text(), thinking=st.none() | st.booleans(),
    stop=st.none() | st.just(("\n", "END")),
)  # fmt: skip
def test_settings_come_back_as_they_were_kept(**values: object) -> None:
    settings = ChatSettings(**values)  # type: ignore[arg-type]
    assert ChatSettings.from_json(settings.as_json()) == settings


@pytest.mark.parametrize(
    ("name", "text"),
    [("temperature", "101"), ("top_p", "0"), ("min_p", "2"), ("max_tokens", "0"), ("top_k", "1.5")],
)
def test_a_value_out_of_range_is_refused_with_the_range(name: str, text: str) -> None:
    found = knob(name)
    assert found is not None
    with pytest.raises(InvalidSampling, match=name):
        ChatSettings().with_value(name, found.parse(text))


def test_what_a_damaged_file_holds_is_left_at_its_default() -> None:
    values = {"temperature": "hot", "top_p": 99, "unknown": 1, "thinking": True, "stop": 5}
    assert ChatSettings.from_json(values) == ChatSettings(thinking=True)


def test_an_empty_line_means_the_default_and_stops_read_escapes() -> None:
    assert all(each.parse("  ") is None for each in KNOBS)
    stop = knob("stop")
    assert stop is not None
    assert stop.parse("\\n,END") == ("\n", "END")


@pytest.mark.parametrize(
    ("line", "stops"),
    [
        ("Grüße,日本", ("Grüße", "日本")),
        ("\\", ("\\",)),
        ("\\x4,C:\\", ("x4", "C:\\")),
        ("a\\,b,\\\\n", ("a,b", "\\n")),
        ("END, STOP ,,\\ .", ("END", "STOP", " .")),
    ],
)
def test_stops_are_any_text_that_can_be_typed(line: str, stops: tuple[str, ...]) -> None:
    stop = knob("stop")
    assert stop is not None
    assert stop.parse(line) == stops


@given(stops=st.lists(st.text("ab n\\,\n\t ü", min_size=1), min_size=1).map(tuple))
def test_the_line_that_shows_stops_gives_them_again(stops: tuple[str, ...]) -> None:
    assert stop_texts.read(stop_texts.write(stops)) == stops


@given(line=st.text("ab n\\,\n ü"))
def test_every_line_of_stops_can_be_read(line: str) -> None:
    assert all(stop_texts.read(line))


@pytest.mark.parametrize("line", ["top_p 0.9", "top-p 0.9", "Top p  0.9", "top_p\t0.9"])
def test_a_value_is_named_as_the_panel_names_it_too(line: str) -> None:
    found, value = named_and_value(line)
    assert (found.name, value) == ("top_p", "0.9")


@pytest.mark.parametrize(
    ("line", "said"), [("", "a name and a value"), ("top 1", "'top'"), ("heat 1", "'heat'")]
)
def test_a_name_that_is_none_is_said(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        named_and_value(line)


@pytest.mark.parametrize("text", ["1.5", "1" * 5000])
def test_a_wrong_number_is_refused_in_a_short_sentence(text: str) -> None:
    seed = knob("seed")
    assert seed is not None
    with pytest.raises(InvalidSampling, match=r"^seed must be a whole number, not '.{1,41}'$"):
        seed.parse(text)


def test_a_knob_is_found_by_an_unambiguous_start() -> None:
    found = knob("temp")
    assert found is not None
    assert found.name == "temperature"
    assert knob("top") is None


def test_only_what_the_prompt_contains_costs_the_cached_prefix() -> None:
    base = ChatSettings()
    assert base.costs_prefix(base.with_value("system_prompt", "Be brief."))
    assert base.costs_prefix(base.with_value("thinking", False))
    assert not base.costs_prefix(base.with_value("temperature", 0.5))

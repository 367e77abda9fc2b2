"""What a name typed as an argument of `nanochat models` means."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakehome import Home
from fakehub import Hub
from fakerepo import tiny_model

from nanochat.commands.model_names import full_name, on_this_machine
from nanochat.errors import ModelNotFound, UsageError
from nanochat.settings import Paths


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(tiny_model("org/tiny"), tiny_model("other/tiny")) as hub:
        yield hub


def test_a_model_here_goes_by_its_name_or_by_an_end_that_only_it_has(home: Home) -> None:
    home.fetch(home.spec("org/tiny"))
    for typed in ("org/tiny", "ORG/Tiny", "tiny"):
        assert on_this_machine(typed, Paths.find()).name == "org/tiny"
    home.fetch(home.spec("other/tiny"))
    with pytest.raises(ModelNotFound):
        on_this_machine("tiny", Paths.find())


@pytest.mark.parametrize("typed", ["starter", "SmolLM2-135M-Instruct"])
def test_a_starter_model_that_is_not_here_is_not_fetched_for_it(hub: Hub, home: Home, typed: str) -> None:
    with pytest.raises(ModelNotFound, match="pull starter"):
        on_this_machine(typed, Paths.find())
    assert not hub.requests


def test_a_repository_on_the_hub_goes_by_its_whole_name_or_a_recommended_ones_end() -> None:
    assert full_name("anyone/anything") == "anyone/anything"
    assert full_name("qwen3-8b") == "Qwen/Qwen3-8B"
    with pytest.raises(UsageError, match="models search tiny"):
        full_name("tiny")

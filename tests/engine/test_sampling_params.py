"""Every sampling value is checked against its range, and the text names the range."""

from __future__ import annotations

import math

import pytest

from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import InvalidSampling


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("temperature", -0.1, "from 0 to 100"), ("temperature", math.nan, "must be a number"), ("temperature", "hot", "must be a number"),
        ("top_p", 0, "above 0 and at most 1"), ("top_p", 1.01, "above 0 and at most 1"), ("top_k", -2, "from 0"),
        ("top_k", 1.5, "whole number"), ("min_p", 1.1, "from 0 to 1"), ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", 2.1, "from -2 to 2"), ("frequency_penalty", -3, "from -2 to 2"), ("n", 0, "from 1 to 128"),
        ("max_tokens", -1, "from 0"), ("min_tokens", 65, "more than max_tokens"), ("seed", 2**64, "from"), ("seed", True, "whole"),
        ("logprobs", 1025, "from 0 to 1024"), ("stop", "", "non-empty"), ("stop", ["a", ""], "non-empty"), ("stop", [3], "non-empty"),
        ("stop_token_ids", [-1], "from 0"), ("logit_bias", {-1: 0.0}, "from 0"), ("logit_bias", {1: 101.0}, "from -100 to 100"),
    ],
)  # fmt: skip
def test_a_value_outside_its_range_is_refused_with_the_range(name: str, bad: object, said: str) -> None:
    with pytest.raises(InvalidSampling, match=said) as caught:
        SamplingParams(**{name: bad})
    assert "\n" not in str(caught.value)


def test_none_means_the_models_own_default_then_neutral() -> None:
    params = SamplingParams(top_p=0.5).resolved({"temperature": 0.6, "top_p": 0.95, "top_k": 20})
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.5, 20, 0.0)


def test_minus_one_is_vllms_word_for_no_top_k() -> None:
    assert SamplingParams(top_k=-1).top_k == 0


def test_a_temperature_under_which_logits_would_overflow_is_greedy() -> None:
    assert all(SamplingParams(temperature=value).greedy for value in (0, 1e-300, 1e-38, 9e-6))
    assert not SamplingParams(temperature=1e-5).greedy
    assert SamplingParams().resolved({"temperature": 1e-40}).greedy, "the model's own default too"

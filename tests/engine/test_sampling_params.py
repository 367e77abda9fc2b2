"""Every sampling value is checked against its range, and the text names the range."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from fractions import Fraction

import numpy as np
import pytest
import torch

from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import InvalidSampling


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("temperature", -0.1, "from 0 to 100"), ("temperature", math.nan, "must be a number"), ("temperature", "hot", "must be a number"),
        ("temperature", math.inf, "from 0 to 100"), ("temperature", Fraction(10**309), "from 0 to 100"),
        ("top_p", 0, "above 0 and at most 1"), ("top_p", 1.01, "above 0 and at most 1"), ("top_k", -2, "from -1"),
        ("top_k", 1.5, "whole number"), ("min_p", 1.1, "from 0 to 1"), ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", 2.1, "from -2 to 2"), ("frequency_penalty", -3, "from -2 to 2"), ("n", 0, "from 1 to 128"),
        ("max_tokens", -1, "from 0"), ("min_tokens", 65, "more than max_tokens"), ("seed", 2**64, "from"), ("seed", True, "whole"),
        ("logprobs", 1025, "from 0 to 1024"), ("stop", "", "non-empty"), ("stop", ["a", ""], "non-empty"), ("stop", [3], "non-empty"),
        ("bad_words", "ab", "bad_words must be a list of strings"), ("bad_words", ["a", ""], "non-empty"), ("bad_words", [3], "non-empty"),
        ("stop_token_ids", [-1], "from 0"), ("logit_bias", {-1: 0.0}, "from 0"), ("logit_bias", {1: 101.0}, "from -100 to 100"),
    ],
)  # fmt: skip
def test_a_value_outside_its_range_is_refused_with_the_range(name: str, bad: object, said: str) -> None:
    with pytest.raises(InvalidSampling, match=said) as caught:
        SamplingParams(**{name: bad})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("ignore_eos", "no", "ignore_eos must be True or False, not 'no'"), ("ignore_eos", None, "ignore_eos must be"),
        ("include_stop_str_in_output", "yes", "include_stop_str_in_output must be True or False, not 'yes'"),
        ("skip_special_tokens", 0, "skip_special_tokens must be True or False, not 0"),
        ("stop", 5, "stop must be a string or a list of strings, not 5"), ("stop", b"ab", "stop must be a string or a list"),
        ("stop_token_ids", 5, "stop_token_ids must be a list of token ids, not 5"),
        ("stop_token_ids", "12", "stop_token_ids must be a list of token ids, not '12'"),
        ("stop_token_ids", ["a"], "a token of stop_token_ids must be a whole number, not 'a'"),
        ("stop_token_ids", np.array(5), "stop_token_ids must be a list of token ids"),
        ("logit_bias", [1], r"logit_bias must be a dict of token id -> bias, not \[1\]"),
        ("logit_bias", {"a": 1}, "a token of logit_bias must be a whole number, not 'a'"),
        ("logit_bias", {1: None}, "a bias of logit_bias must be a number, not None"),
        ("presence_penalty", "1", "presence_penalty must be a number"), ("n", None, "n must be a whole number, not None"),
        ("top_k", np.array([1, 2]), "top_k must be a whole number"), ("temperature", True, "temperature must be a number"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_by_name(name: str, bad: object, said: str) -> None:
    with pytest.raises(InvalidSampling, match=f"^{said}"):
        SamplingParams(**{name: bad})


def test_none_is_the_default_where_scripts_for_vllm_pass_it() -> None:
    names = (
        "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "min_tokens", "stop", "stop_token_ids", "logit_bias", "seed", "logprobs",
    )  # fmt: skip
    for name in names:
        assert SamplingParams(**{name: None}) == SamplingParams(), name
    params = SamplingParams(
        presence_penalty=None, frequency_penalty=1.0, stop_token_ids=None, min_tokens=None
    )  # type: ignore[arg-type]
    assert (params.presence_penalty, params.frequency_penalty, params.stop_token_ids, params.min_tokens) == (
        0.0,
        1.0,
        (),
        0,
    )


def test_numbers_of_other_libraries_are_stored_as_pythons_own() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5), top_p=Fraction(1, 2), top_k=np.int32(20), seed=np.uint64(2**64 - 1), n=np.int8(2),
        presence_penalty=1, max_tokens=np.int64(5), min_tokens=np.int64(1), stop_token_ids=np.array([3, 4]),
        logit_bias={np.int64(7): np.float64(1.5)},
    )  # type: ignore[arg-type]  # fmt: skip
    assert params.logit_bias == {7: 1.5}
    held = {field.name: getattr(params, field.name) for field in fields(params)}
    values = [*held.values(), *params.stop_token_ids, *params.logit_bias, *params.logit_bias.values()]
    assert {type(value) for value in values} == {float, int, bool, tuple, dict, type(None)}
    assert type(params.presence_penalty) is type(params.temperature) is float and params.seed == 2**64 - 1
    assert SamplingParams(top_k=np.int64(-1)).top_k == 0  # type: ignore[arg-type]
    with pytest.raises(InvalidSampling, match="a token of stop_token_ids must be a whole number"):
        SamplingParams(stop_token_ids=torch.tensor([3.5]))  # type: ignore[arg-type]


def test_what_a_caller_changes_later_in_its_own_containers_changes_nothing() -> None:
    bias, ids = {1: 2.0}, [3]
    params = SamplingParams(logit_bias=bias, stop_token_ids=ids)
    bias[2] = math.nan
    ids.append(-1)
    assert params == SamplingParams(logit_bias={1: 2.0}, stop_token_ids=[3])


def test_a_copy_is_changed_and_checked_and_the_parameters_stay() -> None:
    params = SamplingParams(temperature=0.5, stop="x", logit_bias={1: 2.0})
    assert params.clone() == params
    copy = params.clone(max_tokens=5, stop=None)
    assert copy == SamplingParams(temperature=0.5, max_tokens=5, logit_bias={1: 2.0})
    assert params.max_tokens == 64 and params.stop == ("x",)
    with pytest.raises(InvalidSampling, match="top_p must be above 0"):
        params.clone(top_p=2)
    with pytest.raises(FrozenInstanceError):
        params.max_tokens = 5  # type: ignore[misc]


def test_none_means_the_models_own_default_then_neutral() -> None:
    params = SamplingParams(top_p=0.5).resolved({"temperature": 0.6, "top_p": 0.95, "top_k": 20})
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.5, 20, 0.0)


def test_minus_one_is_vllms_word_for_no_top_k() -> None:
    assert SamplingParams(top_k=-1).top_k == 0


def test_a_temperature_under_which_logits_would_overflow_is_greedy() -> None:
    assert all(SamplingParams(temperature=value).greedy for value in (0, 1e-300, 1e-38, 9e-6))
    assert not SamplingParams(temperature=1e-5).greedy
    assert SamplingParams().resolved({"temperature": 1e-40}).greedy, "the model's own default too"

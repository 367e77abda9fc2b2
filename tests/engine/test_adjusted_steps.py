"""Requests with penalties, biases, `min_tokens` or log-probabilities decode in graphs too, and beside others leave them there.

Replies are those of each request alone in the engine without graphs. The device is a CPU, see `graphed`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from graphed import Driver, graphed_core, install
from hash_model import VOCABULARY, hash_core
from lagging_device import lag

from nanochat.engine import cuda_graphs, sampler
from nanochat.engine.admission import Admission
from nanochat.engine.outputs import CompletionOutput, FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampler import Logprobs
from nanochat.engine.sampling_params import SamplingParams

TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 2
POISON = 41  # a hash whose logits are NaN, where a test asks for it
GREEDY, DRAWN = {"temperature": 0.0}, {"temperature": 0.8, "seed": 5}
WISHES: dict[str, dict[str, Any]] = {
    "plain": GREEDY,
    "drawn": {**DRAWN, "top_k": 30},
    "log-probabilities": {**DRAWN, "logprobs": 3},
    "repetition": {**GREEDY, "repetition_penalty": 1.9},
    "presence and frequency": {**DRAWN, "presence_penalty": 1.9, "frequency_penalty": 0.7},
    "bias": {**DRAWN, "logit_bias": {4: 4.0, 9: 4.0, 50: -50.0}},
    "no early end": {**DRAWN, "min_tokens": 9, "stop_token_ids": tuple(range(0, VOCABULARY, 4))},
    "all": {
        **DRAWN, "top_p": 0.95, "logprobs": 1, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "min_tokens": 4,
        "logit_bias": {7: 2.0}, "stop_token_ids": (7, 8),
    },
}  # fmt: skip


def logits_of(hidden: torch.Tensor, poison: int | None = None) -> torch.Tensor:
    rows = TABLE[hidden[:, 0].long()].clone()
    if poison is not None:
        rows[hidden[:, 0] == poison] = float("nan")
    return rows


def request(name: str, length: int = 24) -> Request:
    start = [*WISHES].index(name)
    return Request(
        [(start * 11 + i * 7) % 90 for i in range(3 + 5 * start)],
        SamplingParams(**{"max_tokens": length, "ignore_eos": True, **WISHES[name]}),
    )


def alone(name: str, **options: Any) -> CompletionOutput:
    core = hash_core(64, **options)
    core._runner.model.logits = logits_of  # type: ignore[attr-defined]
    return run(core, [request(name)])[0]


def run(core: Any, requests: list[Request], apart: int = 2) -> list[CompletionOutput]:
    """The replies to requests that come some steps apart."""
    done: dict[str, CompletionOutput] = {}
    for each in requests:
        core.add(each)
        for _ in range(apart):
            done |= {u.request_id: u.finished for u in core.step() if u.finished is not None}
    for _ in range(400):
        if not core.has_work:
            return [done[each.request_id] for each in requests]
        done |= {u.request_id: u.finished for u in core.step() if u.finished is not None}
    raise AssertionError("still at work")


def engine(beside: int = 64, **options: Any) -> tuple[Any, Any]:
    """Prompts are read beside replies `beside` tokens at a time; one token is a step without graphs."""
    core, model = graphed_core(120, max_num_seqs=len(WISHES), prefill_beside_decodes=beside, **options)
    model.share_of_logits = model.logits = logits_of
    return core, model


def told(output: CompletionOutput) -> list[dict[int, tuple[float, int]]] | None:
    if output.logprobs is None:
        return None
    return [
        {token: (round(entry.logprob, 4), entry.rank) for token, entry in table.items()}
        for table in output.logprobs
    ]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return install(monkeypatch)


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_replies_of_a_mixed_batch_are_those_of_each_request_alone(
    driver: Driver, eager: bool, ahead: int
) -> None:
    core, model = engine(eager=eager)
    lag(core, ahead)
    requests = [request(name) for name in WISHES]
    outputs = run(core, requests)
    for name, output in zip(WISHES, outputs, strict=True):
        right = alone(name)
        assert output.token_ids == right.token_ids, name
        assert output.finish_reason is right.finish_reason, name
        assert told(output) == told(right), name
    assert outputs[[*WISHES].index("no early end")].finish_reason is FinishReason.STOP
    assert all(layout.captured for layout in model.layouts), "no step was launched in Python"
    forms = {form for _, form in core._runner._graphs._captured}
    assert forms == (set() if eager else {"whole", "logits"})


@pytest.mark.parametrize("beside", [64, 7])
@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_a_batch_goes_from_one_kind_of_step_to_the_other_and_back(
    driver: Driver, eager: bool, beside: int
) -> None:
    """Its rows on the device are the same; the host knows none of the tokens yet."""
    core, _ = engine(beside, eager=eager)
    lag(core, 3)
    forms: list[str] = []
    form = cuda_graphs.DecodeGraphs._form

    def noted(graphs: Any, chunks: Any) -> Any:
        forms.append(form(graphs, chunks))
        return forms[-1]

    core._runner._graphs._form = noted.__get__(core._runner._graphs)
    names = ["drawn", "plain", "no early end", "log-probabilities", "repetition"]
    lengths = [40, 40, 24, 5, 24]
    requests = [request(name, length) for name, length in zip(names, lengths, strict=True)]
    outputs = run(core, requests, apart=4)
    for name, length, output in zip(names, lengths, outputs, strict=True):
        whole = hash_core(64)
        whole._runner.model.logits = logits_of  # type: ignore[attr-defined]
        assert output.token_ids == run(whole, [request(name, length)])[0].token_ids, name
    changes = sum(one != other for one, other in pairwise(forms))
    assert changes >= 3 and set(forms) == {"whole", "logits"}


@pytest.mark.parametrize("beside", [64, 7])
@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_first_tokens_too_are_drawn_where_nothing_waits_for_the_device(
    driver: Driver, eager: bool, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's sampler looks at numbers of the device, which first does all that was queued for the replies beside."""
    right = [alone(name).token_ids for name in WISHES]

    def waits(*_: Any) -> Any:
        raise AssertionError("the host's sampler was asked")

    monkeypatch.setattr(sampler, "adjust", waits)
    monkeypatch.setattr(sampler, "_draw", waits)
    core, _ = engine(beside, eager=eager)
    lag(core, 3)
    assert [output.token_ids for output in run(core, [request(name) for name in WISHES])] == right


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_memory_that_runs_out_behind_a_replay_ends_one_reply_and_moves_no_row(
    driver: Driver, eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, _ = engine(eager=eager)
    lag(core, 3)
    calls: list[int] = []
    on_host = Logprobs.on_host

    def short(found: Logprobs) -> Logprobs:
        if found.chosen.shape[0] == 3:
            calls.append(1)
            if len(calls) == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return on_host(found)

    monkeypatch.setattr(Logprobs, "on_host", short)
    names = ["plain", "drawn", "log-probabilities"]
    outputs = run(core, [request(name) for name in names], apart=3)
    assert len(calls) >= 4
    failed = [output.finish_reason is FinishReason.ERROR for output in outputs]
    assert sum(failed) == 1
    for name, output, ended in zip(names, outputs, failed, strict=True):
        right = alone(name).token_ids
        assert output.token_ids == (right[: len(output.token_ids)] if ended else right), name


def test_a_reply_whose_logits_are_nan_ends_and_its_neighbours_go_on(driver: Driver) -> None:
    core, model = engine()
    lag(core, 3)
    model.share_of_logits = model.logits = lambda hidden: logits_of(hidden, POISON)
    names = ["plain", "log-probabilities", "repetition", "bias"]
    outputs = run(core, [request(name, 60) for name in names])
    ended = [output.finish_reason is FinishReason.ERROR for output in outputs]
    assert any(ended) and not all(ended)
    for name, output, damaged in zip(names, outputs, ended, strict=True):
        whole = hash_core(64)
        whole._runner.model.logits = logits_of  # type: ignore[attr-defined]
        right = run(whole, [request(name, 60)])[0].token_ids
        assert output.token_ids == (right[: len(output.token_ids)] if damaged else right), name
        assert "NaN" in (output.error or "") if damaged else output.error is None


def test_bad_words_come_in_no_captured_step(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    free = alone("plain").token_ids
    spellings = ((free[3],), free[1:3])
    monkeypatch.setattr(Admission, "_spell", lambda self, words: spellings[: len(words)])
    for words in (["w"], ["w", "w w"]):
        wish = Request(request("plain").prompt_ids, SamplingParams(**GREEDY, max_tokens=24, bad_words=words))
        beside = request("drawn")
        right = hash_core(64)
        right._runner.model.logits = logits_of  # type: ignore[attr-defined]
        core, model = engine()
        lag(core, 3)
        outputs = run(core, [wish, beside])
        assert outputs[0].token_ids == run(right, [wish])[0].token_ids != free
        assert free[3] not in outputs[0].token_ids and outputs[1].token_ids == alone("drawn").token_ids
        assert all(layout.captured for layout in model.layouts)

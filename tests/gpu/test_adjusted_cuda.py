"""Requests with penalties, biases, `min_tokens` or log-probabilities on CUDA: in graphs, the bits of eager steps, and in
the deterministic mode those of the request alone. Steps of both kinds follow each other over the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_engines import KINDS, VOCABULARY, draw_prompts, load, write_model

from nanochat.engine.llm import LLM
from nanochat.engine.outputs import FinishReason, RequestOutput
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.kernels.graph_memory import borrowed

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
LENGTH, LARGEST = 8, 160
SIZES = [1, 2, 3, 7, 8, 9, 33, 64, 65, 150]
ENDS = list(range(0, VOCABULARY, 3))  # a third of the vocabulary
DRAWN = {"temperature": 0.9, "seed": 3}
STEADY: list[dict[str, Any]] = [  # a batch of these is the same at every step, whatever the host is up to
    {**DRAWN, "logprobs": 3},
    {"temperature": 0.0},
    {**DRAWN, "top_k": 40, "top_p": 0.95, "min_tokens": LENGTH, "stop_token_ids": ENDS},
    {**DRAWN, "logit_bias": {5: 4.0, 77: -100.0, 1000: 2.5}},
    {**DRAWN, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0, "logprobs": 0, "logit_bias": {9: 1.0}},
]
HISTORY: list[dict[str, Any]] = [  # these wait for their tokens to be read
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 5},
    {**DRAWN, "presence_penalty": 1.0, "frequency_penalty": 0.4},
    {**DRAWN, "top_k": 9, "repetition_penalty": 1.1, "min_tokens": 4, "stop_token_ids": ENDS, "logprobs": 1},
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(request.param, tmp_path_factory.mktemp(request.param))


def params_of(wishes: list[dict[str, Any]], count: int, length: int = LENGTH) -> list[SamplingParams]:
    return [
        SamplingParams(**{"max_tokens": length, "ignore_eos": True, **wish})
        for wish in islice(cycle(wishes), count)
    ]


def engine(folder: Path, **options: Any) -> LLM:
    return load(folder, enable_prefix_caching=False, max_num_seqs=LARGEST, **options)


def told(output: RequestOutput) -> Any:
    """A reply's tokens, how it ended, and all its log-probabilities."""
    reply = output.outputs[0]
    tables = [
        {token: (entry.logprob, entry.rank) for token, entry in table.items()}
        for table in reply.logprobs or ()
    ]
    return reply.token_ids, reply.finish_reason, tables


def replies(llm: LLM, batch: list[list[int]], params: list[SamplingParams]) -> list[Any]:
    return [told(output) for output in llm.generate(batch, params, use_tqdm=False)]


@contextmanager
def launched_in_python(llm: LLM) -> Iterator[list[list[Chunk]]]:
    """The steps that decode and were neither replayed nor a prompt's."""
    runner, seen = llm.core._runner, []
    run = runner._run

    def watched(chunks: list[Chunk]) -> Any:
        if all(chunk.count == 1 and chunk.start >= len(chunk.sequence.prompt) for chunk in chunks):
            seen.append(chunks)
        return run(chunks)

    runner._run = watched
    try:
        yield seen
    finally:
        runner._run = run


@pytest.mark.parametrize("deterministic", [False, True], ids=["usual", "deterministic"])
def test_graphs_give_the_bits_of_eager_steps_in_mixed_batches(folder: Path, deterministic: bool) -> None:
    wishes = STEADY + (HISTORY if deterministic else [])
    graphs, eager = (engine(folder, deterministic=deterministic, enforce_eager=off) for off in (False, True))
    for count in SIZES:
        batch, params = draw_prompts(count, count), params_of(wishes, count)
        with launched_in_python(graphs) as seen:
            captured = replies(graphs, batch, params)
        assert captured == replies(eager, batch, params), count
        assert not seen
    sizes = {size for size, form in graphs.core._runner._graphs._captured if form == "logits"}
    assert sizes >= {1, 2, 4, 8, 16, 40, 64, 80, 160} if not deterministic else sizes
    assert not eager.core._runner._graphs._captured
    graphs.close()
    eager.close()


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_in_the_deterministic_mode_a_mixed_batch_gives_the_bits_of_each_alone(
    folder: Path, eager: bool
) -> None:
    """Prompts are read in chunks beside replies, so that tokens come from every kind of step."""
    llm = engine(folder, deterministic=True, enforce_eager=eager, max_num_batched_tokens=256)
    batch, params = draw_prompts(27, 4, 400), params_of(STEADY + HISTORY, 27, 24)
    alone = [replies(llm, [prompt], [own])[0] for prompt, own in zip(batch, params, strict=True)]
    assert replies(llm, batch, params) == alone
    ends = {reason for _, reason, _ in alone}
    assert ends == {FinishReason.LENGTH, FinishReason.STOP}, "some ended where `min_tokens` let them"
    llm.close()


def test_a_batch_goes_from_one_kind_of_step_to_the_other_and_back(folder: Path) -> None:
    """Short requests with wishes come and go beside long ones without, whose rows stay on the device."""
    llm = engine(folder, dtype="float32")
    batch = draw_prompts(12, 6, 60)
    params = params_of([{"temperature": 0.0}], 4, 130)
    params += params_of([{**wish, "temperature": 0.0} for wish in STEADY + HISTORY], 8)
    alone = [replies(llm, [prompt], [own])[0][0] for prompt, own in zip(batch, params, strict=True)]
    graphs, forms = llm.core._runner._graphs, []
    form_of = graphs._form

    def noted(chunks: list[Chunk]) -> Any:
        forms.append(form_of(chunks))
        return forms[-1]

    graphs._form = noted
    requests = [Request(prompt, own) for prompt, own in zip(batch, params, strict=True)]
    said: dict[str, list[int]] = {request.request_id: [] for request in requests}
    coming = iter(requests)
    for request in islice(coming, 4):
        llm.core.add(request)
    while llm.core.has_work:
        for _ in range(12):
            for update in llm.core.step():
                said[update.request_id].extend(update.token_ids)
        request = next(coming, None)
        if request is not None:
            llm.core.add(request)
    assert [tuple(said[request.request_id]) for request in requests] == alone
    assert set(forms) == {"whole", "logits"} and sum(one != other for one, other in pairwise(forms)) >= 4
    llm.close()


def test_nothing_in_such_a_step_waits_for_the_device(folder: Path) -> None:
    llm = engine(folder)
    graphs, batch, params = llm.core._runner._graphs, draw_prompts(18, 8), params_of(STEADY + HISTORY, 18, 30)
    replies(llm, batch, params)  # captures and compiles
    dispatch, seen, checked = graphs.dispatch, set(), []

    def watched(chunks: list[Chunk]) -> Any:
        kind = (len(chunks), graphs._form(chunks))
        if kind in seen:  # else it may have to be captured
            checked.append(kind)
            torch.cuda.set_sync_debug_mode("error")
        seen.add(kind)
        try:
            return dispatch(chunks)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    graphs.dispatch = watched
    replies(llm, batch, params)
    assert sum(form == "logits" for _, form in checked) > 10
    llm.close()


@pytest.mark.parametrize("deterministic", [False, True], ids=["usual", "deterministic"])
def test_nothing_in_the_drawing_of_first_tokens_waits_for_the_device(
    folder: Path, deterministic: bool
) -> None:
    llm = engine(folder, deterministic=deterministic)
    runner, batch, params = llm.core._runner, draw_prompts(18, 8), params_of(STEADY + HISTORY, 18)
    replies(llm, batch, params)  # compiles
    finish, drawn = runner._finish, []

    def watched(chunks: list[Chunk], healthy: Any, logits: Any) -> Any:
        drawn.extend(chunk for chunk in chunks if chunk.samples)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return finish(chunks, healthy, logits)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    runner._finish = watched
    together = replies(llm, batch, params)
    alone = [replies(llm, [prompt], [own])[0] for prompt, own in zip(batch, params, strict=True)]
    assert len(drawn) >= 2 * 18
    assert not deterministic or together == alone
    llm.close()


def test_a_model_that_is_damaged_in_the_middle_ends_its_replies(folder: Path) -> None:
    llm = engine(folder)
    batch, params = draw_prompts(12, 1), params_of(STEADY, 12, 40)
    requests = [Request(prompt, own) for prompt, own in zip(batch, params, strict=True)]
    for request in requests:
        llm.core.add(request)
    said = dict.fromkeys((request.request_id for request in requests), 0)
    reasons: dict[str, FinishReason | None] = {}
    while llm.core.has_work:
        for update in llm.core.step():
            said[update.request_id] += len(update.token_ids)
            if update.finished is not None:
                reasons[update.request_id] = update.finished.finish_reason
        if min(said.values()) == 3:
            with torch.inference_mode():
                llm.core._runner.model.weights.final_norm.fill_(float("nan"))
    assert set(reasons.values()) <= {FinishReason.ERROR, FinishReason.STOP}
    assert sum(reason is FinishReason.ERROR for reason in reasons.values()) >= 8
    llm.close()


@pytest.mark.parametrize("rows", [1, 3])
def test_what_graphs_leave_shares_their_pools_memory_and_is_right_until_the_next_replay(rows: int) -> None:
    source = torch.arange(rows << 22, dtype=torch.float32, device="cuda").view(rows, -1)
    pool, left = torch.cuda.graph_pool_handle(), []
    torch.cuda.synchronize()
    for number in range(4):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            found = source * (number + 1)
        left.append((graph, borrowed(found), number + 1))
        assert left[-1][1].shape == found.shape and left[-1][1].dtype == torch.float32
        del found
    assert len({view.data_ptr() for _, view, _ in left}) == 1, "one graph's is where the other's was"
    for graph, view, factor in left:
        graph.replay()
        assert torch.equal(view, source * factor)
        view.add_(1.0)  # changed in place, as a step's logits are
        graph.replay()
        assert torch.equal(view, source * factor)

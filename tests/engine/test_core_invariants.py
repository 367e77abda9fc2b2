"""Random submits, cancels, forks: the block invariants hold after each step, and every reply is right."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hash_model import HashModel, hash_config, hash_core, reply
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lagging_device import lag

from nanochat.engine.admission import Admission
from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import ContextOverflow, EmptyPrompt, InvalidSampling

GREEDY = {"temperature": 0.0, "ignore_eos": True}


class EngineMachine(RuleBasedStateMachine):
    """Small pools and budgets, so that preemption, chunking and eviction happen all the time."""

    @initialize(
        blocks=st.integers(8, 24), seats=st.integers(1, 6), tokens=st.integers(8, 64), caching=st.booleans(),
        ahead=st.integers(0, 4),
    )  # fmt: skip
    def build(self, blocks: int, seats: int, tokens: int, caching: bool, ahead: int) -> None:
        self.core = hash_core(
            blocks, max_num_seqs=seats, max_num_batched_tokens=tokens, enable_prefix_caching=caching,
            prefill_beside_decodes=tokens,  # not by the clock: a run must be the same when it is run again
        )  # fmt: skip
        lag(self.core, ahead)
        self.open: dict[str, Request] = {}
        self.cancelled: set[str] = set()
        self.prompts: list[list[int]] = [[1, 2, 3]]

    def _submit(self, prompt: list[int], max_tokens: int, n: int, priority: int) -> None:
        room = self.core.max_model_len - 1
        prompt = prompt[:room]
        request = Request(prompt, SamplingParams(max_tokens=max_tokens, n=n, **GREEDY), priority)
        self.core.add(request)
        self.open[request.request_id] = request
        self.prompts.append(prompt)

    @rule(
        length=st.integers(1, 120),
        start=st.integers(0, 5),
        out=st.integers(0, 40),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
    )
    def submit(self, length: int, start: int, out: int, n: int, priority: int) -> None:
        self._submit([(start + i * 7) % 90 for i in range(length)], out, n, priority)

    @rule(
        which=st.integers(0, 10**6),
        keep=st.integers(1, 200),
        tail=st.lists(st.integers(0, 96), max_size=20),
        out=st.integers(0, 30),
    )
    def fork(self, which: int, keep: int, tail: list[int], out: int) -> None:
        old = self.prompts[which % len(self.prompts)]
        self._submit(old[:keep] + tail, out, 1, 0)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 10**6))
    def cancel(self, which: int) -> None:
        request_id = sorted(self.open)[which % len(self.open)]
        self.cancelled.add(request_id)
        self.core.abort(request_id)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 10**6), priority=st.integers(0, 2))
    def reprioritise(self, which: int, priority: int) -> None:
        self.core.reprioritise(sorted(self.open)[which % len(self.open)], priority)

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._take(self.core.step())
            self.core.cache.check(self.core.sequences)

    def _take(self, updates) -> None:
        for update in updates:
            if update.finished is None:
                continue
            request = self.open[update.request_id]
            output = update.finished
            room = self.core.max_model_len - len(request.prompt_ids)
            wanted = reply(list(request.prompt_ids), min(request.params.max_tokens, room))
            if output.finish_reason is FinishReason.ABORT:
                assert update.request_id in self.cancelled
                assert list(output.token_ids) == wanted[: len(output.token_ids)]
            else:
                assert output.finish_reason is FinishReason.LENGTH
                assert list(output.token_ids) == wanted
            assert output.metrics.cached_tokens % 16 == 0
            assert output.metrics.cached_tokens < len(request.prompt_ids)
            if update.last:
                del self.open[update.request_id]

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if hasattr(self, "core"):
            self.core.cache.check(self.core.sequences)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(100_000):
            if not self.core.has_work:
                break
            self._take(self.core.step())
        self._take(self.core.step())
        assert not self.core.has_work, "the engine makes no progress"
        assert not self.open, "a request never got its end"
        assert self.core.cache.num_used == 0


EngineMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=100, suppress_health_check=list(HealthCheck)
)
TestTenThousandRandomSteps = EngineMachine.TestCase


def run(core, *requests: Request) -> dict[str, list]:
    done: dict[str, list] = {}
    for request in requests:
        core.add(request)
    while core.has_work:
        for update in core.step():
            if update.finished is not None:
                done.setdefault(update.request_id, []).append(update.finished)
    for update in core.step():
        if update.finished is not None:
            done.setdefault(update.request_id, []).append(update.finished)
    return done


def test_a_second_turn_reuses_every_full_block_of_the_first() -> None:
    core = hash_core()
    first = Request(list(range(50)), SamplingParams(max_tokens=30, **GREEDY))
    (output,) = run(core, first)[first.request_id]
    second = Request([*first.prompt_ids, *output.token_ids, 5, 6], SamplingParams(max_tokens=4, **GREEDY))
    (again,) = run(core, second)[second.request_id]
    assert (
        again.metrics.cached_tokens == (50 + 30 - 1) // 16 * 16
    )  # the last token was sampled, never computed


def test_a_fully_cached_prompt_recomputes_only_its_last_block() -> None:
    core = hash_core()
    request = Request(list(range(64)), SamplingParams(max_tokens=1, **GREEDY))
    run(core, request)
    again = Request(list(range(64)), SamplingParams(max_tokens=1, **GREEDY))
    (output,) = run(core, again)[again.request_id]
    assert output.metrics.cached_tokens == 48
    assert list(output.token_ids) == reply(list(range(64)), 1)


def test_n_replies_share_the_full_blocks_of_the_prompt() -> None:
    for caching in (True, False):
        core = hash_core(enable_prefix_caching=caching)
        core.add(Request(list(range(40)), SamplingParams(max_tokens=8, n=3, **GREEDY)))
        for _ in range(3):
            core.step()
        tables = [sequence.blocks for sequence in core.sequences]
        assert len(tables) == 3 and all(table[:2] == tables[0][:2] for table in tables)
        assert core.cache.num_used == 2 + 3


def test_different_salts_share_nothing() -> None:
    names = []
    for salt in ("", "a"):
        core = hash_core(prefix_salt=salt)
        run(core, Request(list(range(40)), SamplingParams(max_tokens=1, **GREEDY)))
        names.append(set(core.cache._blocks))
    assert names[0] and not names[0] & names[1]


def test_without_prefix_caching_nothing_is_reused_by_another_request() -> None:
    core = hash_core(enable_prefix_caching=False)
    for _ in range(2):
        request = Request(list(range(40)), SamplingParams(max_tokens=1, **GREEDY))
        (output,) = run(core, request)[request.request_id]
        assert output.metrics.cached_tokens == 0


def test_a_running_reply_gets_a_token_every_step_while_a_long_prompt_is_read() -> None:
    core = hash_core(num_blocks=64, max_num_batched_tokens=32)
    talking = Request([1, 2, 3], SamplingParams(max_tokens=40, **GREEDY))
    core.add(talking)
    core.step()
    core.add(Request(list(range(90)) * 8, SamplingParams(max_tokens=1, **GREEDY)))
    for _ in range(20):
        assert sum(len(u.token_ids) for u in core.step() if u.request_id == talking.request_id) == 1


def test_the_lowest_priority_is_preempted_and_resumes_where_it_was() -> None:
    core = hash_core(num_blocks=8)
    low = Request(list(range(40)), SamplingParams(max_tokens=60, **GREEDY), priority=5)
    high = Request(list(range(50, 90)), SamplingParams(max_tokens=60, **GREEDY), priority=0)
    done = run(core, low, high)
    assert done[high.request_id][0].metrics.preemptions == 0
    assert done[low.request_id][0].metrics.preemptions >= 1
    for request in (low, high):
        assert list(done[request.request_id][0].token_ids) == reply(list(request.prompt_ids), 60)


def test_nan_ends_its_own_request_and_is_never_cached() -> None:
    core = hash_core(poison=7)
    bad = Request([1] * 31 + [7], SamplingParams(max_tokens=4, **GREEDY))
    good = Request([2] * 40, SamplingParams(max_tokens=4, **GREEDY))
    done = run(core, bad, good)
    assert done[bad.request_id][0].finish_reason is FinishReason.ERROR
    assert "NaN" in done[bad.request_id][0].error
    assert list(done[good.request_id][0].token_ids) == reply([2] * 40, 4)
    assert core.cache.num_cached == 40 // 16, "only the good request's full blocks are cached"


def test_a_step_out_of_memory_ends_the_largest_request_and_not_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = hash_core(num_blocks=64)
    forward = HashModel.forward

    def fails_on_large(self, ids, positions, layout, kv_cache):
        if max(layout.query_lens) > 100:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes"
            )
        return forward(self, ids, positions, layout, kv_cache)

    monkeypatch.setattr(HashModel, "forward", fails_on_large)
    large = Request([3] * 200, SamplingParams(max_tokens=2, **GREEDY))
    small = Request([4] * 20, SamplingParams(max_tokens=5, **GREEDY))
    done = run(core, large, small)
    assert done[large.request_id][0].finish_reason is FinishReason.ERROR
    assert "out of memory" in done[large.request_id][0].error
    assert list(done[small.request_id][0].token_ids) == reply([4] * 20, 5)


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ([], {}, EmptyPrompt),
        (list(range(90)) * 10, {}, ContextOverflow),
        ([97], {}, InvalidSampling),
        ([-1], {}, InvalidSampling),
        ([1], {"stop_token_ids": (97,)}, InvalidSampling),
    ],
)
def test_what_can_never_run_is_refused_before_it_starts(prompt, params, error) -> None:
    core = hash_core()
    with pytest.raises(error):
        core.add(Request(prompt, SamplingParams(**params)))
    assert not core.has_work


@pytest.mark.parametrize(("own", "can_be_longer"), [(64, False), (8192, True)])
def test_a_longer_context_is_only_offered_where_the_model_has_one(own: int, can_be_longer: bool) -> None:
    config = SimpleNamespace(vocab_size=97, max_position_embeddings=own)
    admission = Admission(hash_config(), config, None, 64, "")  # type: ignore[arg-type]
    with pytest.raises(ContextOverflow, match="80 tokens and the context holds 64") as refused:
        admission.check(Request([1] * 80, SamplingParams()))
    assert ("max_model_len" in str(refused.value)) == can_be_longer

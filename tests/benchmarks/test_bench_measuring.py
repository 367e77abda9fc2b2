"""Cases on an engine with a clock of its own: what is known must be reported exactly."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from bench_fakes import FakeCore

from nanochat.benchmarks.batch import Batch
from nanochat.benchmarks.case import Ask, Case, Stopped, Target, Weights
from nanochat.benchmarks.conversation import Interference, Turn
from nanochat.benchmarks.cost import Ceilings, ModelCost
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.benchmarks.measuring import Bench, Progress, measure_case
from nanochat.benchmarks.result import Row
from nanochat.benchmarks.single import Decode, FirstToken, Prefill
from nanochat.benchmarks.target import CoreTarget
from nanochat.engine.models.config import ModelConfig

PREFILL, STEP = 1000.0, 0.02  # tok/s; seconds a decode step


@pytest.fixture
def cost(tmp_path: Path) -> ModelCost:
    return ModelCost(ModelConfig.from_folder(write_shape("tiny", tmp_path)), 2)


def measured(case: Case, cost: ModelCost, core: FakeCore | None = None, **options: object) -> Row:
    core = core or FakeCore(prefill=PREFILL, step_seconds=STEP)
    bench = Bench(
        targets=[CoreTarget(core, clock=core.clock)],
        cost=cost,
        ceilings=Ceilings(1e9, 1e12),
        context=4096,
        repeats=3,
        clock=core.clock,
        **options,  # type: ignore[arg-type]
    )
    (row,), stopped = measure_case(bench, case, 1, 1)
    assert not stopped and row.error is None and len(row.samples) == 3 and not row.partial
    return row


def test_prefill_is_the_prompt_over_the_time_to_the_first_token(cost: ModelCost) -> None:
    row = measured(Prefill(500), cost)
    assert row.samples == pytest.approx([PREFILL] * 3)
    assert row.percentile("ttft", 0.5) == pytest.approx(500.0)
    assert row.test == "pp500" and row.unit == "tok/s"


@pytest.mark.parametrize("by_arrival", [True, False])
def test_decode_leaves_the_prompt_out_however_it_is_measured(by_arrival: bool, cost: ModelCost) -> None:
    row = measured(Decode(10, 300, by_arrival=by_arrival), cost)
    assert row.samples == pytest.approx([1 / STEP] * 3)
    assert row.test == "tg10 @ d300"


def test_a_second_turn_pays_for_the_new_tokens_only(cost: ModelCost) -> None:
    turn = measured(FirstToken("turn", 50, 800), cost)
    assert turn.samples == pytest.approx([50.0] * 3)
    assert turn.details["anew"] == pytest.approx([850.0] * 3)  # beside it, each time
    assert measured(FirstToken("fresh", 850), cost).samples == pytest.approx([850.0] * 3)


def test_a_chat_without_its_cache_pays_for_every_turn_again(cost: ModelCost) -> None:
    assert measured(Turn(3, 20, 80, cache=True), cost).samples == pytest.approx([20.0] * 3)
    assert measured(Turn(3, 20, 80, cache=False), cost).samples == pytest.approx([220.0] * 3)


def test_throughput_counts_output_over_the_whole_time(cost: ModelCost) -> None:
    row = measured(Batch(4, 25, 11), cost)
    seconds = 4 * 25 / PREFILL + 10 * STEP
    assert row.samples == pytest.approx([44 / seconds] * 3)
    assert row.percentile("tok/s each", 0.5) == pytest.approx(11 / seconds)
    assert row.percentile("itl", 0.99) == pytest.approx(1e3 * STEP)
    assert row.place == {"batch": 4}


def test_the_worst_gap_is_that_of_the_long_prompt_and_the_step_after_it(cost: ModelCost) -> None:
    row = measured(Interference(2, 700, ahead=5), cost)
    assert row.samples == pytest.approx([1e3 * (0.7 + STEP)] * 3)
    assert row.percentile("gap alone", 1.0) == pytest.approx(1e3 * STEP)


def test_the_fraction_is_what_was_reached_of_the_ceiling(cost: ModelCost) -> None:
    row = measured(Decode(10, 300), cost)
    assert row.ceiling is not None and row.fraction == pytest.approx(50 / row.ceiling)
    late = measured(FirstToken("fresh", 850), cost)
    assert late.ceiling is not None and late.fraction == pytest.approx(late.ceiling / 850)


def test_a_ceiling_is_that_of_the_weights_which_the_engine_reads(cost: ModelCost) -> None:
    def ceiling(weights: Weights) -> float | None:
        core = FakeCore(prefill=PREFILL, step_seconds=STEP)
        target = CoreTarget(core, clock=core.clock, weights=weights)
        bench = Bench([target], cost, Ceilings(1e9, 1e12), 4096, repeats=1, clock=core.clock)
        return measure_case(bench, Decode(10, 1), 1, 1)[0][0].ceiling

    planned, quantized = ceiling("as planned"), ceiling(0.5)
    assert planned is not None and planned == pytest.approx(ceiling(2.0))
    assert (
        quantized is not None and 3.5 < quantized / planned < 4.0
    )  # but for the cache, which stays as it is
    assert ceiling("unknown") is None


def test_the_collector_leaves_the_libraries_alone_while_something_is_measured(
    cost: ModelCost, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.unfreeze()  # what another test has frozen in this process
    core, frozen = FakeCore(prefill=PREFILL, step_seconds=STEP), list[int]()
    step = core.step
    monkeypatch.setattr(core, "step", lambda: (frozen.append(gc.get_freeze_count()), step())[1])
    measured(Decode(10, 300), cost, core)
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0


def test_prompts_are_not_the_same_twice(cost: ModelCost) -> None:
    core = FakeCore(prefill=PREFILL, step_seconds=STEP)
    measured(Prefill(40), cost, core)
    prompts = {tuple(request.prompt_ids) for request in core.seen}
    assert len(prompts) == len(core.seen) == 4  # a warm-up and three repeats
    assert all(request.params.ignore_eos and request.params.temperature == 0.6 for request in core.seen)


def test_out_of_memory_ends_its_row_and_no_other(cost: ModelCost) -> None:
    core = FakeCore(prefill=PREFILL, step_seconds=STEP, fails_at=100)
    bench = Bench([CoreTarget(core, clock=core.clock)], cost, Ceilings(1e9, 1e12), 4096, repeats=2)
    (failed,), stopped = measure_case(bench, Prefill(200), 1, 2)
    assert not stopped and failed.error is not None and "out of memory" in failed.error and not failed.samples
    assert not core.has_work
    (fine,), _ = measure_case(bench, Prefill(50), 2, 2)
    assert fine.error is None and len(fine.samples) == 2


def test_what_does_not_fit_the_context_is_skipped_with_the_numbers(cost: ModelCost) -> None:
    core = FakeCore(prefill=PREFILL, step_seconds=STEP)
    bench = Bench([CoreTarget(core, clock=core.clock)], cost, Ceilings(1e9, 1e12), 100)
    (row,), _ = measure_case(bench, Prefill(200), 1, 1)
    assert row.skipped == "it needs 201 tokens, and the context is 100" and row.error is None
    assert not core.seen


def test_a_stop_keeps_what_was_measured(cost: ModelCost) -> None:
    core = FakeCore(prefill=PREFILL, step_seconds=STEP)
    seen: list[Progress] = []
    target = CoreTarget(core, clock=core.clock, stopped=lambda: any(each.repeat == 2 for each in seen))
    bench = Bench(
        [target], cost, Ceilings(1e9, 1e12), 4096, repeats=5, on_progress=seen.append, clock=core.clock
    )
    (row,), stopped = measure_case(bench, Prefill(50), 1, 1)
    assert stopped and row.partial and row.samples == pytest.approx([PREFILL] * 2)
    assert not core.has_work


def test_a_stop_takes_the_running_requests_with_it() -> None:
    core = FakeCore(prefill=PREFILL, step_seconds=STEP)
    target = CoreTarget(core, clock=core.clock, stopped=lambda: core.now > 100.5)
    with pytest.raises(Stopped):
        target.run([Ask((1, 2, 3), 1000)])
    assert not core.has_work and core.now < 101.0  # nothing was generated to its end


def test_engines_take_turns_in_alternating_order(cost: ModelCost) -> None:
    order: list[str] = []

    class Noted(CoreTarget):
        def run(self, asks, *, until=None):  # type: ignore[no-untyped-def]
            order.append(self.name)
            return super().run(asks, until=until)

    def target(name: str) -> Target:
        core = FakeCore(prefill=PREFILL, step_seconds=STEP)
        return Noted(core, name=name, clock=core.clock)

    bench = Bench([target("a"), target("b")], cost, Ceilings(1e9, 1e12), 4096, repeats=2)
    rows, _ = measure_case(bench, Prefill(50), 1, 1)
    assert [row.engine for row in rows] == ["a", "b"]
    assert order == ["a", "b", "b", "a", "a", "b"]

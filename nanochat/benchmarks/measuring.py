"""Measures cases on engines: warm-up, repeats in alternating order, watched; one row for each case and engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from nanochat.benchmarks.case import Case, Limit, Sample, Stopped, Target
from nanochat.benchmarks.cost import Ceilings, ModelCost
from nanochat.benchmarks.result import Row
from nanochat.benchmarks.target import CoreTarget
from nanochat.benchmarks.watch import Watch
from nanochat.engine.memory import is_out_of_memory
from nanochat.errors import NanochatError, OutOfMemory

_LEAST_ENERGY_SECONDS = 1.0  # NVML's counter moves some ten times a second
_MEASURED_SHARE = 0.8  # of the watched time, for energy to be that of the measured tokens


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        value: the last repeat's, in `unit`.
        seconds_left: in this case, guessed from its last repeat; None before the first.
        run_seconds_left: in the whole run; None as long as nothing is known of it.
        rate: tok/s that are being generated right now, all requests together; None between repeats.
    """

    test: str
    engine: str
    case: int
    cases: int
    repeat: int  # 0 is the warm-up
    repeats: int
    value: float | None = None
    unit: str = ""
    seconds_left: float | None = None
    run_seconds_left: float | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What is needed to measure."""

    targets: Sequence[Target]
    cost: ModelCost
    ceilings: Ceilings
    context: int
    repeats: int = 5
    watch: Watch = field(default_factory=Watch)
    on_progress: Callable[[Progress], None] = lambda _: None
    peak_memory: Callable[[], int | None] = lambda: None
    release: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter


@dataclass(slots=True)
class _Tally:
    """One row in the making."""

    target: Target
    samples: list[Sample] = field(default_factory=list[Sample])
    elapsed: float = 0.0
    collectives: float | None = None
    millijoules: float | None = 0.0
    skipped: str | None = None
    error: str | None = None


def measure_case(bench: Bench, case: Case, number: int, count: int) -> tuple[list[Row], bool]:
    """The rows of one case, one for each engine, and whether the user stopped it.

    An engine that fails in it has an error in its row; the others and the following cases go on.
    """
    tallies = [_Tally(target) for target in bench.targets]
    before = bench.watch.look(bench.clock())
    stopped = False
    first = Progress(case.test, tallies[0].target.name, number, count, 0, bench.repeats, unit=case.unit)
    bench.on_progress(first)
    try:
        for repeat in range(bench.repeats + 1):
            for tally in _turn(tallies, repeat):
                started = bench.clock()
                if tally.error is None and tally.skipped is None:
                    _once(bench, case, tally, repeat)
                value = tally.samples[-1].value if tally.samples else None
                left = (bench.clock() - started) * (bench.repeats - repeat) * len(tallies)
                bench.on_progress(
                    Progress(case.test, tally.target.name, number, count, repeat, bench.repeats, value, case.unit, left)
                )  # fmt: skip
    except (Stopped, KeyboardInterrupt):
        stopped = True
    seen = bench.watch.between(before, bench.watch.look(bench.clock()))
    rows = [_row(bench, case, tally, _limit(bench, case, tally.target), seen.flags) for tally in tallies]
    return rows, stopped


def _turn(tallies: list[_Tally], repeat: int) -> list[_Tally]:
    """Every other time in the reverse order, so that drift does not favour anyone."""
    return tallies if repeat % 2 == 0 else tallies[::-1]


def _once(bench: Bench, case: Case, tally: _Tally, repeat: int) -> None:
    """The warm-up, or one measured repeat."""
    if repeat == 0 and (refusal := _refusal(bench, case, tally.target)) is not None:
        tally.skipped = refusal
        return
    try:
        if repeat == 0:
            case.warm_up(tally.target)
            return
        before, exchanged = bench.watch.look(bench.clock()), _collectives(tally.target)
        sample = case.measure(tally.target, repeat)
        after = bench.watch.look(bench.clock())
    except Exception as error:  # one that is not out of memory is raised again: the run itself is wrong then
        if isinstance(error, Stopped):
            raise
        if not isinstance(error, NanochatError) and not is_out_of_memory(error):
            raise
        kind = "out of memory: " if isinstance(error, OutOfMemory) or is_out_of_memory(error) else ""
        tally.error = kind + (str(error).splitlines() or [type(error).__name__])[0]
        bench.release()
        return
    tally.samples.append(sample)
    tally.elapsed += after.clock - before.clock
    if exchanged is not None:
        tally.collectives = (tally.collectives or 0.0) + (_collectives(tally.target) or 0.0) - exchanged
    joules = bench.watch.between(before, after).joules
    tally.millijoules = (
        None if joules is None or tally.millijoules is None else tally.millijoules + 1e3 * joules
    )


def _collectives(target: Target) -> float | None:
    """Seconds in exchanges between ranks so far; other engines do not tell."""
    return target.collective_seconds if isinstance(target, CoreTarget) else None


def _refusal(bench: Bench, case: Case, target: Target) -> str | None:
    if case.needs_stream and not target.streams:
        return "this engine does not tell when each token came"
    if case.longest > bench.context:
        return f"it needs {case.longest:,} tokens, and the context is {bench.context:,}"
    return None


def _limit(bench: Bench, case: Case, target: Target) -> Limit | None:
    """What the device allows an engine that keeps its weights as this one does."""
    if target.weights == "unknown":
        return None
    cost = bench.cost if target.weights == "as planned" else bench.cost.with_weights_of(target.weights)
    return case.limit(cost, bench.ceilings)


def _row(bench: Bench, case: Case, tally: _Tally, limit: Limit | None, flags: tuple[str, ...]) -> Row:
    samples = tally.samples
    details: dict[str, tuple[float, ...]] = {}
    for sample in samples:
        for name, values in sample.details.items():
            details[name] = details.get(name, ()) + values
    seconds = sum(sample.seconds for sample in samples)
    counted = tally.millijoules and tally.elapsed >= _LEAST_ENERGY_SECONDS
    covered = seconds >= _MEASURED_SHARE * tally.elapsed
    return Row(
        test=case.test,
        engine=tally.target.name,
        unit=case.unit,
        samples=tuple(sample.value for sample in samples),
        repeats=bench.repeats,
        ceiling=limit.value if limit is not None else None,
        work=asdict(limit.floor) if limit is not None else None,
        details=details,
        tokens=sum(sample.tokens for sample in samples),
        seconds=seconds,
        joules=tally.millijoules / 1e3 if counted and covered and tally.millijoules is not None else None,
        peak_memory=bench.peak_memory(),
        flags=flags,
        place=case.place,
        collectives=tally.collectives / tally.elapsed if tally.collectives and tally.elapsed else None,
        skipped=tally.skipped,
        error=tally.error,
    )

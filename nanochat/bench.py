"""The benchmark: what is run, on which model, and a run from start to end. The command and the screen use this."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nanochat.benchmarks.measuring import Bench, Progress, measure_case
from nanochat.benchmarks.peers import check_peer
from nanochat.benchmarks.plan import SCREEN, START, Plan, engine_options, paced
from nanochat.benchmarks.presets import PRESETS, WORKLOADS, Sizes
from nanochat.benchmarks.result import Row, Run
from nanochat.errors import UsageError

if TYPE_CHECKING:
    import torch

    from nanochat.benchmarks.case import Case, Target
    from nanochat.benchmarks.setting import Setting

__all__ = [
    "PRESETS",
    "START",
    "WORKLOADS",
    "Hooks",
    "Plan",
    "Progress",
    "Row",
    "Run",
    "Sizes",
    "check_plan",
    "run_benchmark",
]

log = logging.getLogger("nanochat.bench")


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a run tells while it goes on, and asks.

    Args:
        on_progress: how far it is.
        on_row: the run so far, after each row.
        on_state: in words what is being done: measuring the device, loading.
        stopped: asked between steps of the engine.
    """

    on_progress: Callable[[Progress], None] = lambda _: None
    on_row: Callable[[Run, Row], None] = lambda _run, _row: None
    on_state: Callable[[str], None] = lambda _: None
    stopped: Callable[[], bool] = lambda: False


def run_benchmark(plan: Plan, hooks: Hooks | None = None) -> Run:
    """Run a plan. Ctrl-C and `stopped` end it early: the run then stays partial and holds what was finished.

    Raises:
        NanochatError: the model cannot be loaded, or a peer cannot be had.
    """
    hooks = hooks or Hooks()
    _check(plan)
    hooks.on_state("importing torch")
    from nanochat.benchmarks.setting import begin

    plan, run, setting = begin(plan, hooks.on_state)
    facts: dict[str, Any] = {}
    try:
        for row in _rows(plan, setting, hooks, facts):
            run = replace(run.with_row(row), environment={**run.environment, **facts})
            hooks.on_row(run, row)
        whole = all(not row.partial or row.error is not None or row.skipped is not None for row in run.rows)
        run = replace(run, partial=not whole)
    except KeyboardInterrupt:
        log.info("the run was stopped after %s rows", len(run.rows))
    return replace(
        run,
        flags=_worst(flag for row in run.rows for flag in row.flags),
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def check_plan(plan: Plan) -> None:
    """Everything that can be refused before anything is loaded or measured.

    Raises:
        UsageError: a name, a size, or so many devices for this model.
    """
    from nanochat.benchmarks.setting import ranks_of

    _check(plan)
    ranks_of(plan)


def _check(plan: Plan) -> None:
    """Names, sizes and engines, before anything takes time."""
    if plan.repeats < 1:
        raise UsageError(f"--repeat must be at least 1, not {plan.repeats}")
    plan.cases()
    for name in plan.against:
        check_peer(name, plan)
    if SCREEN in plan.names and importlib.util.find_spec("textual") is None:
        raise UsageError(
            "--preset screen draws the chat, and Textual is not installed here: pip install textual"
        )


def _worst(flags: Iterable[str]) -> tuple[str, ...]:
    """Each kind of flag once, with its largest number: rows keep their own."""
    kinds: dict[str, tuple[float, str]] = {}
    for flag in flags:
        number = re.search(r"\d+(?:\.\d+)?", flag)
        kind = flag[: number.start()] if number else flag
        kinds[kind] = max(kinds.get(kind, (-1.0, "")), (float(number.group()) if number else 0.0, flag))
    return tuple(flag for _, flag in kinds.values())


def _rows(plan: Plan, setting: Setting, hooks: Hooks, facts: dict[str, Any]) -> Generator[Row]:
    """Every row, in order. `facts` takes what is only known once a model is loaded.

    Raises:
        UsageError: nothing of it fits the context.
        KeyboardInterrupt: the user stopped the run; what was measured of the case at hand came before.
    """
    from nanochat.benchmarks.first_token import start_row
    from nanochat.benchmarks.run_progress import RunProgress
    from nanochat.benchmarks.time_left import TimeLeft

    cases, drawn = plan.cases(), plan.drawn_cases()
    for own in filter(None, (cases, drawn)):
        _refuse_what_does_not_fit(own, setting)
    if START in plan.names:
        hooks.on_state("timing new processes")
        yield start_row(plan, hooks.stopped)
    stages: list[tuple[list[Case], int, _Opened]] = [(cases, 1 + len(plan.against), _engines)]
    if drawn:
        stages.append((drawn, 2, _screen))
    floors = [setting.floor(case) * engines for own, engines, _ in stages for case in own]
    left = TimeLeft(floors, plan.repeats + 1)
    told = RunProgress(left, hooks.on_progress)
    number = 0
    for own, _, opened in stages:
        if not own:
            continue
        with ExitStack() as stack:
            targets = opened(plan, setting, own, hooks, told.tell_rate, facts, stack)
            bench = _bench(plan, setting, targets, told.tell)
            for case in own:
                number += 1
                started = time.perf_counter()
                rows, stopped = measure_case(bench, case, number, len(floors))
                left.ended(time.perf_counter() - started)
                yield from rows
                if stopped:
                    raise KeyboardInterrupt


_Opened = Callable[
    [Plan, "Setting", "list[Case]", Hooks, Callable[[float], None], "dict[str, Any]", ExitStack],
    "list[Target]",
]


def _engines(
    plan: Plan, setting: Setting, cases: list[Case], hooks: Hooks, on_rate: Callable[[float], None],
    facts: dict[str, Any], stack: ExitStack,
) -> list[Target]:  # fmt: skip
    """Every engine of the plan, loaded; closed by the stack."""
    from nanochat.benchmarks.peers import open_peer

    longest, sequences = _most(cases, setting)
    hooks.on_state(f"loading {plan.model_name}")
    _forget_peak(setting.device)
    targets = [_own_engine(plan, longest, sequences, hooks.stopped, on_rate, facts)]
    stack.callback(targets[0].close)
    for name in plan.against:
        hooks.on_state(f"loading {name}")
        targets.append(open_peer(name, plan, setting.device, setting.dtype, longest, hooks.stopped))
        stack.callback(targets[-1].close)
        facts.setdefault("engines", {})[targets[-1].name] = targets[-1].about
    return targets


def _screen(
    plan: Plan, setting: Setting, cases: list[Case], hooks: Hooks, on_rate: Callable[[float], None],
    facts: dict[str, Any], stack: ExitStack,
) -> list[Target]:  # fmt: skip
    """Our engine twice: alone, and with the application drawing its replies."""
    hooks.on_state(f"loading {plan.model_name} for the screen")
    longest, _ = _most(cases, setting)
    options = engine_options(plan, longest, 1) | {"gpu_memory_utilization": 0.9, "skip_tokenizer": False}
    module: Any = importlib.import_module("nanochat.ui.drawing_cost")  # Textual: only where it is wanted
    opened = module.DrawingCost(plan.model, plan.model_name, options, hooks.stopped, on_rate)
    stack.callback(opened.close)
    facts["kernels"] = opened.kernels
    return opened.targets


def _most(cases: list[Case], setting: Setting) -> tuple[int, int]:
    """(tokens of the longest sequence, sequences at once at most) of the cases that fit the context; 0 if none does."""
    context = setting.config.max_position_embeddings
    fitting = [case for case in cases if case.longest <= context]
    longest = max((case.longest for case in fitting), default=1)
    return min(longest + 16, context), max((case.sequences for case in fitting), default=0)


def _refuse_what_does_not_fit(cases: list[Case], setting: Setting) -> None:
    """Before anything takes time. A case that does not fit beside others that do has a row that says so."""
    if not _most(cases, setting)[1]:
        shortest, context = min(case.longest for case in cases), setting.config.max_position_embeddings
        raise UsageError(
            f"that takes {shortest:,} tokens at least, and the model's context holds {context:,}"
        )


def _bench(
    plan: Plan, setting: Setting, targets: list[Target], on_progress: Callable[[Progress], None]
) -> Bench:
    from nanochat.benchmarks.watch import Watch

    gpu = (setting.device.index or 0) if setting.device.type == "cuda" else None
    return Bench(
        targets=targets,
        cost=setting.cost,
        ceilings=setting.ceilings,
        context=setting.config.max_position_embeddings,
        repeats=plan.repeats,
        watch=Watch(gpu),
        on_progress=on_progress,
        peak_memory=lambda: None if plan.against else _peak_memory(setting.device),
        release=lambda: _release(setting.device),
    )


def _own_engine(
    plan: Plan, longest: int, sequences: int, stopped: Callable[[], bool], on_rate: Callable[[float], None],
    facts: dict[str, Any],
) -> Target:  # fmt: skip
    from nanochat.benchmarks.target import CoreTarget
    from nanochat.engine.llm import LLM

    llm = LLM(plan.model, **engine_options(plan, longest, sequences))
    while paced(plan) and llm.core.unprepared:
        llm.core.prepare()  # as the chat's engine does while nobody waits
    facts["kernels"] = llm.core.describe()
    group = llm.core.group
    collectives = group.count_seconds if group is not None else None
    weights = llm.core.weight_itemsize or "as planned"
    return CoreTarget(llm.core, stopped=stopped, on_rate=on_rate, collectives=collectives, weights=weights)


def _peak_memory(device: torch.device) -> int | None:
    """Bytes reserved on a GPU at most so far, or resident now on the host. The whole process's: of no engine among several."""
    import torch

    from nanochat.engine.host import memory_resident

    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return memory_resident()


def _forget_peak(device: torch.device) -> None:
    """What an engine took that is closed is not what the next one takes."""
    import torch

    if device.type == "cuda":
        _release(device)
        torch.cuda.reset_peak_memory_stats(device)


def _release(device: torch.device) -> None:
    """After a failed row, so that the next finds the memory free."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""One plan over several numbers of devices, one after another, as one run: how much more devices bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nanochat.bench import Hooks, Plan, Progress, Row, Run, check_plan, run_benchmark

_OURS = "nanochat"


def run_over(plan: Plan, numbers: tuple[int, ...], hooks: Hooks) -> Run:
    """The plan for each number of devices; other engines are measured beside the first one only.

    Returns:
        One run, whose rows say on how many ranks they were measured. It is partial when one of them was stopped.

    Raises:
        UsageError: the model cannot be divided over one of them; nothing was measured then.
        NanochatError: as from `run_benchmark`.
    """
    plans = [
        replace(plan, tensor_parallel_size=number, against=() if place else plan.against)
        for place, number in enumerate(numbers)
    ]
    hooks.on_state("importing torch")
    for each in plans:
        check_plan(each)
    whole: Run | None = None
    for place, each in enumerate(plans):
        before = whole
        last = place == len(plans) - 1
        run = run_benchmark(each, _told(hooks, before, each, numbers, last=last))
        whole = _joined(before, run, each, numbers)
        if run.partial:
            break
        whole = replace(whole, partial=not last)
    assert whole is not None
    return whole


def _told(hooks: Hooks, before: Run | None, plan: Plan, numbers: tuple[int, ...], *, last: bool) -> Hooks:
    """Hooks for one of several runs: they tell of all rows so far, and the time left only where it is all of it."""

    def on_row(run: Run, row: Row) -> None:
        hooks.on_row(replace(_joined(before, run, plan, numbers), partial=True), _named(row, plan))

    def on_progress(progress: Progress) -> None:
        engine = _name(plan) if progress.engine == _OURS else progress.engine
        left = progress.run_seconds_left if last else None
        hooks.on_progress(replace(progress, engine=engine, run_seconds_left=left))

    return replace(hooks, on_row=on_row, on_progress=on_progress)


def _joined(before: Run | None, run: Run, plan: Plan, numbers: tuple[int, ...]) -> Run:
    """The runs so far and one more: its rows under its name, its kernels beside the others'."""
    rows = tuple(_named(row, plan) for row in run.rows)
    head = before or run
    environment = {name: value for name, value in head.environment.items() if name != "kernels"}
    engines = dict(environment.get("engines", {})) | run.environment.get("engines", {})
    if "kernels" in run.environment:
        engines[_name(plan)] = run.environment["kernels"]
    return replace(
        head,
        rows=(*(before.rows if before is not None else ()), *rows),
        environment=environment | {"engines": engines},
        ceilings=_ceilings(before, run, plan),
        settings={**head.settings, "tensor_parallel_size": list(numbers)},
        flags=tuple(dict.fromkeys((*(before.flags if before is not None else ()), *run.flags))),
        partial=run.partial,
        finished=run.finished,
    )


def _ceilings(before: Run | None, run: Run, plan: Plan) -> Mapping[str, Any]:
    """The first run's, and those of a number of devices for which others were measured."""
    if before is None or before.ceilings == run.ceilings:
        return (before or run).ceilings
    own = {name: value for name, value in before.ceilings.items() if name != "engines"}
    others = dict(before.ceilings.get("engines", {}))
    if own != run.ceilings:
        others[_name(plan)] = run.ceilings
    return {**own, "engines": others} if others else own


def _named(row: Row, plan: Plan) -> Row:
    return replace(row, engine=_name(plan)) if row.engine == _OURS else row


def _name(plan: Plan) -> str:
    number = plan.tensor_parallel_size
    return f"{_OURS}, {number} rank{'' if number == 1 else 's'}"

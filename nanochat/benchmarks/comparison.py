"""Two runs side by side: which rows differ by more than noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from nanochat.benchmarks.result import Row, Run
from nanochat.benchmarks.statistics import ALPHA, rank_sum_p, smallest_p

Verdict = Literal["faster", "slower", "within noise", "too few samples"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of two runs. `change` is of the medians, as a fraction of the first; positive when the number grew."""

    test: str
    engine: str
    unit: str
    before: float
    after: float
    change: float
    p: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs have in common, what only one has, and what else was different."""

    differences: tuple[Difference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: tuple[str, ...]

    METHOD = (
        f"Wilcoxon's rank-sum test on the samples, two-sided, exact; within noise: p at least {ALPHA:g}, which takes "
        "4 samples on each side to fall below"
    )


def judge(before: Row, after: Row) -> Difference:
    """Compare a row with its later self."""
    old, new = before.summary.median, after.summary.median
    p = rank_sum_p(before.samples, after.samples)
    verdict: Verdict
    if smallest_p(len(before.samples), len(after.samples)) >= ALPHA:
        verdict = "too few samples"
    elif p >= ALPHA:
        verdict = "within noise"
    else:
        verdict = "faster" if (new > old) == before.higher_is_better else "slower"
    change = (new - old) / old if old else 0.0
    return Difference(before.test, before.engine, before.unit, old, new, change, p, verdict)


def compare(first: Run, second: Run) -> Comparison:
    """Compare the rows of the same test and engine."""
    rows = {_key(row): row for row in second.rows if row.samples}
    mine = {_key(row): row for row in first.rows if row.samples}
    return Comparison(
        differences=tuple(judge(row, rows[key]) for key, row in mine.items() if key in rows),
        only_first=_named(key for key in mine if key not in rows),
        only_second=_named(key for key in rows if key not in mine),
        changed=tuple(_changed(first, second)),
    )


def _key(row: Row) -> tuple[str, str, str]:
    return row.test, row.engine, row.unit


def _named(keys: Iterable[tuple[str, str, str]]) -> tuple[str, ...]:
    return tuple(f"{test} ({engine})" for test, engine, _ in keys)


def _changed(first: Run, second: Run) -> list[str]:
    """What of the surroundings is not the same: a difference may come from there."""
    found: list[str] = []
    for label, old, new in (
        ("", first.environment, second.environment),
        ("model ", first.model, second.model),
        ("", first.settings, second.settings),
    ):
        for name in old:
            if name in new and old[name] != new[name]:
                found.append(f"{label}{name}: {_said(old[name])} -> {_said(new[name])}")
    return found


def _said(value: object) -> str:
    """A value of the header in words; nothing given is the usual."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        return ", ".join(f"{name} {_said(each)}" for name, each in items) or "the usual"
    if isinstance(value, (list, tuple)):
        return " ".join(str(each) for each in cast("Sequence[object]", value)) or "none"
    return str(value)

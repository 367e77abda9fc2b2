"""A run's results: rows with their raw samples, and the surroundings they were measured in. Written as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nanochat.benchmarks.statistics import Summary, quantile, summarise
from nanochat.errors import NanochatError, UsageError

SCHEMA = 1

EXCLUDED = (
    "not measured: tokenizing and detokenizing (prompts are ids), loading, warm-up, and drawing, but where a row says "
    "so; measured: scheduling, the model, sampling, and handing ids to the caller"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One test on one engine.

    `ceiling` is in the row's unit; `work` is the `Floor` that it comes from (least seconds, what bounds them, bytes,
    operations); `collectives` is the share of the time in exchanges between ranks; `details` are pooled
    over the repeats; `joules` are those of all repeats; `skipped` says why it could not be measured at all,
    `error` what failed.
    """

    test: str
    engine: str
    unit: str
    samples: tuple[float, ...] = ()
    repeats: int = 0
    ceiling: float | None = None
    work: Mapping[str, Any] | None = None
    details: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    tokens: int = 0
    seconds: float = 0.0
    joules: float | None = None
    peak_memory: int | None = None
    flags: tuple[str, ...] = ()
    place: Mapping[str, float] = field(default_factory=dict[str, float])
    collectives: float | None = None
    skipped: str | None = None
    error: str | None = None

    @property
    def partial(self) -> bool:
        """Whether fewer repeats were made than wanted."""
        return len(self.samples) < self.repeats

    @property
    def higher_is_better(self) -> bool:
        """Rates, not times."""
        return self.unit == "tok/s"

    @property
    def summary(self) -> Summary:
        """Median and quartiles."""
        return summarise(self.samples)

    @property
    def fraction(self) -> float | None:
        """How much of what is possible was reached, by the median."""
        if self.ceiling is None or not self.samples:
            return None
        median = self.summary.median
        share = median / self.ceiling if self.higher_is_better else self.ceiling / median
        return share if math.isfinite(share) else None

    @property
    def bound(self) -> str | None:
        """What the ceiling comes from: "bandwidth" or "arithmetic"."""
        return self.work["bound"] if self.work is not None else None

    @property
    def joules_per_token(self) -> float | None:
        """Energy of the whole device for each token of the measured work."""
        return self.joules / self.tokens if self.joules is not None and self.tokens else None

    def percentile(self, name: str, fraction: float) -> float | None:
        """Of one of the details."""
        values = self.details.get(name)
        return quantile(values, fraction) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that one run of the benchmark found."""

    id: str
    started: str
    preset: str
    model: Mapping[str, Any]
    environment: Mapping[str, Any]
    ceilings: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...] = ()
    flags: tuple[str, ...] = ()
    partial: bool = False
    finished: str | None = None
    excluded: str = EXCLUDED
    schema: int = SCHEMA

    def with_row(self, row: Row) -> Run:
        """This run and one more row."""
        return replace(self, rows=(*self.rows, row))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: raw samples, and beside them what is derived."""
        rows = [_row_as_dict(row) for row in self.rows]
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "rows"}
        return own | {"rows": rows}

    @classmethod
    def from_dict(cls, data: Any) -> Run:
        """The reverse of `as_dict`.

        Raises:
            DamagedResult: it is not such a dictionary, or of a newer schema.
        """
        try:
            if data["schema"] > SCHEMA:
                raise DamagedResult(
                    f"this result has schema {data['schema']} and this nanochat reads up to {SCHEMA}: update nanochat"
                )
            known = {each.name for each in fields(cls)} - {"rows"}
            rows = tuple(_row_from_dict(row) for row in data["rows"])
            values = {name: value for name, value in data.items() if name in known}
            values["flags"] = tuple(values.get("flags", ()))
            return cls(**values, rows=rows)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedResult(
                f"this is not a benchmark's result ({type(error).__name__}: {error})"
            ) from error


class DamagedResult(NanochatError):
    """A file that is no benchmark's result."""


class NoSuchResult(DamagedResult):
    """No run of this name was kept."""

    exit_code = UsageError.exit_code


def _row_as_dict(row: Row) -> dict[str, Any]:
    summary = row.summary
    derived = {
        "median": _finite(summary.median),
        "quartiles": [_finite(summary.low), _finite(summary.high)],
        "fraction_of_ceiling": row.fraction,
        "bound": row.bound,
        "joules_per_token": row.joules_per_token,
        "partial": row.partial,
    }
    return asdict(row) | derived


def _row_from_dict(data: dict[str, Any]) -> Row:
    known = {each.name for each in fields(Row)}
    values = {name: value for name, value in data.items() if name in known}
    values["samples"] = tuple(float(value) for value in values.get("samples", ()))
    values["flags"] = tuple(values.get("flags", ()))
    values["details"] = {name: tuple(found) for name, found in values.get("details", {}).items()}
    return Row(**values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

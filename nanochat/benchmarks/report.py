"""A run as text: a table for the terminal, Markdown in llama-bench's columns, CSV, and a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.benchmarks.comparison import Comparison
from nanochat.benchmarks.plan import PACED
from nanochat.benchmarks.result import Row, Run

_ALIGNED = {"test", "engine", "bound"}


def number(value: float) -> str:
    """Four significant digits, thousands separated."""
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 8 s, 2 min 10 s, 1 h 4 min."""
    whole = max(round(seconds), 0)
    if whole < 90:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def header(run: Run) -> list[str]:
    """What the figures hold for."""
    model, surroundings = run.model, run.environment
    gib = model["weight_bytes"] / 2**30
    software = ", ".join(
        f"{name} {surroundings[name]}"
        for name in ("torch", "triton", "transformers", "cuda", "driver")
        if surroundings.get(name)
    )
    commit = f" ({surroundings['commit']})" if surroundings.get("commit") else ""
    lines = [
        f"{model['name']}: {model['parameters'] / 1e9:.2f} B parameters, {model['dtype']}, {gib:.2f} GiB, "
        f"{'random' if model['weights'] == 'random' else 'its own'} weights"
        + (f", revision {model['revision']}" if model.get("revision") else ""),
        f"on {surroundings['device']}; nanochat {surroundings['nanochat']}{commit}, {software}",
        *([f"kernels: {surroundings['kernels']}"] if surroundings.get("kernels") else []),
        *(f"{name}: {about}" for name, about in surroundings.get("engines", {}).items() if about),
        f"ceilings{_of_each(run)}: {_ceilings(run.ceilings)}",
        *(f"ceilings of {name}: {_ceilings(own)}" for name, own in run.ceilings.get("engines", {}).items()),
        f"medians and quartiles of {run.settings['repeats']} after a warm-up; {run.excluded}",
    ]
    lines += [f"careful: {flag}" for flag in (*_unpaced(run), *run.flags)]
    if run.partial:
        lines.append("PARTIAL: the run was stopped before its end")
    return lines


def _unpaced(run: Run) -> list[str]:
    """What was measured at another pace than it is alone."""
    names = set(run.preset.split())
    others = names & PACED if names - PACED else set[str]()
    return [
        f"{name}: prompts were read at full speed, since other tests ran too; alone they are at the chat's pace"
        for name in sorted(others)
    ]


def _ceilings(found: Mapping[str, Any]) -> str:
    """What a device can do, and what disturbed the measurement of that."""
    rates = f"reads {found['read'] / 1e9:,.0f} GB/s, multiplies {found['matrix'] / 1e12:,.2f} TFLOP/s"
    return rates + "".join(
        f"; too low where this disturbed them: {flag}" for flag in found.get("disturbed", ())
    )


def _of_each(run: Run) -> str:
    """Ranks on GPUs have a device each; on a CPU they share one."""
    ranks = run.settings.get("tensor_parallel_size", 1)
    alone = ranks in (1, [1]) or "capability" not in run.environment
    return "" if alone else " of each device"


def cells(row: Row) -> dict[str, str]:
    """A row's cells by column."""
    summary = row.summary
    found = {
        "test": row.test,
        "engine": row.engine,
        "median": row.error or row.skipped or "",
        "quartiles": "",
        "n": "",
    }
    if row.samples:
        found["median"] = f"{number(summary.median)} {row.unit}"
        found["quartiles"] = f"{number(summary.low)} - {number(summary.high)}"
        found["n"] = f"{summary.count}" + ("*" if row.partial else "")
        if row.error:
            found["quartiles"] += f" ({row.error})"
    found["ceiling"] = number(row.ceiling) if row.ceiling is not None else ""
    found["reached"] = f"{100 * row.fraction:.1f} %" if row.fraction is not None else ""
    found["bound"] = row.bound or ""
    found["TTFT p50/p95 ms"] = _pair(row, "ttft", 0.5, 0.95)
    found["ITL p50/p99 ms"] = _pair(row, "itl", 0.5, 0.99)
    each = row.percentile("tok/s each", 0.5)
    found["tok/s each"] = number(each) if each is not None else ""
    found["in collectives"] = f"{100 * row.collectives:.0f} %" if row.collectives is not None else ""
    anew = row.percentile("anew", 0.5)
    found["anew ms"] = number(anew) if anew is not None else ""
    found["J/token"] = number(row.joules_per_token) if row.joules_per_token is not None else ""
    found["memory GiB"] = f"{row.peak_memory / 2**30:.2f}" if row.peak_memory else ""
    return found


def table(run: Run) -> list[str]:
    """The rows as aligned lines; columns that nothing fills are left out. A star marks too few repeats."""
    rows = [cells(row) for row in run.rows]
    if not rows:
        return ["no row was finished"]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return _aligned([columns, *([row[name] for name in columns] for row in rows)], columns)


def markdown(run: Run) -> str:
    """llama-bench's table (model, size, params, backend, test, t/s), and what it does not have behind it.

    t/s is the median, with half the distance between the quartiles; times in ms and s stand in the same column with
    their unit.
    """
    names = ["model", "size", "params", "backend", "engine", "test", "t/s", "ceiling", "reached", "bound"]
    lines = [names, ["---", "---:", "---:", "---", "---", "---:", "---:", "---:", "---:", "---"]]
    model, device = run.model, run.environment["device"]
    for row in run.rows:
        summary, found = row.summary, cells(row)
        value = row.error or row.skipped or ""
        if row.samples:
            unit = "" if row.unit == "tok/s" else f" {row.unit}"
            value = f"{summary.median:.2f} ± {(summary.high - summary.low) / 2:.2f}{unit}"
        lines.append(
            [
                f"{model['name']} {model['dtype']}",
                f"{model['weight_bytes'] / 2**30:.2f} GiB",
                f"{model['parameters'] / 1e9:.2f} B",
                "CUDA" if run.environment.get("cuda") else "CPU",
                row.engine,
                row.test,
                value,
                found["ceiling"],
                found["reached"],
                found["bound"],
            ]
        )
    drawn = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)
    below = "\n".join(f"- {line}" for line in [f"device: {device}", *header(run)[1:]])
    return f"{drawn}\n\n{below}\n"


def as_csv(run: Run) -> str:
    """One line for each sample, for a spreadsheet or pandas."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(
        ("run", "model", "dtype", "device", "engine", "test", "unit", "repeat", "value", "ceiling")
    )
    head = (run.id, run.model["name"], run.model["dtype"], run.environment["device"])
    for row in run.rows:
        for repeat, value in enumerate(row.samples, 1):
            writer.writerow((*head, row.engine, row.test, row.unit, repeat, value, row.ceiling))
    return sink.getvalue()


def comparison_lines(comparison: Comparison) -> list[str]:
    """A comparison as aligned lines, what else changed, and how it was judged."""
    columns = ["test", "engine", "before", "after", "change", "p", "verdict"]
    rows = [
        [
            each.test,
            each.engine,
            f"{number(each.before)} {each.unit}",
            f"{number(each.after)} {each.unit}",
            f"{100 * each.change:+.1f} %",
            f"{each.p:.3f}",
            each.verdict,
        ]
        for each in comparison.differences
    ]
    lines = _aligned([columns, *rows], columns) if rows else ["the two runs have no test in common"]
    lines += [f"only in the first: {name}" for name in comparison.only_first]
    lines += [f"only in the second: {name}" for name in comparison.only_second]
    lines += [f"changed: {what}" for what in comparison.changed]
    return [*lines, comparison.METHOD]


def _pair(row: Row, name: str, low: float, high: float) -> str:
    first, second = row.percentile(name, low), row.percentile(name, high)
    return f"{number(first)} / {number(second)}" if first is not None and second is not None else ""


def _aligned(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns))]
    left = [name in _ALIGNED or name == "verdict" for name in columns]
    return [
        "  ".join(
            cell.ljust(width) if first else cell.rjust(width)
            for cell, width, first in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")

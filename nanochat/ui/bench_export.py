"""A run of the benchmark, or a comparison of two, as text for a file or the clipboard."""

from __future__ import annotations

import json

from nanochat.bench import Run
from nanochat.benchmarks.comparison import compare
from nanochat.benchmarks.report import as_csv, comparison_lines, markdown

FORMATS = (
    ("md", "Markdown", "llama-bench's table, to paste into an issue"),
    ("json", "JSON", "everything, with every sample"),
    ("csv", "CSV", "a line for each sample"),
    ("svg", "SVG", "the pictures"),
)
"""(ending of the file, name, what it is for)."""


def run_as(run: Run, kind: str) -> str:
    """A run in one of the formats."""
    if kind == "svg":
        from nanochat.benchmarks.plot import svg

        return svg(run)
    if kind == "json":
        return json.dumps(run.as_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    return as_csv(run) if kind == "csv" else markdown(run)


def comparison_as_markdown(before: Run, after: Run) -> str:
    """Two runs side by side."""
    return "```\n" + "\n".join(comparison_lines(compare(before, after))) + "\n```\n"

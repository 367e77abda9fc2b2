"""Everything that needs a GPU, in one command: each part is a process of its own and one line of JSON.

    python tests/gpu/session.py [--out FOLDER] [--model FOLDER] [--within SECONDS] [PART ...]

Parts, in this order when none is named: tests, bits, gap, bench, large, start, drawing, interference, compiled, divergence,
memcheck, racecheck; and where there are several GPUs, ranks, ranks-small, ranks-large, ranks-held, and ranks-divergence.
`--model` is for divergence (see divergence.py) and may be left out with it. A part that would begin after `--within` is
skipped and says so. The whole output of each part is kept in FOLDER/PART.log, and the lines in FOLDER/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
HERE = "tests/gpu"
# Kernels are compiled on the host: several processes share the GPU well where nothing is timed.
SIDE_BY_SIDE = "-n 12" if find_spec("xdist") and (os.cpu_count() or 1) >= 12 else ""
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "--tb=short",
    "-p",
    "no:cacheprovider",
    "-o",
    f"addopts={SIDE_BY_SIDE}",
]
BENCH = [sys.executable, "-m", "nanochat", "bench", "--json", "--no-save"]
FEW = "(bfloat16 and 16 and 8 and 128 and decode_agrees) or padding_writes or chain_of_dependent or replayed_steps"
WORKLOADS = ("s", "b", "deep", "second-turn", "fresh")  # `gap` by itself: it is paced as the chat is


@dataclass(frozen=True)
class Part:
    command: list[str]
    seconds: int  # at most


def parts(model: Path | None) -> dict[str, Part]:
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"]
    kernels = [f"{HERE}/test_kernels_{name}.py" for name in ("attention", "dense", "sampling", "step")]
    engines = [f"{HERE}/test_{name}.py" for name in ("engine_cuda", "divided_cuda", "one_shot", "ranks_cuda")]
    few = [*PYTEST, "-n", "0", *kernels, "-k", FEW] if SIDE_BY_SIDE else [*PYTEST, *kernels, "-k", FEW]
    random_06b = [*BENCH, "--random", "qwen3-0.6b"]
    made = {
        "tests": Part([*PYTEST, *kernels, *engines], 480),
        "bits": Part([*PYTEST, f"{HERE}/test_bits_cuda.py"], 420),
        "gap": Part([*random_06b, "--workload", "gap", "--repeat", "3"], 120),
        "bench": Part([*random_06b, *(word for name in WORKLOADS for word in ("--workload", name))], 240),
        "large": Part([*BENCH, "--random", "qwen3-8b", "--workload", "s", "--repeat", "3"], 150),
        "start": Part([*random_06b, "--workload", "start", "--repeat", "3"], 120),
        "drawing": Part([sys.executable, f"{HERE}/drawing.py"], 180),
        "interference": Part([sys.executable, f"{HERE}/interference.py"], 150),
        "compiled": Part([sys.executable, f"{HERE}/compiled.py"], 150),
        "divergence": Part([sys.executable, f"{HERE}/divergence.py", "--model", str(model)], 240),
        "memcheck": Part([*sanitizer, "--tool", "memcheck", *few], 240),
        "racecheck": Part([*sanitizer, "--tool", "racecheck", *few], 240),
    }
    made |= of_several(model)
    return {name: part for name, part in made.items() if "divergence" not in name or model is not None}


def of_several(model: Path | None) -> dict[str, Part]:
    """What only a machine with several GPUs can do."""
    ranks = [count for count in (1, 2, 4, 8) if count <= torch.cuda.device_count()]
    if len(ranks) < 2:
        return {}
    tests = [f"{HERE}/test_{name}.py" for name in ("nccl_alone", "one_shot", "ranks_cuda")]
    scaling = ["--tp", ",".join(map(str, ranks)), "--workload", "s", "--workload", "b", "--repeat", "2"]
    forced = [sys.executable, f"{HERE}/divergence.py", "--model", str(model), "--ranks", str(ranks[-1])]
    return {
        "ranks": Part(
            [*PYTEST, *(["-n", "0"] if SIDE_BY_SIDE else []), "-s", *tests], 400
        ),  # each load starts processes that import torch
        "ranks-small": Part([*BENCH, "--random", "qwen3-0.6b", *scaling], 300),
        "ranks-large": Part([*BENCH, "--random", "qwen3-8b", *scaling], 560),  # most of it tunes and captures
        "ranks-held": Part([sys.executable, f"{HERE}/held.py"], 180),
        "ranks-divergence": Part(forced, 240),
    }


def run(name: str, part: Part, out: Path) -> dict[str, Any]:
    """Run one part to its end or its limit; what it printed is kept."""
    if shutil.which(part.command[0]) is None:
        return {"part": name, "ok": None, "skipped": f"{part.command[0]} is not installed"}
    began, log = time.perf_counter(), out / f"{name}.log"
    with log.open("w") as sink:
        try:
            code = subprocess.run(
                part.command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, timeout=part.seconds, check=False
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1
    found = {"part": name, "ok": code == 0, "code": code, "seconds": round(time.perf_counter() - began, 1)}
    return found | figures(log.read_text(errors="replace"))


def figures(text: str) -> dict[str, Any]:
    """What a part's output says: a bench run's rows, a script's own line of JSON, or pytest's last lines."""
    lines = text.strip().splitlines()
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                data = json.loads(line)
            except ValueError:
                continue
            return (
                {"rows": [row_of(row) for row in data["rows"]], **head_of(data)} if "rows" in data else data
            )
    failed = [line for line in lines if re.match(r"(FAILED|ERROR|E  )", line)]
    return {"summary": lines[-1] if lines else "", "failed": failed[:12]}


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("test", "unit", "median", "quartiles", "ceiling", "fraction_of_ceiling", "error", "skipped")
    return {name: row[name] for name in kept if row.get(name) is not None}


def head_of(data: dict[str, Any]) -> dict[str, Any]:
    about = data["environment"]
    return {
        "device": about.get("device"),
        "kernels": about.get("kernels"),
        "read GB/s": data["ceilings"]["read"] / 1e9,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds for all parts")
    options = parser.parse_args()
    known = parts(options.model)
    unknown = [name for name in options.parts if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(known)} (divergence with --model)")
    out = options.out or Path(tempfile.mkdtemp(prefix="nanochat-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    began, good = time.perf_counter(), True
    for name in options.parts or known:
        late = time.perf_counter() - began > options.within
        result = {"part": name, "ok": None, "skipped": "too late"} if late else run(name, known[name], out)
        good = good and result["ok"] is True
        line = json.dumps(result)
        print(line, flush=True)
        with (out / "results.jsonl").open("a") as results:
            results.write(line + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

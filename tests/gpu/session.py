"""Everything that needs a GPU, in one command: each part is a process of its own and one line of JSON.

    python tests/gpu/session.py [--out FOLDER] [--model FOLDER] [--within SECONDS] [--tp N[,N...]]
                                [--load FOLDER] [--save FOLDER] [PART ...]

Parts, in this order when none is named: tests, bits, gap, bench, large, start, drawing, interference, compiled, divergence,
memcheck, racecheck, sums; where there are several GPUs, not sums but ranks-sums, ranks, ranks-small-s, ranks-small-b,
ranks-large-s, ranks-large-b-N for each number N of ranks, ranks-held, and ranks-divergence; `--tp` says which numbers.
`--model` is for divergence (see divergence.py) and may be left out with it. A part that would begin after `--within` is
skipped and says so. The whole output of each part is kept in FOLDER/PART.log, and the lines in FOLDER/results.jsonl; what a
part has measured is a line of its own as soon as it is there, so that nothing is lost with a part, or a machine, that is
ended.

`--save` keeps compiled kernels and what was measured of them after each part, and `--load` brings them back (see kept.py): a
bare machine need not compile what another one has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import torch

sys.path.insert(0, str(Path(__file__).parent))

import kept

ROOT = Path(__file__).parents[2]
HERE = "tests/gpu"
# Kernels are compiled on the host: several processes share the GPU well where nothing is timed.
SIDE_BY_SIDE = "-n 12" if find_spec("xdist") and (os.cpu_count() or 1) >= 12 else ""
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-v",  # a line for each test: what is known of a run that is ended
    "--tb=short",
    "-p",
    "no:cacheprovider",
    "-o",
    f"addopts={SIDE_BY_SIDE}",
]
BENCH = [sys.executable, "-m", "nanochat", "bench", "--json", "--no-save"]
ONE_PROCESS = ["-n", "0"] if SIDE_BY_SIDE else []
WORKLOADS = ("s", "b", "deep", "second-turn", "fresh")  # `gap` by itself: it is paced as the chat is
# What a benchmark tells of a row, and other scripts of a figure, before they are through.
SO_FAR = re.compile(r"(?:.+ \(nanochat[^)]*\)|so far): .+|\| .+ \|")


@dataclass(frozen=True)
class Part:
    command: list[str]
    seconds: int  # at most


def parts(model: Path | None, ranks: list[int]) -> dict[str, Part]:
    """What this machine can run; `ranks`: over how many GPUs a model is divided, one after the other."""
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"]
    kernels = [
        f"{HERE}/test_kernels_{name}.py"
        for name in ("attention", "dense", "experts", "sampling", "step", "small")
    ]
    engines = [
        f"{HERE}/test_{name}.py"
        for name in ("engine_cuda", "adjusted_cuda", "memory_cuda", "divided_cuda", "flash_cuda")
    ]
    few = [*PYTEST, *ONE_PROCESS, f"{HERE}/test_kernels_small.py", f"{HERE}/test_exchanges_small.py"]
    random_06b = [*BENCH, "--random", "qwen3-0.6b"]
    made = {
        "tests": Part([*PYTEST, *kernels, *engines], 480),
        "bits": Part([*PYTEST, f"{HERE}/test_bits_cuda.py", f"{HERE}/test_prompt_bits_cuda.py"], 560),
        "gap": Part([*random_06b, "--workload", "gap", "--repeat", "3"], 120),
        "bench": Part([*random_06b, *(word for name in WORKLOADS for word in ("--workload", name))], 240),
        "large": Part([*BENCH, "--random", "qwen3-8b", "--workload", "s", "--repeat", "3"], 150),
        "start": Part([*random_06b, "--workload", "start", "--repeat", "3"], 120),
        "drawing": Part([sys.executable, f"{HERE}/drawing.py"], 180),
        "interference": Part([sys.executable, f"{HERE}/interference.py"], 150),
        "compiled": Part([sys.executable, f"{HERE}/compiled.py"], 150),
        "divergence": Part([sys.executable, f"{HERE}/divergence.py", "--model", str(model)], 240),
        "memcheck": Part([*sanitizer, "--tool", "memcheck", *few], 150),
        "racecheck": Part([*sanitizer, "--tool", "racecheck", *few], 150),
    }
    if len(ranks) > 1:
        made |= of_several(model, ranks)
    else:  # two ranks share one GPU, and wait too long for each other where other tests share it too
        made["sums"] = Part([*PYTEST, *ONE_PROCESS, f"{HERE}/test_one_shot.py"], 100)
    return {name: part for name, part in made.items() if "divergence" not in name or model is not None}


def of_several(model: Path | None, ranks: list[int]) -> dict[str, Part]:
    """What only a machine with several GPUs can do, in parts that a bare machine gets through in minutes."""
    tests = [*PYTEST, *ONE_PROCESS, "-s"]  # each load starts processes that import torch
    sums = [f"{HERE}/test_{name}.py" for name in ("nccl_alone", "one_shot")]
    forced = [sys.executable, f"{HERE}/divergence.py", "--model", str(model), "--ranks", str(ranks[-1])]

    def scaled(shape: str, workload: str, counts: list[int], seconds: int) -> Part:
        over = ["--tp", ",".join(map(str, counts)), "--workload", workload, "--repeat", "2"]
        return Part([*BENCH, "--random", shape, *over], seconds)

    return {
        "ranks-sums": Part([*tests, *sums], 200),
        "ranks": Part([*tests, f"{HERE}/test_ranks_cuda.py"], 400),
        "ranks-small-s": scaled("qwen3-0.6b", "s", ranks, 200),
        "ranks-small-b": scaled("qwen3-0.6b", "b", ranks, 200),
        "ranks-large-s": scaled("qwen3-8b", "s", ranks, 300),  # most of it loads, tunes and captures
        **{f"ranks-large-b-{count}": scaled("qwen3-8b", "b", [count], 200) for count in ranks},
        "ranks-held": Part([sys.executable, f"{HERE}/held.py", *map(str, ranks[1:])], 200),
        "ranks-divergence": Part(forced, 240),
    }


def run(name: str, part: Part, out: Path, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one part to its end or its limit; what it printed is kept, and its figures are told as they come."""
    if shutil.which(part.command[0]) is None:
        return {"part": name, "ok": None, "skipped": f"{part.command[0]} is not installed"}
    began, log = time.perf_counter(), out / f"{name}.log"
    with log.open("w") as sink, log.open(errors="replace") as said:
        process = subprocess.Popen(part.command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
        try:
            code, late = None, False
            while code is None and not late:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=1)
                late = time.perf_counter() - began > part.seconds
                for line in whole_lines(said):
                    if SO_FAR.fullmatch(line):
                        tell({"part": name, "so far": line.removeprefix("so far: ")})
        finally:
            process.kill()
            process.wait()
    found = {"part": name, "ok": code == 0, "code": -1 if code is None else code}
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found | figures(log.read_text(errors="replace"))


def whole_lines(said: TextIO) -> Iterator[str]:
    """The lines that are there and were not read yet; of one that is still written nothing."""
    while True:
        place, line = said.tell(), said.readline()
        if not line.endswith("\n"):
            said.seek(place)
            return
        yield line.strip()


def figures(text: str) -> dict[str, Any]:
    """What a part's output says: a bench run's rows, a script's own line of JSON, or what pytest said."""
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
    failed = [line for line in lines if re.match(r"E  |.*\b(FAILED|ERROR)\b(?! SUMMARY: 0 )", line)]
    passed = sum(re.search(r"\bPASSED\b", line) is not None for line in lines)
    return {"summary": lines[-1] if lines else "", "passed": passed, "failed": failed[:12]}


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "test",
        "engine",
        "unit",
        "median",
        "quartiles",
        "ceiling",
        "fraction_of_ceiling",
        "error",
        "skipped",
    )
    return {name: row[name] for name in kept if row.get(name) is not None}


def head_of(data: dict[str, Any]) -> dict[str, Any]:
    about = data["environment"]
    return {
        "device": about.get("device"),
        "kernels": about.get("kernels"),
        "read GB/s": data["ceilings"]["read"] / 1e9,
    }


def main() -> int:
    options, known = asked()
    out = options.out or Path(tempfile.mkdtemp(prefix="nanochat-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    began, good = time.perf_counter(), True

    def tell(found: dict[str, Any]) -> None:
        line = json.dumps(found)
        print(line, flush=True)
        with (out / "results.jsonl").open("a") as results:
            results.write(line + "\n")

    if options.load is not None:
        tell({"part": "load", **kept.load(options.load)})
    for name in options.parts or known:
        late = time.perf_counter() - began > options.within
        result = (
            {"part": name, "ok": None, "skipped": "too late"} if late else run(name, known[name], out, tell)
        )
        good = good and result["ok"] is True
        tell(result)
        if options.save is not None and "skipped" not in result:
            tell({"part": "save", **kept.save(options.save)})
    return 0 if good else 1


def asked() -> tuple[argparse.Namespace, dict[str, Part]]:
    """The options, and the parts that there are with them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds for all parts")
    parser.add_argument("--tp", help="over how many GPUs, as 1,2,4; by default all that are there")
    parser.add_argument("--load", type=Path, help="where an earlier machine's --save was")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    there = [count for count in (1, 2, 4, 8) if count <= torch.cuda.device_count()]
    known = parts(options.model, [int(count) for count in options.tp.split(",")] if options.tp else there)
    unknown = [name for name in options.parts if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(known)} (divergence with --model)")
    return options, known


if __name__ == "__main__":
    sys.exit(main())

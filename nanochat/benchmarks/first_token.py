"""The time from a new process's start to its first token. Run as a module, it is that process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

from nanochat.benchmarks.plan import Plan, engine_options
from nanochat.benchmarks.result import Row
from nanochat.environment import own_module

TEST = "start to first token"
_PROMPT = 32  # ids
_TEXT = "The sun had set when they came to the river, and none of them could say how deep it was or how cold."
_LONGEST_WAIT = 600.0  # seconds


def start_row(plan: Plan, stopped: Callable[[], bool]) -> Row:
    """Start so many processes one after another; the first, unmeasured, fills the page cache and compiles kernels."""
    options = engine_options(plan, 1024, 1) | {"gpu_memory_utilization": 0.9, "skip_tokenizer": plan.drawn}
    task = json.dumps({"model": str(plan.model), "options": options})
    samples: list[float] = []
    error = None
    try:
        for repeat in range(plan.repeats + 1):
            if stopped():
                break
            seconds = _timed(task)
            if repeat:
                samples.append(seconds)
    except (OSError, RuntimeError, subprocess.SubprocessError) as failure:
        error = str(failure)
    return Row(
        test=TEST + (" (random weights)" if plan.drawn else ""),
        engine="nanochat",
        unit="s",
        samples=tuple(samples),
        repeats=plan.repeats,
        tokens=len(samples),
        seconds=sum(samples),
        error=error,
    )


def _timed(task: str) -> float:
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        return _spawned(task, started, complaints)


def _spawned(task: str, started: float, complaints: IO[str]) -> float:
    command, environment = own_module("nanochat.benchmarks.first_token")
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(task)
        process.stdin.close()
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        if line.strip() != "first token":
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"a new process gave no token: {last[:300]}")
        process.wait(_LONGEST_WAIT)
        return seconds
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    """Load what stdin says, generate one token, say so."""
    task: dict[str, Any] = json.load(sys.stdin)
    from nanochat.environment import set_variables

    set_variables()
    from nanochat.engine.llm import LLM
    from nanochat.engine.sampling_params import SamplingParams

    llm = LLM(task["model"], **task["options"])
    drawn = task["options"]["skip_tokenizer"]  # such a model has no tokenizer to be loaded
    prompt = [7 * place % 1000 for place in range(_PROMPT)] if drawn else _TEXT
    llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0.6, ignore_eos=True), use_tqdm=False)
    print("first token", flush=True)


if __name__ == "__main__":
    main()

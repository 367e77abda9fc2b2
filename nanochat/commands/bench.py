"""`nanochat bench`: what to measure, and a run in the terminal."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from nanochat.bench import PRESETS, START, WORKLOADS, Hooks, Plan, Row, Run, Sizes, run_benchmark
from nanochat.benchmarks.presets import readers
from nanochat.benchmarks.storage import Results
from nanochat.commands.bench_line import BenchLine, row_line
from nanochat.commands.bench_output import PLOT, draw, print_json, print_run
from nanochat.commands.bench_runs import compare, list_runs, show
from nanochat.commands.count import Count
from nanochat.commands.misplaced import refuse_misplaced
from nanochat.errors import UsageError

INTERRUPTED = 130
_DTYPES = click.Choice(["auto", "bfloat16", "float16", "float32"])
_SIZES = {
    "prompts": "--prompt", "output": "--output", "depths": "--depth", "batches": "--batch", "turns": "--turns",
    "requests": "--requests",
}  # fmt: skip
"""The options of the user's own sizes."""


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Different whole numbers from 1 on, with commas between them."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"{text!r} must be a number from 1 on, or several with commas, as 1,2,4")
    return tuple(dict.fromkeys(map(int, words)))


@click.group(invoke_without_command=True)
@click.option(
    "--preset",
    "presets",
    type=click.Choice([*PRESETS]),
    multiple=True,
    help="quick, where nothing is given: read 512 and 2,048, write 128 after nothing and after 4,096. throughput: 1 to 64 "
    "requests at once. chat: eight turns, with the prefix cache and without. interference: two replies beside an "
    "8,000-token prompt. screen: what drawing costs.",
)
@click.option(
    "--workload", "workloads", type=click.Choice([*WORKLOADS, START]), multiple=True,
    help="s: one stream, 512 + 256. b: 256 requests. deep: decode after 16,000 tokens. second-turn, fresh: first "
    "tokens. gap: a reply beside a 32,000-token prompt. start: process start to first token.",
)  # fmt: skip
@click.option("-m", "--model", metavar="MODEL", help="A name from `nanochat models`, a folder, or `starter`.")
@click.option(
    "--random", "shape", metavar="SHAPE", help="A known shape with random weights, such as qwen3-0.6b."
)
@click.option(
    "--dtype", type=_DTYPES, default="auto", show_default=True, help="Numbers of weights and cache."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cpu, cuda, or one device such as cuda:1.",
)
@click.option(
    "--tp", callback=_numbers, metavar="N[,N...]",
    help="Over how many devices the model is split; as few as hold it. Several numbers, as 1,2,4: rows of each.",
)  # fmt: skip
@click.option("--enforce-eager", is_flag=True, help="No CUDA graphs.")
@click.option(
    "--repeat",
    type=Count(),
    metavar="N",
    default=5,
    show_default=True,
    help="Measured repeats of each test, after a warm-up.",
)
@click.option(
    "--prompt",
    "prompts",
    type=Count(),
    metavar="N",
    multiple=True,
    help="Prompt tokens, instead of the usual.",
)
@click.option("--output", type=Count(), metavar="N", help="Generated tokens, instead of the usual.")
@click.option(
    "--depth",
    "depths",
    type=Count(0),
    metavar="N",
    multiple=True,
    help="Tokens of context before the measured ones.",
)
@click.option(
    "--batch",
    "batches",
    type=Count(),
    metavar="N",
    multiple=True,
    help="Requests at once of preset throughput.",
)
@click.option("--turns", type=Count(), metavar="N", help="Turns of preset chat.")
@click.option("--requests", type=Count(), metavar="N", help="Requests of workload b.")
@click.option(
    "--against", multiple=True, metavar="ENGINE",
    help="transformers, transformers-padded, vllm, llama.cpp, nano-vllm, or the address of an OpenAI-compatible "
    "server.",
)  # fmt: skip
@click.option(
    "--gguf",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The model for `--against llama.cpp`.",
)
@click.option("--measure-limits", is_flag=True, help="Measure the device's ceilings again.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@PLOT
@click.option("--no-save", is_flag=True, help="Keep no file of the result.")
@click.pass_context
def bench(context: click.Context, **options: Any) -> None:
    """Measure how fast this machine runs a model, and how near that is to what it could do.

    The result is kept; `nanochat bench compare last-1 last` tells whether two runs differ by more than noise.
    Progress goes to standard error. Ctrl-C keeps what was finished and exits with 130; a run in which a test
    failed exits with 1. --preset, --workload, --prompt, --depth, --batch and --against may be given several times.
    """
    if context.invoked_subcommand is not None:
        refuse_misplaced(context)
        return
    with tempfile.TemporaryDirectory(prefix="nanochat-bench-") as folder:
        plan = _plan(options, Path(folder))
        run = _run(plan, options["tp"], None if options["no_save"] else Results.find())
    if options["as_json"]:
        print_json(run.as_dict())
    else:
        print_run(run, pictures=sys.stdout.isatty())
    if options["plot"] is not None:
        draw(run, options["plot"])
    sys.exit(_exit_code(run))


def _exit_code(run: Run) -> int:
    if run.partial:
        return INTERRUPTED
    return 1 if any(row.error is not None for row in run.rows) else 0


def _plan(options: dict[str, Any], folder: Path) -> Plan:
    if options["model"] and options["shape"]:
        raise UsageError("give --model or --random, not both")
    names = (*options["presets"], *options["workloads"]) or ("quick",)
    given: dict[str, Any] = {size: options[size] for size in _SIZES}
    sizes = Sizes(**given)
    _refuse_unused(names, sizes)
    if options["gguf"] and "llama.cpp" not in options["against"]:
        raise UsageError("--gguf changes nothing without --against llama.cpp")
    if options["shape"]:
        from nanochat.benchmarks.known_shapes import write_shape

        path, name = write_shape(options["shape"], folder), options["shape"].lower()
    else:
        from nanochat import hub
        from nanochat.commands.progress_line import ProgressLine

        local = hub.resolve(options["model"], progress=ProgressLine().starter)
        path, name = local.path, local.name
    return Plan(
        model=path,
        model_name=name,
        drawn=bool(options["shape"]),
        names=names,
        sizes=sizes,
        dtype=options["dtype"],
        device=options["device"],
        tensor_parallel_size=options["tp"][0] if options["tp"] else None,
        enforce_eager=options["enforce_eager"],
        repeats=options["repeat"],
        against=options["against"],
        gguf=options["gguf"],
        measure_limits=options["measure_limits"],
    )


def _refuse_unused(names: tuple[str, ...], sizes: Sizes) -> None:
    """Raise UsageError for a size that nothing of what is to be measured has."""
    for size, option in _SIZES.items():
        if getattr(sizes, size) and not set(names) & set(able := readers(size)):
            raise UsageError(f"{option} changes nothing in {', '.join(names)}: it is for {', '.join(able)}")


def _run(plan: Plan, numbers: tuple[int, ...], results: Results | None) -> Run:
    """Run, with one line of progress and one line for each row on stderr; saved after each row."""
    screen = BenchLine()

    def on_row(run: Run, row: Row) -> None:
        screen.keep(row_line(row))
        if results is not None:
            results.keep(run)

    with _interruptible() as stopped:
        hooks = Hooks(screen.progress, on_row, screen.show, stopped)
        if len(numbers) > 1:
            from nanochat.benchmarks.scaling import run_over

            run = run_over(plan, numbers, hooks)
        else:
            run = run_benchmark(plan, hooks)
    screen.clear()
    if results is not None:
        lost = results.keep(run)
        click.echo(f"nanochat: {lost}" if lost else f"kept as {results.file(run)}", err=True)
    return run


@contextmanager
def _interruptible() -> Generator[Callable[[], bool]]:
    """Ctrl-C asks for a stop between two steps; a second one, where nothing asks, raises KeyboardInterrupt at once."""
    asked = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        click.echo("\nstopping; again to stop at once", err=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


bench.add_command(list_runs)
bench.add_command(show)
bench.add_command(compare)

"""`nanochat bench`: measure, list, show, compare."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nanochat.bench import PRESETS, START, WORKLOADS, Hooks, Plan, Row, Run, Sizes, run_benchmark
from nanochat.benchmarks.presets import readers
from nanochat.benchmarks.report import as_csv, comparison_lines, header, markdown, table
from nanochat.benchmarks.storage import Results
from nanochat.commands.bench_line import BenchLine, row_line
from nanochat.disk_faults import explain
from nanochat.errors import NanochatError, UsageError

INTERRUPTED = 130
_DTYPES = click.Choice(["auto", "bfloat16", "float16", "float32"])
_SIZES = {
    "prompts": "--prompt", "output": "--output", "depths": "--depth", "batches": "--batch", "turns": "--turns",
    "requests": "--requests",
}  # fmt: skip
"""The options of the user's own sizes."""
_POSITIVE = click.IntRange(min=1)


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Different whole numbers from 1 on, with commas between them."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"{text!r} must be a number from 1 on, or several with commas, as 1,2,4")
    return tuple(dict.fromkeys(map(int, words)))


def _new_file(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """A file that can be written: asked before anything is measured."""
    if path is None:
        return None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise click.BadParameter(f"there is no folder {folder}")
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder: give a file's name")
    try:
        if path.is_file():
            path.open("ab").close()
        elif not path.exists():  # a pipe is not opened twice
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(b"x")  # a full disk takes a file, and nothing in it
    except OSError as error:
        raise click.BadParameter(explain(error, path)) from error
    return path


_PLOT = click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", callback=_new_file, help="Draw it as SVG as well."
)  # fmt: skip


@click.group(invoke_without_command=True)
@click.option(
    "--preset",
    "presets",
    type=click.Choice([*PRESETS]),
    multiple=True,
    help="What to measure; quick if nothing is given.",
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
@click.option("--dtype", type=_DTYPES, default="auto", help="Numbers of weights and cache.")
@click.option(
    "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, or one device such as cuda:1."
)
@click.option(
    "--tp", callback=_numbers, metavar="N[,N...]",
    help="Over how many devices the model is split; as few as hold it. Several numbers, as 1,2,4: rows of each.",
)  # fmt: skip
@click.option("--enforce-eager", is_flag=True, help="No CUDA graphs.")
@click.option("--repeat", type=_POSITIVE, default=5, help="Measured repeats of each test, after a warm-up.")
@click.option(
    "--prompt", "prompts", type=_POSITIVE, multiple=True, help="Prompt tokens, instead of the usual."
)
@click.option("--output", type=_POSITIVE, help="Generated tokens, instead of the usual.")
@click.option(
    "--depth",
    "depths",
    type=click.IntRange(min=0),
    multiple=True,
    help="Tokens of context before the measured ones.",
)
@click.option("--batch", "batches", type=_POSITIVE, multiple=True, help="Requests at once (throughput).")
@click.option("--turns", type=_POSITIVE, help="Turns of the chat.")
@click.option("--requests", type=_POSITIVE, help="Requests of workload b.")
@click.option(
    "--against", multiple=True, metavar="ENGINE",
    help="transformers, transformers-padded, vllm, llama.cpp, nano-vllm, or the address of an OpenAI-compatible "
    "server.",
)  # fmt: skip
@click.option("--gguf", type=click.Path(exists=True, path_type=Path), help="The model for llama.cpp.")
@click.option("--measure-limits", is_flag=True, help="Measure the device's ceilings again.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@_PLOT
@click.option("--no-save", is_flag=True, help="Keep no file of the result.")
@click.pass_context
def bench(context: click.Context, **options: Any) -> None:
    """Measure how fast this machine runs a model, and how near that is to what it could do.

    The result is kept; `nanochat bench compare last-1 last` tells whether two runs differ by more than noise.
    Progress goes to standard error. Ctrl-C keeps what was finished and exits with 130; a run in which a test
    failed exits with 1.
    """
    if context.invoked_subcommand is not None:
        return
    with tempfile.TemporaryDirectory(prefix="nanochat-bench-") as folder:
        plan = _plan(options, Path(folder))
        run = _run(plan, options["tp"], None if options["no_save"] else Results.find())
    if options["as_json"]:
        click.echo(json.dumps(run.as_dict(), ensure_ascii=False, allow_nan=False))
    else:
        _print_run(run, pictures=sys.stdout.isatty())
    if options["plot"] is not None:
        _draw(run, options["plot"])
    sys.exit(_exit_code(run))


def _draw(run: Run, path: Path) -> None:
    from nanochat.benchmarks.plot import svg

    try:
        path.write_text(svg(run), encoding="utf-8")
    except OSError as error:
        raise NanochatError(f"the picture is not drawn: {explain(error, path)}") from error


def _print_run(run: Run, *, pictures: bool) -> None:
    """Header and table; on a terminal the pictures too."""
    for line in (*header(run), "", *table(run)):
        click.echo(line)
    if not pictures:
        return
    from nanochat.benchmarks.charts import charts_of
    from nanochat.benchmarks.text_plot import plain

    columns = min(shutil.get_terminal_size().columns, 120)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    for chart in charts_of(run):
        click.echo("\n" + "\n".join(plain(chart, columns, 18, ascii_only=not unicode)))


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


@bench.command("list")
def list_runs() -> None:
    """The kept runs, oldest first."""
    results = Results.find()
    for name in results.names():
        run = results.load(name)
        partial = " (partial)" if run.partial else ""
        click.echo(f"{name}  {run.preset}  {run.model['name']}  {len(run.rows)} rows{partial}")


@bench.command()
@click.argument("name", default="last")
@click.option(
    "--format", "kind", type=click.Choice(["text", "plot", "markdown", "json", "csv"]), default="text"
)
@_PLOT
def show(name: str, kind: str, plot: Path | None) -> None:
    """A kept run: its id or the beginning of it, `last`, `last-1`, or a file."""
    run = Results.find().load(name)
    if kind == "markdown":
        click.echo(markdown(run), nl=False)
    elif kind == "json":
        click.echo(json.dumps(run.as_dict(), ensure_ascii=False, allow_nan=False))
    elif kind == "csv":
        click.echo(as_csv(run), nl=False)
    else:
        _print_run(run, pictures=sys.stdout.isatty() or kind == "plot")
    if plot is not None:
        _draw(run, plot)


@bench.command()
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(first: str, second: str, as_json: bool) -> None:
    """Whether SECOND differs from FIRST by more than noise, row by row."""
    from nanochat.benchmarks.comparison import compare as compare_runs

    results = Results.find()
    comparison = compare_runs(results.load(first), results.load(second))
    if as_json:
        click.echo(json.dumps(asdict(comparison), ensure_ascii=False, allow_nan=False))
        return
    for line in comparison_lines(comparison):
        click.echo(line)

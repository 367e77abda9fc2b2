"""The benchmark: what is run, on which model, and a run from start to end. The command and the screen use this."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.benchmarks.measuring import Bench, Progress, measure_case
from nanochat.benchmarks.peers import check_peer
from nanochat.benchmarks.presets import PRESETS, WORKLOADS, Sizes, cases_of
from nanochat.benchmarks.result import Row, Run
from nanochat.errors import UsageError

if TYPE_CHECKING:
    import torch

    from nanochat.benchmarks.case import Case, Target
    from nanochat.benchmarks.cost import Ceilings, ModelCost
    from nanochat.engine.models.config import ModelConfig

__all__ = ["PRESETS", "WORKLOADS", "Hooks", "Plan", "Progress", "Row", "Run", "Sizes", "run_benchmark"]

log = logging.getLogger("nanochat.bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Args:
        model: the folder of a model; with `drawn`, of a config.json alone.
        names: presets and workloads, in order; `start` is the time from a new process to its first token.
        against: other engines: transformers, vllm, llama.cpp, nano-vllm, or an address.
        measure_limits: measure the device's ceilings even if they are known.
    """

    model: Path
    model_name: str
    drawn: bool = False
    names: tuple[str, ...] = ("quick",)
    sizes: Sizes = field(default_factory=Sizes)
    dtype: str = "auto"
    device: str = "auto"
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    repeats: int = 5
    against: tuple[str, ...] = ()
    gguf: Path | None = None
    measure_limits: bool = False

    def cases(self) -> list[Case]:
        """Every case that runs on the plan's engines, in order."""
        return [case for name in self.names if name not in ELSEWHERE for case in cases_of(name, self.sizes)]

    def drawn_cases(self) -> list[Case]:
        """The cases that are measured with and without the application drawing."""
        return cases_of(SCREEN, self.sizes) if SCREEN in self.names else []


START = "start"
PACED = {"gap", "interference"}
SCREEN = "screen"
ELSEWHERE = (START, SCREEN)
"""What does not run on the plan's engines: a new process each time, and the application with an engine of its own."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a run tells while it goes on, and asks.

    Args:
        on_progress: how far it is.
        on_row: the run so far, after each row.
        on_state: in words what is being done: measuring the device, loading.
        stopped: asked between steps of the engine.
    """

    on_progress: Callable[[Progress], None] = lambda _: None
    on_row: Callable[[Run, Row], None] = lambda _run, _row: None
    on_state: Callable[[str], None] = lambda _: None
    stopped: Callable[[], bool] = lambda: False


def run_benchmark(plan: Plan, hooks: Hooks | None = None) -> Run:
    """Run a plan. Ctrl-C and `stopped` end it early: the run then stays partial and holds what was finished.

    Raises:
        NanochatError: the model cannot be loaded, or a peer cannot be had.
    """
    hooks = hooks or Hooks()
    run, setting = _begin(plan, hooks.on_state)
    facts: dict[str, Any] = {}
    try:
        for row in _rows(plan, setting, hooks, facts):
            run = replace(run.with_row(row), environment={**run.environment, **facts})
            hooks.on_row(run, row)
        whole = all(not row.partial or row.error is not None or row.skipped is not None for row in run.rows)
        run = replace(run, partial=not whole)
    except KeyboardInterrupt:
        log.info("the run was stopped after %s rows", len(run.rows))
    return replace(
        run,
        flags=_worst(flag for row in run.rows for flag in row.flags),
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def _worst(flags: Iterable[str]) -> tuple[str, ...]:
    """Each kind of flag once, with its largest number: rows keep their own."""
    kinds: dict[str, tuple[float, str]] = {}
    for flag in flags:
        number = re.search(r"\d+(?:\.\d+)?", flag)
        kind = flag[: number.start()] if number else flag
        kinds[kind] = max(kinds.get(kind, (-1.0, "")), (float(number.group()) if number else 0.0, flag))
    return tuple(flag for _, flag in kinds.values())


def _rows(plan: Plan, setting: _Setting, hooks: Hooks, facts: dict[str, Any]) -> Generator[Row]:
    """Every row, in order. `facts` takes what is only known once a model is loaded.

    Raises:
        KeyboardInterrupt: the user stopped the run; what was measured of the case at hand came before.
    """
    from nanochat.benchmarks.first_token import start_row
    from nanochat.benchmarks.time_left import TimeLeft

    if START in plan.names:
        hooks.on_state("timing new processes")
        yield start_row(plan, hooks.stopped)
    cases, drawn = plan.cases(), plan.drawn_cases()
    stages: list[tuple[list[Case], int, _Opened]] = [(cases, 1 + len(plan.against), _engines)]
    if drawn:
        stages.append((drawn, 2, _screen))
    floors = [setting.floor(case) * engines for own, engines, _ in stages for case in own]
    left = TimeLeft(floors, plan.repeats + 1)
    latest: list[Progress] = []

    def tell(progress: Progress) -> None:
        latest[:] = [replace(progress, run_seconds_left=left.after(progress.seconds_left))]
        hooks.on_progress(latest[0])

    def tell_rate(rate: float) -> None:
        if latest:
            hooks.on_progress(replace(latest[0], rate=rate))

    number = 0
    for own, _, opened in stages:
        if not own:
            continue
        with ExitStack() as stack:
            targets = opened(plan, setting, own, hooks, tell_rate, facts, stack)
            bench = _bench(plan, setting, targets, tell)
            for case in own:
                number += 1
                started = time.perf_counter()
                rows, stopped = measure_case(bench, case, number, len(floors))
                left.ended(time.perf_counter() - started)
                yield from rows
                if stopped:
                    raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is known before anything is loaded."""

    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    ceilings: Ceilings
    cost: ModelCost

    def floor(self, case: Case) -> float:
        """The least seconds of a case; 0 where nothing can be said."""
        limit = case.limit(self.cost, self.ceilings)
        return limit.floor.seconds if limit is not None else 0.0


def _begin(plan: Plan, on_state: Callable[[str], None]) -> tuple[Run, _Setting]:
    """Read the model's config, measure the device, and write the run's header."""
    if plan.repeats < 1:
        raise UsageError(f"--repeat must be at least 1, not {plan.repeats}")
    plan.cases()  # names, sizes and peers are checked before anything takes time
    for name in plan.against:
        check_peer(name, plan)
    if SCREEN in plan.names and importlib.util.find_spec("textual") is None:
        raise UsageError(
            "--preset screen draws the chat, and Textual is not installed here: pip install textual"
        )
    on_state("importing torch")
    from nanochat.benchmarks.cost import ModelCost
    from nanochat.benchmarks.device_limits import device_limits
    from nanochat.benchmarks.surroundings import device_key, model_facts, revision_of, surroundings
    from nanochat.engine.loading import choose_device, choose_dtype
    from nanochat.engine.models.config import ModelConfig

    config = ModelConfig.from_folder(plan.model)
    device = choose_device(plan.device)
    dtype = choose_dtype(plan.dtype, config, device)
    on_state("measuring what the device can do")
    ceilings, disturbed = device_limits(device, dtype, device_key(device), anew=plan.measure_limits)
    facts = model_facts(
        plan.model_name, config, dtype, drawn=plan.drawn, revision=revision_of(plan.model.resolve())
    )
    settings = {
        "tensor_parallel_size": plan.tensor_parallel_size,
        "enforce_eager": plan.enforce_eager,
        "repeats": plan.repeats,
        "sizes": {name: value for name, value in asdict(plan.sizes).items() if value},
        "against": list(plan.against),
    }
    run = Run(
        id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        preset=" ".join(plan.names),
        model=facts,
        environment=surroundings(device),
        ceilings={"read": ceilings.read, "matrix": ceilings.matrix, "disturbed": list(disturbed)},
        settings=settings,
        partial=True,  # until its end: a process that is killed leaves it so
    )
    devices = plan.tensor_parallel_size if device.type == "cuda" else 1  # CPU ranks share one memory
    together = ceilings.times(devices)
    return run, _Setting(config, device, dtype, together, ModelCost(config, dtype.itemsize))


_Opened = Callable[
    [Plan, _Setting, "list[Case]", Hooks, Callable[[float], None], "dict[str, Any]", ExitStack],
    "list[Target]",
]


def _engines(
    plan: Plan, setting: _Setting, cases: list[Case], hooks: Hooks, on_rate: Callable[[float], None],
    facts: dict[str, Any], stack: ExitStack,
) -> list[Target]:  # fmt: skip
    """Every engine of the plan, loaded; closed by the stack."""
    from nanochat.benchmarks.peers import open_peer

    longest, sequences = _most(cases, setting)
    targets: list[Target] = []
    if sequences:
        hooks.on_state(f"loading {plan.model_name}")
        targets.append(_own_engine(plan, longest, sequences, hooks.stopped, on_rate, facts))
        stack.callback(targets[0].close)
    for name in plan.against:
        hooks.on_state(f"loading {name}")
        targets.append(open_peer(name, plan, setting.device, setting.dtype, longest, hooks.stopped))
        stack.callback(targets[-1].close)
        facts.setdefault("engines", {})[targets[-1].name] = targets[-1].about
    return targets


def _screen(
    plan: Plan, setting: _Setting, cases: list[Case], hooks: Hooks, on_rate: Callable[[float], None],
    facts: dict[str, Any], stack: ExitStack,
) -> list[Target]:  # fmt: skip
    """Our engine twice: alone, and with the application drawing its replies."""
    hooks.on_state(f"loading {plan.model_name} for the screen")
    longest, _ = _most(cases, setting)
    options = engine_options(plan, longest, 1) | {"gpu_memory_utilization": 0.9, "skip_tokenizer": False}
    module: Any = importlib.import_module("nanochat.ui.drawing_cost")  # Textual: only where it is wanted
    opened = module.DrawingCost(plan.model, plan.model_name, options, hooks.stopped, on_rate)
    stack.callback(opened.close)
    facts["kernels"] = opened.kernels
    return opened.targets


def _most(cases: list[Case], setting: _Setting) -> tuple[int, int]:
    """(tokens of the longest sequence, sequences at once at most) of the cases that fit the context; 0 if none does."""
    context = setting.config.max_position_embeddings
    fitting = [case for case in cases if case.longest <= context]
    longest = max((case.longest for case in fitting), default=1)
    return min(longest + 16, context), max((case.sequences for case in fitting), default=0)


def _bench(
    plan: Plan, setting: _Setting, targets: list[Target], on_progress: Callable[[Progress], None]
) -> Bench:
    from nanochat.benchmarks.watch import Watch

    gpu = (setting.device.index or 0) if setting.device.type == "cuda" else None
    return Bench(
        targets=targets,
        cost=setting.cost,
        ceilings=setting.ceilings,
        context=setting.config.max_position_embeddings,
        repeats=plan.repeats,
        watch=Watch(gpu),
        on_progress=on_progress,
        peak_memory=lambda: None if plan.against else _peak_memory(setting.device),
        release=lambda: _release(setting.device),
    )


def _own_engine(
    plan: Plan, longest: int, sequences: int, stopped: Callable[[], bool], on_rate: Callable[[float], None],
    facts: dict[str, Any],
) -> Target:  # fmt: skip
    from nanochat.benchmarks.target import CoreTarget
    from nanochat.engine.llm import LLM

    llm = LLM(plan.model, **engine_options(plan, longest, sequences))
    facts["kernels"] = llm.core.describe()
    group = llm.core.group
    collectives = (lambda: group.collective_seconds) if group is not None else None
    return CoreTarget(llm.core, stopped=stopped, on_rate=on_rate, collectives=collectives)


def engine_options(plan: Plan, longest: int, sequences: int) -> dict[str, Any]:
    """How our own engine is set up for a plan. Beside peers, memory is shared out evenly."""
    return {
        "enforce_eager": plan.enforce_eager,
        "tensor_parallel_size": plan.tensor_parallel_size,
        "max_model_len": longest,
        "dtype": plan.dtype,
        "device": plan.device,
        "max_num_seqs": max(sequences, 1),
        "gpu_memory_utilization": 0.9 / (1 + len(plan.against)),
        # A reply that is watched while a prompt is read: by the pace of the chat, not as fast as prompts can be read.
        **({"prefill_beside_decodes": None} if set(plan.names) <= PACED else {}),
        "skip_tokenizer": True,
        "random_weights": plan.drawn,
    }


def _peak_memory(device: torch.device) -> int | None:
    """Bytes reserved on a GPU at most so far, or resident now on the host. The whole process's: of no engine among several."""
    import torch

    from nanochat.engine.host import memory_resident

    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return memory_resident()


def _release(device: torch.device) -> None:
    """After a failed row, so that the next finds the memory free."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

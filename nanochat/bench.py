"""The benchmark: what is run, on which model, and a run from start to end. The command and the screen use this."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
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
    from nanochat.benchmarks.cost import Ceilings
    from nanochat.engine.models.config import ModelConfig

__all__ = ["PRESETS", "WORKLOADS", "Plan", "Progress", "Row", "Run", "Sizes", "run_benchmark"]

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
        """Every case, in order; `start` is not among them, for it needs a process of its own."""
        return [case for name in self.names if name != START for case in cases_of(name, self.sizes)]


START = "start"


def run_benchmark(
    plan: Plan,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_row: Callable[[Run, Row], None] = lambda _run, _row: None,
    on_state: Callable[[str], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Run:
    """Run a plan. Ctrl-C and `stopped` end it early: the run is then marked partial and holds what was finished.

    Args:
        on_row: called with the run so far, after each row.
        on_state: told in words what is being done: measuring the device, loading.
        stopped: asked between steps of the engine.

    Raises:
        NanochatError: the model cannot be loaded, or a peer cannot be had.
    """
    from nanochat.benchmarks.first_token import start_row

    run, setting = _begin(plan, on_state)
    try:
        if START in plan.names:
            on_state("timing new processes")
            row = start_row(plan, stopped)
            run = run.with_row(row)
            on_row(run, row)
        cases = plan.cases()
        with _opened(plan, cases, setting, on_state, stopped) as bench:
            bench = replace(bench, on_progress=on_progress)
            for number, case in enumerate(cases, 1):
                rows, ended = measure_case(bench, case, number, len(cases))
                for row in rows:
                    run = run.with_row(row)
                    on_row(run, row)
                if ended:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        run = replace(run, partial=True)
    flags = tuple(dict.fromkeys(flag for row in run.rows for flag in row.flags))
    partial = run.partial or any(
        row.partial and row.error is None and row.skipped is None for row in run.rows
    )
    return replace(run, flags=flags, partial=partial, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"))


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is known before anything is loaded."""

    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    ceilings: Ceilings


def _begin(plan: Plan, on_state: Callable[[str], None]) -> tuple[Run, _Setting]:
    """Read the model's config, measure the device, and write the run's header."""
    if plan.repeats < 1:
        raise UsageError(f"--repeat must be at least 1, not {plan.repeats}")
    plan.cases()  # names, sizes and peers are checked before anything takes time
    for name in plan.against:
        check_peer(name, plan)
    on_state("importing torch")
    from nanochat.benchmarks.device_limits import device_limits
    from nanochat.benchmarks.surroundings import device_key, model_facts, revision_of, surroundings
    from nanochat.engine.loading import choose_device, choose_dtype
    from nanochat.engine.models.config import ModelConfig

    config = ModelConfig.from_folder(plan.model)
    device = choose_device(plan.device)
    dtype = choose_dtype(plan.dtype, config, device)
    on_state("measuring what the device can do")
    ceilings = device_limits(device, dtype, device_key(device), anew=plan.measure_limits)
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
        ceilings={"read": ceilings.read, "matrix": ceilings.matrix},
        settings=settings,
    )
    devices = plan.tensor_parallel_size if device.type == "cuda" else 1  # CPU ranks share one memory
    return run, _Setting(config, device, dtype, ceilings.times(devices))


@contextmanager
def _opened(
    plan: Plan,
    cases: list[Case],
    setting: _Setting,
    on_state: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Generator[Bench]:
    """Every engine, loaded; closed at the end."""
    from nanochat.benchmarks.cost import ModelCost
    from nanochat.benchmarks.watch import Watch

    context = setting.config.max_position_embeddings
    fitting = [case for case in cases if case.longest <= context]
    longest = min(max((case.longest for case in fitting), default=1) + 16, context)
    sequences = max((case.sequences for case in fitting), default=1)
    with ExitStack() as stack:
        targets: list[Target] = []
        if fitting:
            on_state(f"loading {plan.model_name}")
            targets.append(_own_engine(plan, longest, sequences, stopped))
            stack.callback(targets[0].close)
        for name in plan.against:
            from nanochat.benchmarks.peers import open_peer

            on_state(f"loading {name}")
            targets.append(open_peer(name, plan, setting.device, setting.dtype, longest, stopped))
            stack.callback(targets[-1].close)
        gpu = (setting.device.index or 0) if setting.device.type == "cuda" else None
        yield Bench(
            targets=targets,
            cost=ModelCost(setting.config, setting.dtype.itemsize),
            ceilings=setting.ceilings,
            context=context,
            repeats=plan.repeats,
            watch=Watch(gpu),
            peak_memory=lambda: _peak_memory(setting.device),
            release=lambda: _release(setting.device),
        )


def _own_engine(plan: Plan, longest: int, sequences: int, stopped: Callable[[], bool]) -> Target:
    from nanochat.benchmarks.target import CoreTarget
    from nanochat.engine.llm import LLM

    llm = LLM(plan.model, **engine_options(plan, longest, sequences))
    group = llm.core.group
    return CoreTarget(
        llm.core,
        stopped=stopped,
        collectives=(lambda: group.collective_seconds) if group is not None else None,
    )


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
        "skip_tokenizer": True,
        "random_weights": plan.drawn,
    }


def _peak_memory(device: torch.device) -> int | None:
    """Bytes reserved on a GPU at most so far, or resident now on the host."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def _release(device: torch.device) -> None:
    """After a failed row, so that the next finds the memory free."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

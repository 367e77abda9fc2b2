"""What is known before anything is loaded: the model's shape, the device and its ceilings; and a run's header."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from nanochat.benchmarks.case import Case
from nanochat.benchmarks.cost import Ceilings, ModelCost
from nanochat.benchmarks.device_limits import device_limits
from nanochat.benchmarks.plan import Plan
from nanochat.benchmarks.result import Run
from nanochat.benchmarks.surroundings import device_key, model_facts, revision_of, surroundings
from nanochat.engine.config import EngineConfig
from nanochat.engine.loading import choose_device, choose_dtype
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.parallel.placement import choose_ranks


@dataclass(frozen=True, slots=True)
class Setting:
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


def begin(plan: Plan, on_state: Callable[[str], None]) -> tuple[Plan, Run, Setting]:
    """Read the model's config, measure the device, and write the run's header.

    Returns:
        The plan with the number of devices that the model is split over, the run without rows, and the setting.

    Raises:
        UsageError: the model cannot be split like that.
    """
    config, device, dtype, ranks = ranks_of(plan)
    plan = replace(plan, tensor_parallel_size=ranks)
    on_state("measuring what the device can do")
    ceilings, disturbed = device_limits(device, dtype, device_key(device), anew=plan.measure_limits)
    run = _header(plan, config, device, dtype)
    measured = {"read": ceilings.read, "matrix": ceilings.matrix, "disturbed": list(disturbed)}
    together = ceilings.times(ranks if device.type == "cuda" else 1)  # CPU ranks share one memory
    setting = Setting(config, device, dtype, together, ModelCost(config, dtype.itemsize))
    return plan, replace(run, ceilings=measured), setting


def ranks_of(plan: Plan) -> tuple[ModelConfig, torch.device, torch.dtype, int]:
    """The model, where and in what numbers it runs, and over how many devices it is split.

    Raises:
        UsageError: it cannot be split like that.
    """
    config = ModelConfig.from_folder(plan.model)
    device = choose_device(plan.device)
    dtype = choose_dtype(plan.dtype, config, device)
    wanted = EngineConfig(model=plan.model, tensor_parallel_size=plan.tensor_parallel_size)
    return config, device, dtype, choose_ranks(wanted, config, device, dtype)


def _header(plan: Plan, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Run:
    settings = {
        "tensor_parallel_size": plan.tensor_parallel_size,
        "enforce_eager": plan.enforce_eager,
        "repeats": plan.repeats,
        "sizes": {name: value for name, value in asdict(plan.sizes).items() if value},
        "against": list(plan.against),
    }
    revision = revision_of(plan.model.resolve())
    return Run(
        id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        preset=" ".join(plan.names),
        model=model_facts(plan.model_name, config, dtype, drawn=plan.drawn, revision=revision),
        environment=surroundings(device),
        ceilings={},
        settings=settings,
        partial=True,  # until its end: a process that is killed leaves it so
    )

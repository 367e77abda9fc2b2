"""A plan: what is to be measured, on which model, and how our own engine is set up for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.benchmarks.presets import Sizes, cases_of

if TYPE_CHECKING:
    from nanochat.benchmarks.case import Case

START = "start"
PACED = {"gap", "interference"}
SCREEN = "screen"
ELSEWHERE = (START, SCREEN)
"""What does not run on the plan's engines: a new process each time, and the application with an engine of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Args:
        model: the folder of a model; with `drawn`, of a config.json alone.
        names: presets and workloads, in order; `start` is the time from a new process to its first token.
        against: other engines, by the names in `peers.MODULES`, or addresses.
        tensor_parallel_size: over how many devices the model is split; None is as few as hold it.
        measure_limits: measure the device's ceilings even if they are known.
    """

    model: Path
    model_name: str
    drawn: bool = False
    names: tuple[str, ...] = ("quick",)
    sizes: Sizes = field(default_factory=Sizes)
    dtype: str = "auto"
    device: str = "auto"
    tensor_parallel_size: int | None = None
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


def paced(plan: Plan) -> bool:
    """Whether replies are watched beside prompts, at the chat's pace."""
    return set(plan.names) <= PACED


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
        **({"prefill_beside_decodes": None} if paced(plan) else {}),
        "skip_tokenizer": True,
        "random_weights": plan.drawn,
    }

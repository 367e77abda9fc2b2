"""Other engines on the same machine, each behind `Target`. None of them is a dependency: they run if they are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from nanochat.benchmarks.case import Target
from nanochat.errors import UsageError

if TYPE_CHECKING:
    import torch

    from nanochat.bench import Plan

MODULES = {
    "transformers": "transformers",
    "transformers-padded": "transformers",
    "vllm": "vllm",
    "llama.cpp": "llama_cpp",
    "nano-vllm": "nanovllm",
}
"""The engines that are known by name, and the module that each lives in."""


def check_peer(name: str, plan: Plan) -> None:
    """Refuse a peer that cannot be had, before anything takes time.

    Raises:
        UsageError: the name is not known, the engine is not installed, or it cannot run this model.
    """
    if is_address(name):
        return
    if name not in MODULES:
        raise UsageError(f"--against knows {', '.join(MODULES)} and http addresses, not {name!r}")
    if importlib.util.find_spec(MODULES[name]) is None:
        raise UsageError(
            f"{name} is not installed here (no module {MODULES[name]}), so it cannot be measured"
        )
    if name == "llama.cpp" and plan.gguf is None:
        raise UsageError("llama.cpp reads GGUF files: give the same model as one with --gguf FILE")
    if name == "nano-vllm" and plan.drawn:
        raise UsageError(
            "nano-vllm reads weights and a tokenizer: give it a model with --model, not --random"
        )


def is_address(name: str) -> bool:
    """Whether a peer is a server's address."""
    return name.startswith(("http://", "https://"))


def open_peer(
    name: str,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    longest: int,
    stopped: Callable[[], bool],
) -> Target:
    """Load a peer with the plan's model.

    Args:
        longest: tokens of the longest sequence that it will be asked for.
    """
    check_peer(name, plan)
    if is_address(name):
        from nanochat.benchmarks.server_peer import ServerTarget

        return ServerTarget(name, stopped)
    if MODULES[name] == "transformers":
        from nanochat.benchmarks.transformers_peer import TransformersTarget

        return TransformersTarget(plan, device, dtype, padded=name == "transformers-padded")
    if name == "llama.cpp":
        import torch

        from nanochat.benchmarks.llama_peer import LlamaTarget

        assert plan.gguf is not None
        return LlamaTarget(plan.gguf, longest, torch.get_num_threads(), stopped)
    from nanochat.benchmarks.offline_peer import OfflineTarget

    return OfflineTarget(name, plan, str(dtype).removeprefix("torch."), longest)

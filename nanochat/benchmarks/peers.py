"""Other engines on the same machine, each behind `Target`. None of them is a dependency: they run if they are there."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nanochat.benchmarks.case import Ask, Reply, Stopped, Target, Weights
from nanochat.engine.memory import is_out_of_memory
from nanochat.errors import NanochatError, UsageError

log = logging.getLogger("nanochat.bench")

if TYPE_CHECKING:
    import torch

    from nanochat.benchmarks.plan import Plan

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
    """Load a peer with the plan's model. Whatever goes wrong in it later is a `NanochatError` that names it.

    Args:
        longest: tokens of the longest sequence that it will be asked for.

    Raises:
        NanochatError: it cannot be loaded.
    """
    check_peer(name, plan)
    with _failures_of(name):
        return _Guarded(_loaded(name, plan, device, dtype, longest, stopped))


def _loaded(
    name: str,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    longest: int,
    stopped: Callable[[], bool],
) -> Target:
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


@contextmanager
def _failures_of(name: str) -> Generator[None]:
    """What another engine raises, in words: it must end its own row and not the run."""
    try:
        yield
    except (NanochatError, Stopped):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NanochatError(f"{name} failed: {type(error).__name__}: {error}") from error


class _Guarded:
    """A peer whose failures are told as such."""

    def __init__(self, peer: Target) -> None:
        self._peer = peer
        self.name, self.streams, self.about = peer.name, peer.streams, peer.about
        self.weights: Weights = peer.weights

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """See `Target`."""
        with _failures_of(self.name):
            return self._peer.run(asks, until=until)

    def forget(self) -> None:
        """See `Target`."""
        with _failures_of(self.name):
            self._peer.forget()

    def close(self) -> None:
        """See `Target`. What fails here cannot spoil what was measured: it is written to the log."""
        try:
            with _failures_of(self.name):
                self._peer.close()
        except NanochatError as error:
            log.warning("%s", error)

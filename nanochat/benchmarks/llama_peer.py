"""llama.cpp under measurement, through llama-cpp-python: one request at a time."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat.benchmarks.case import Ask, Reply, Stopped, Weights
from nanochat.errors import NanochatError

_BATCH = 2048  # tokens of a prompt that are computed in one go at most


class LlamaTarget:
    """A GGUF file in llama.cpp, every layer on the GPU if there is one.

    Args:
        longest: tokens of the longest sequence that it will be asked for.
        threads: processors that it may use; by itself it takes half of them for decoding.

    Raises:
        NanochatError: the file cannot be loaded.
    """

    name = "llama.cpp"
    streams = True

    def __init__(self, gguf: Path, longest: int, threads: int, stopped: Callable[[], bool]) -> None:
        module: Any = importlib.import_module("llama_cpp")
        self._stopped = stopped
        try:
            self._llama: Any = module.Llama(
                model_path=str(gguf), n_ctx=longest, n_batch=_BATCH, n_threads=threads, n_threads_batch=threads,
                n_gpu_layers=-1, flash_attn=True, verbose=False,
            )  # fmt: skip
        except ValueError as error:  # all that it says of a file it cannot read
            raise NanochatError(f"llama.cpp cannot load {gguf}: {error}") from error
        model = self._llama.model
        size, parameters = int(module.llama_model_size(model)), int(module.llama_model_n_params(model))
        self.weights: Weights = size / parameters
        self.about = (
            f"llama-cpp-python {module.__version__}, {gguf.name}, {8 * size / parameters:.2f} bits a weight, "
            f"{threads} threads, flash attention"
        )

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """See `Target`."""
        if len(asks) > 1:
            raise NanochatError(
                "llama.cpp is measured one request at a time here: use its own llama-batched-bench"
            )
        ask = asks[0]
        start = time.perf_counter()
        arrivals: list[float] = []
        tokens = self._llama.generate(
            list(ask.prompt), temp=ask.temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0
        )
        for _ in islice(tokens, ask.output):
            arrivals.append(time.perf_counter())
            if self._stopped():
                raise Stopped
        return [Reply(start, arrivals[-1], len(arrivals), tuple(arrivals))]

    def forget(self) -> None:
        """See `Target`."""
        self._llama.reset()

    def close(self) -> None:
        """See `Target`."""
        self._llama.close()

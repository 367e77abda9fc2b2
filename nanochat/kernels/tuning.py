"""Tuning by measurement, remembered on disk: the second start does not pay."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from nanochat.kernels.gemv_config import GemvConfig, GemvShape, candidate_configs, default_config
from nanochat.kernels.triton_gemv import gemv

_ROTATED_BYTES = 256 << 20  # weights are rotated through so many bytes, several times any L2 cache


class TuningCache:
    """Configurations by device name, Triton version and shape, in one JSON file. Owned by one engine.

    A file that cannot be read counts as empty: everything in it can be measured again.
    """

    def __init__(self, path: Path | None, device: str) -> None:
        self._path = path
        self._section = f"{device} / triton {triton.__version__}"
        self._configs: dict[str, GemvConfig] = {}
        self.look_again()

    def look_again(self) -> None:
        """Take what another engine measured meanwhile, of shapes that are not known here: equal engines then compute equal bits."""
        for name, fields in self._read().get(self._section, {}).items():
            try:
                self._configs.setdefault(name, GemvConfig(**fields))
            except TypeError:
                continue  # written by a version with other fields

    def get(self, shape: GemvShape) -> GemvConfig | None:
        """What was measured for a shape; `None` where nothing was."""
        return self._configs.get(shape.name)

    def config(self, shape: GemvShape) -> GemvConfig:
        """What was measured for a shape, else the default."""
        return self._configs.get(shape.name) or default_config(shape)

    def put(self, shape: GemvShape, config: GemvConfig) -> None:
        """Remember a configuration; `save` writes it."""
        self._configs[shape.name] = config

    def save(self) -> None:
        """Write the file whole, in one step; what others measured, on this device or another, stays."""
        if self._path is None:
            return
        content = self._read()
        ours = {name: asdict(config) for name, config in self._configs.items()}
        content[self._section] = dict(sorted((content.get(self._section, {}) | ours).items()))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(name, self._path)

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            content = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def time_of_launches(launches: list[Callable[[], object]], *, rounds: int = 8) -> float:
    """Seconds a launch takes, in a captured graph that runs all of `launches` one after the other; the best of `rounds`."""
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(
        graph, capture_error_mode="thread_local"
    ):  # NCCL's threads ask for events meanwhile
        for launch in launches:
            launch()
    graph.replay()
    best = float("inf")
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best / len(launches)


def tune_gemv(
    shape: GemvShape, cache: TuningCache, *, dtype: torch.dtype, device: torch.device, pdl: bool,
    seconds: float = float("inf"), candidates: list[GemvConfig] | None = None,
) -> dict[GemvConfig, float]:  # fmt: skip
    """Measure a shape's candidates in a chain of launches over fresh weights, and keep the fastest in `cache`.

    Args:
        seconds: no further candidate is begun after so long.

    Returns:
        Seconds a launch for each candidate measured.
    """
    began = time.monotonic()
    rows_of_weights = shape.n * (2 if shape.gated else 1)
    size = rows_of_weights * shape.k * dtype.itemsize
    copies = max(4, min(32, -(-_ROTATED_BYTES // size)))
    weights = [torch.randn(rows_of_weights, shape.k, device=device).to(dtype) for _ in range(copies)]
    x = torch.randn(shape.rows, shape.k, device=device).to(dtype)
    norm = torch.ones(shape.k, device=device, dtype=dtype) if shape.norm else None
    out = torch.empty(shape.rows, shape.n, device=device, dtype=dtype)
    times: dict[GemvConfig, float] = {}
    for config in candidates or candidate_configs(shape):
        if times and time.monotonic() - began > seconds:
            break

        def launch(weight: Tensor, config: GemvConfig = config) -> Tensor:
            activation = "silu" if shape.gated else ""
            return gemv(
                x, weight, out=out, config=config, norm=norm, eps=1e-6, activation=activation, pdl=pdl
            )

        try:
            times[config] = time_of_launches([lambda weight=weight: launch(weight) for weight in weights])
        except triton.OutOfResources:
            continue  # this chip has less shared memory or fewer registers than the candidate wants
    if times:
        cache.put(shape, min(times, key=lambda config: times[config]))
    return times

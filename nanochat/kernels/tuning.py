"""Tuning by measurement, remembered on disk: the second start does not pay."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import triton
from filelock import FileLock, Timeout
from torch import Tensor

from nanochat.kernels.gemv_config import GemvConfig, GemvShape, candidate_configs, default_config
from nanochat.kernels.shortage import comes_from_out_of_memory
from nanochat.kernels.triton_gemv import compile_gemv, gemv

KERNELS_VERSION = 1
"""To be raised with every change to the matrix-vector kernel that makes another cut the fastest: then all is measured anew."""
_ROTATED_BYTES = 256 << 20  # weights are rotated through so many bytes, several times any L2 cache
_MOST_ROTATED = 32
_LEAST_LAUNCHES = 4  # in a graph that is timed: of fewer, its own launch is too much of the time
_LOCK_SECONDS = 5.0  # others hold the file for milliseconds
_COMPILERS = 4  # threads at most: each asks for the interpreter's lock, and so does the screen

log = logging.getLogger("nanochat.kernels")


class TuningCache:
    """Configurations by device name, dtype, versions and shape, in one JSON file. Owned by one engine.

    A file that cannot be read counts as empty, and one that cannot be written is left: everything can be measured again.
    """

    def __init__(self, path: Path | None, device: str, dtype: torch.dtype) -> None:
        """`dtype`: of the matrices."""
        self._path = path
        kind = str(dtype).removeprefix("torch.")
        self._section = f"{device} / {kind} / triton {triton.__version__} / kernels {KERNELS_VERSION}"
        self._configs: dict[str, GemvConfig] = {}
        self._made_do: dict[str, GemvConfig] = {}
        self._unsaved: set[str] = set()
        self.look_again()

    def look_again(self) -> None:
        """Take what another engine measured meanwhile, of shapes that are not known here: equal engines then compute equal bits."""
        for name, config in self._saved(self._read()).items():
            if name not in self._made_do:  # what a graph was captured with stays
                self._configs.setdefault(name, config)

    def get(self, shape: GemvShape) -> GemvConfig | None:
        """What was settled for a shape; `None` where nothing was."""
        return self._configs.get(shape.name) or self._made_do.get(shape.name)

    def config(self, shape: GemvShape) -> GemvConfig:
        """What was settled for a shape, else the default."""
        return self.get(shape) or default_config(shape)

    def make_do(self, shape: GemvShape) -> None:
        """Settle for the default as long as this cache lives: it could not be measured now, and is not saved."""
        self._made_do[shape.name] = default_config(shape)

    def put(self, shape: GemvShape, config: GemvConfig) -> None:
        """Remember a configuration; `save` writes it, or finds that another engine was first."""
        self._configs[shape.name] = config
        self._unsaved.add(shape.name)

    def save(self) -> None:
        """Write the file whole, in one step; what others measured, on this device or another, stays.

        Of engines that measured the same shape at the same time the first to save it has settled it for all, so that equal
        engines compute equal bits: to be called before anything is captured with what was `put`.
        Where it cannot be written the log says so, and the next engine measures again.
        """
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock", timeout=_LOCK_SECONDS):
                self._merge(self._path)
        except (OSError, Timeout, NotImplementedError) as error:  # a full disk, or one without locks
            log.warning("what was measured of the kernels could not be saved: %s", error)
        self._unsaved.clear()  # graphs are captured with them now

    def _merge(self, path: Path) -> None:
        content = self._read()
        saved = self._saved(content)
        self._configs |= {name: saved[name] for name in self._unsaved & saved.keys()}
        ours = {name: asdict(config) for name, config in (self._configs | saved).items()}
        content[self._section] = dict(sorted((content.get(self._section, {}) | ours).items()))
        _replace(path, json.dumps(content, indent=1))

    def _saved(self, content: dict[str, dict[str, dict[str, Any]]]) -> dict[str, GemvConfig]:
        """This engine's part of the file's content."""
        found: dict[str, GemvConfig] = {}
        for name, fields in content.get(self._section, {}).items():
            with contextlib.suppress(TypeError):  # written by a version with other fields
                found[name] = GemvConfig(**fields)
        return found

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        sections: dict[str, Any] = content if isinstance(content, dict) else {}
        return {name: section for name, section in sections.items() if isinstance(section, dict)}


def _replace(path: Path, text: str) -> None:
    """Write a file whole, in one step; a failure leaves nothing behind."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def time_of_launches(launches: list[Callable[[], object]], *, rounds: int = 8) -> float:
    """Seconds a launch takes, in a captured graph that runs all of `launches` one after the other; the best of `rounds`."""
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    own = torch.cuda.stream(torch.cuda.current_stream())  # a capture that fails may leave another behind
    # NCCL's threads ask for events meanwhile.
    with own, torch.cuda.graph(graph, capture_error_mode="thread_local"):
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


def compile_candidates(
    shapes: Sequence[GemvShape], *, dtype: torch.dtype, pdl: bool, seconds: float
) -> dict[GemvShape, list[GemvConfig]]:
    """Compile the candidates of several shapes beside each other; which of each are there in time.

    A product of eight rows takes a second to compile, and a step has some thirty candidates.

    Args:
        seconds: what is not begun after so long is left.
    """
    wanted = {shape: candidate_configs(shape) for shape in shapes}
    threads = max(1, min(_COMPILERS, (os.cpu_count() or 1) // 2))
    asked: list[tuple[GemvShape, GemvConfig, object]] = []
    with (
        ThreadPoolExecutor(threads, "nanochat-compile") as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True) as mode,
    ):
        for turn in zip_longest(*wanted.values()):  # of each shape the default first
            for shape, config in zip(wanted, turn, strict=True):
                if config is not None:
                    asked.append((shape, config, compile_gemv(shape, config, dtype=dtype, pdl=pdl)))
        wait(mode.raw_futures, timeout=seconds)
        for future in mode.raw_futures:
            future.cancel()
    there: dict[GemvShape, list[GemvConfig]] = {shape: [] for shape in shapes}
    for shape, config, kernel in asked:
        # A promise that was not kept has no kernel; without one there is nothing to compile, or it was there already.
        if getattr(kernel, "kernel", kernel) is not None or config.library:
            there[shape].append(config)
    return there


def tune_gemv(
    shape: GemvShape, cache: TuningCache, *, dtype: torch.dtype, device: torch.device, pdl: bool,
    seconds: float = float("inf"), candidates: list[GemvConfig] | None = None, weights: Sequence[Tensor] = (),
) -> dict[GemvConfig, float]:  # fmt: skip
    """Measure a shape's candidates in a chain of launches over fresh weights, and keep the fastest in `cache`.

    Where memory is too short for that, the default is made do with.

    Args:
        seconds: no further candidate is begun after so long.
        weights: matrices of this shape that are there anyway, such as the model's: only what they lack is drawn.

    Returns:
        Seconds a launch for each candidate measured.
    """
    times: dict[GemvConfig, float] = {}
    try:
        rotated = _rotated(weights, shape, dtype, device)
        if rotated:
            times = _times(shape, candidates or candidate_configs(shape), rotated, pdl, seconds)
    except RuntimeError as error:
        if not comes_from_out_of_memory(error):
            raise
        times = {}
    if times:
        cache.put(shape, min(times, key=lambda config: times[config]))
    else:
        cache.make_do(shape)
    return times


def _rotated(
    given: Sequence[Tensor], shape: GemvShape, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Enough matrices of a shape that no cache holds them; none where memory has no room for half of them.

    Of what is free half may be taken: the KV cache has all but a reserve, which the launches need too.
    """
    rows = shape.n * (2 if shape.gated else 1)
    size = rows * shape.k * dtype.itemsize
    wanted = min(_MOST_ROTATED, -(-_ROTATED_BYTES // size))
    rotated = list(given[:wanted])
    lacking = wanted - len(rotated)
    if lacking:
        affordable = torch.cuda.mem_get_info(device)[0] // 2 // size
        for _ in range(min(lacking, affordable)):
            rotated.append(torch.empty(rows, shape.k, dtype=dtype, device=device).normal_())
    return rotated if 2 * len(rotated) >= wanted else []


def _times(
    shape: GemvShape, candidates: list[GemvConfig], weights: list[Tensor], pdl: bool, seconds: float
) -> dict[GemvConfig, float]:
    """Seconds a launch for each candidate that this chip can launch."""
    began = time.monotonic()
    weights = weights * -(-_LEAST_LAUNCHES // len(weights))
    x = torch.empty(shape.rows, shape.k, dtype=weights[0].dtype, device=weights[0].device).normal_()
    norm = torch.ones_like(x[0]) if shape.norm else None
    out = x.new_empty(shape.rows, shape.n)
    times: dict[GemvConfig, float] = {}
    for config in candidates:
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
    return times

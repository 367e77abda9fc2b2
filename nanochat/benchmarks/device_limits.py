"""What this device can do at best, measured: how fast it reads memory and how fast it multiplies matrices.

A few seconds, once for each device, driver and dtype: the figures are kept in the cache folder, unless other work on the
machine disturbed them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.benchmarks.cost import Ceilings
from nanochat.benchmarks.watch import Watch
from nanochat.settings import Paths, private_folder

log = logging.getLogger("nanochat.benchmarks")

_READ_BYTES = {"cuda": 4 * 2**30, "cpu": 256 * 2**20}  # far beyond any cache
_SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices that are multiplied
_SECONDS = {"cuda": 0.3, "cpu": 0.5}
_METHOD = 2  # counts up when another thing is measured: figures of an older method are measured again


def device_limits(
    device: torch.device, dtype: torch.dtype, key: str, *, anew: bool = False
) -> tuple[Ceilings, tuple[str, ...]]:
    """The device's ceilings, and what disturbed them; measured when they are not known yet, or `anew`.

    Args:
        key: names device and driver; another key is another measurement.
    """
    found = _read(_file()).get(_name(dtype, key))
    if not anew and isinstance(found, dict) and found.get("read", 0) > 0 and found.get("matrix", 0) > 0:
        return Ceilings(float(found["read"]), float(found["matrix"])), ()
    watch = Watch((device.index or 0) if device.type == "cuda" else None)
    before = watch.look(time.perf_counter())
    ceilings = measure(device, dtype)
    disturbed = watch.between(before, watch.look(time.perf_counter())).flags
    if not disturbed:
        keep(ceilings, dtype, key)
    return ceilings, disturbed


def keep(ceilings: Ceilings, dtype: torch.dtype, key: str) -> None:
    """From now on these are the device's ceilings."""
    found = {
        "read": ceilings.read,
        "matrix": ceilings.matrix,
        "measured": time.strftime("%Y-%m-%d %H:%M"),
    }
    _write(_file(), _read(_file()) | {_name(dtype, key): found})


def _file() -> Path:
    return Paths.find().cache / "ceilings.json"


def _name(dtype: torch.dtype, key: str) -> str:
    """Names all that a measurement holds for."""
    threads = f"{torch.get_num_threads()} threads"
    return f"{key}|{str(dtype).removeprefix('torch.')}|torch {torch.__version__}|{threads}|method {_METHOD}"


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure now: the fastest of several ways to read, and square matrix products."""
    return Ceilings(_read_rate(device), _matrix_rate(device, dtype))


def _read_rate(device: torch.device) -> float:
    size = _READ_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    half = data.numel() // 2
    ways: list[Callable[[], Any]] = [
        data.sum,
        data.amax,
        lambda: torch.dot(data[:half], data[half:]),
        lambda: torch.mv(data[: half // 4096 * 8192].view(-1, 4096), data[:4096]),
    ]
    best = min(_seconds(way, device) for way in ways)
    return data.numel() * 4 / best


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """In `dtype`, or in float32 where a CPU without 16-bit products is faster so: that bounds a model in `dtype` too."""
    side, kinds = _SIDE[device.type], {dtype} if device.type == "cuda" else {dtype, torch.float32}
    return max(2 * side**3 / _seconds(_product(side, kind, device), device) for kind in kinds)


def _product(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The shortest of as many repeats as fit in the time."""
    work()
    best, deadline = float("inf"), time.perf_counter() + _SECONDS[device.type]
    while time.perf_counter() < deadline:
        best = min(best, _once(work, device))
    return best


def _once(work: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing measured yet, or not to be trusted: it is measured again
    return found if isinstance(found, dict) else {}


def _write(file: Path, known: dict[str, Any]) -> None:
    """Keep them; where nothing can be written they are measured anew each time."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        private_folder(file.parent)
        unfinished.write_text(json.dumps(known, indent=1), encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        log.warning("the ceilings of this machine cannot be kept: %s", error)

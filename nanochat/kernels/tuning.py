"""Tuning by measurement: which cut of a matrix-vector product is the fastest on this chip.

Where a model is on one device its products are measured in the decode step that they are for. A product in a chain of its like
tells too little: in the step it requests its weights while another kernel's programs hold the registers. What was fastest in
such a chain made a step of Qwen3-0.6B's shape 2 to 5 % longer (an H200). Over several ranks chains are still what is measured: ranks would
wait for each other in a step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import zip_longest

import torch
import triton
from torch import Tensor

from nanochat.kernels.gemv_config import GemvConfig, GemvShape, GemvUse, candidate_configs, default_config
from nanochat.kernels.shortage import comes_from_out_of_memory
from nanochat.kernels.triton_gemv import compile_gemv, gemv
from nanochat.kernels.tuning_cache import TuningCache

_ROTATED_BYTES = 256 << 20  # weights are rotated through so many bytes, several times any L2 cache
_MOST_ROTATED = 32
_STEPS = 2  # in a graph that is timed
_TIMED_SECONDS = 0.1  # for a candidate in a step
_LEAST_LAUNCHES = 4  # in a graph that is timed: of fewer, its own launch is too much of the time
_COMPILERS = 4  # threads at most: each asks for the interpreter's lock, and so does the screen


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
    uses: Mapping[GemvShape, GemvUse], *, dtype: torch.dtype, pdl: bool, seconds: float
) -> dict[GemvShape, list[GemvConfig]]:
    """Compile the candidates of several shapes beside each other, as they are used; which of each are there in time.

    A product of eight rows takes a second to compile, and a step has some thirty candidates.

    Args:
        seconds: what is not begun after so long is left.
    """
    wanted = {shape: candidate_configs(shape) for shape in uses}
    threads = max(1, min(_COMPILERS, (os.cpu_count() or 1) // 2))
    asked: list[tuple[GemvShape, GemvConfig, object]] = []
    with (
        ThreadPoolExecutor(threads, "nanochat-compile") as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True) as mode,
    ):
        for turn in zip_longest(*wanted.values()):  # of each shape the default first
            for shape, config in zip(wanted, turn, strict=True):
                if config is not None:
                    kernel = compile_gemv(shape, uses[shape], config, dtype=dtype, pdl=pdl)
                    asked.append((shape, config, kernel))
        wait(mode.raw_futures, timeout=seconds)
        for future in mode.raw_futures:
            future.cancel()
    there: dict[GemvShape, list[GemvConfig]] = {shape: [] for shape in uses}
    for shape, config, kernel in asked:
        # A promise that was not kept has no kernel; without one there is nothing to compile, or it was there already.
        if getattr(kernel, "kernel", kernel) is not None or config.library:
            there[shape].append(config)
    return there


def tune_in_step(
    candidates: Mapping[GemvShape, list[GemvConfig]], cache: TuningCache, make_step: Callable[[], Callable[[], object]],
    *, seconds: float,
) -> dict[GemvShape, dict[GemvConfig, float]]:  # fmt: skip
    """Measure candidates of a step's products in the step, which looks them up in `cache`, and keep the fastest there.

    One product after the other, beside the fastest of the others so far; then all once more, since the first ones stood beside
    defaults: with eight rows of Qwen3-0.6B's shape a single round ended 17 % slower than products measured alone, two rounds
    2 % faster (an H200). Where memory is too short for a step, the defaults are made do with.

    Args:
        candidates: of each product.
        make_step: returns what launches a whole step, which a graph can capture.
        seconds: in each round no further candidate of a product is begun after its share of so long.

    Returns:
        Seconds a step took with each candidate in the last round.
    """
    times: dict[GemvShape, dict[GemvConfig, float]] = {}
    try:
        times = _in_step(candidates, cache, make_step(), seconds / max(len(candidates), 1))
    except RuntimeError as error:
        if not comes_from_out_of_memory(error):
            raise
    for shape in candidates:
        _settle(shape, cache, times.get(shape, {}))
    return times


def _in_step(
    candidates: Mapping[GemvShape, list[GemvConfig]], cache: TuningCache, step: Callable[[], object], seconds: float
) -> dict[GemvShape, dict[GemvConfig, float]]:  # fmt: skip
    """The times of `tune_in_step`; `seconds`: for each product and round."""
    best = {shape: default_config(shape) for shape in candidates}
    times: dict[GemvShape, dict[GemvConfig, float]] = {}
    a_step = time_of_launches([step], rounds=1)  # and what it has besides products is compiled
    replays = max(2, min(8, int(_TIMED_SECONDS / (_STEPS * a_step))))  # few of a large model's

    def time_of(shape: GemvShape, config: GemvConfig) -> float:
        with cache.trying(best | {shape: config}):
            return time_of_launches([step] * _STEPS, rounds=replays)

    for _ in range(2):
        for shape, configs in candidates.items():
            best_first = sorted(configs, key=lambda config, shape=shape: config != best[shape])
            found = _times(best_first, partial(time_of, shape), seconds)
            if found:
                times[shape], best[shape] = found, _fastest(found)
    return times


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
            times = _times(candidates or candidate_configs(shape), _chain(shape, rotated, pdl), seconds)
    except RuntimeError as error:
        if not comes_from_out_of_memory(error):
            raise
        times = {}
    _settle(shape, cache, times)
    return times


def _settle(shape: GemvShape, cache: TuningCache, times: dict[GemvConfig, float]) -> None:
    """Keep the fastest; the default where nothing could be measured."""
    if times:
        cache.put(shape, _fastest(times))
    else:
        cache.make_do(shape)


def _fastest(times: dict[GemvConfig, float]) -> GemvConfig:
    return min(times, key=lambda config: times[config])


def _times(
    candidates: Iterable[GemvConfig], time_of: Callable[[GemvConfig], float], seconds: float
) -> dict[GemvConfig, float]:
    """The time of each candidate that this chip can launch."""
    began = time.monotonic()
    times: dict[GemvConfig, float] = {}
    for config in candidates:
        if times and time.monotonic() - began > seconds:
            break
        try:
            times[config] = time_of(config)
        except triton.OutOfResources:
            continue  # this chip has less shared memory or fewer registers than the candidate wants
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


def _chain(shape: GemvShape, weights: list[Tensor], pdl: bool) -> Callable[[GemvConfig], float]:
    """Seconds a launch takes, in a chain of launches with these weights."""
    weights = weights * -(-_LEAST_LAUNCHES // len(weights))
    x = torch.empty(shape.rows, shape.k, dtype=weights[0].dtype, device=weights[0].device).normal_()
    norm = torch.ones_like(x[0]) if shape.norm else None
    out = x.new_empty(shape.rows, shape.n)
    activation = "silu" if shape.gated else ""

    def time_of(config: GemvConfig) -> float:
        def launch(weight: Tensor) -> Tensor:
            return gemv(
                x, weight, out=out, config=config, norm=norm, eps=1e-6, activation=activation, pdl=pdl
            )

        return time_of_launches([lambda weight=weight: launch(weight) for weight in weights])

    return time_of

"""Results of the benchmark as they may come, and a run that a test drives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from nanochat.bench import Plan, Progress
from nanochat.benchmarks.child import Ended, Event, Grown
from nanochat.benchmarks.result import Row, Run

READ, MATRIX = 60e9, 0.5e12


def a_row(test: str, median: float, ceiling: float, *, work: tuple[float, float], **given: Any) -> Row:
    """A row whose five samples lie around `median`; `work` is (bytes, operations)."""
    moved, computed = work
    bound = "bandwidth" if moved / READ >= computed / MATRIX else "arithmetic"
    floor = {
        "seconds": max(moved / READ, computed / MATRIX),
        "bound": bound,
        "bytes": moved,
        "operations": computed,
    }
    values = {"engine": "nanochat", "unit": "tok/s", "repeats": 5, "peak_memory": 700 * 2**20} | given
    spread = values.pop("spread", (0.97, 0.99, 1.0, 1.01, 1.02))
    return Row(
        test=test, samples=tuple(median * each for each in spread), ceiling=ceiling, work=floor, **values
    )


def a_run(*rows: Row, name: str = "20260102-101500-aaaa", preset: str = "quick", **given: Any) -> Run:
    started = f"{name[:4]}-{name[4:6]}-{name[6:8]}T{name[9:11]}:{name[11:13]}:{name[13:15]}+0000"
    run = Run(
        id=name, started=started, preset=preset, rows=rows,
        model={
            "name": "starter/SmolLM2-135M-Instruct", "parameters": 134_515_008, "dtype": "bfloat16",
            "weight_bytes": 269_030_016, "weights": "read", "revision": None,
        },
        environment={
            "device": "AMD EPYC", "nanochat": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0",
            "kernels": "torch on the CPU, bfloat16 matrices packed by oneDNN",
        },
        ceilings={"read": READ, "matrix": MATRIX}, settings={"repeats": 5},
    )  # fmt: skip
    return replace(run, **given)


def quick(speed: float = 1.0, **given: Any) -> Run:
    """A quick run; `speed` multiplies its rates."""
    rows = (
        a_row("pp512", 1320 * speed, 2030, work=(0.27e9, 126e9), details={"ttft": (380.0, 384.0, 388.0, 392.0, 401.0)}),
        a_row("pp2048", 1105 * speed, 1890, work=(0.27e9, 541e9), details={"ttft": (1810.0, 1850.0, 1853.0, 1861.0, 1902.0)}),
        a_row("tg128", 96.5 * speed, 221, work=(34.6e9, 34.8e9), details={"itl": (9.8, 10.1, 10.3, 10.4, 14.0)}),
        a_row("tg128 @ d4096", 44.2 * speed, 139, work=(55e9, 71e9), details={"itl": (21.0, 22.5, 22.6, 23.0, 31.0)}),
    )  # fmt: skip
    return a_run(*rows, **given)


def throughput() -> Run:
    """Batches of 1 to 64; the largest did not fit."""
    rows = [
        a_row(f"batch {n} x (512 + 128)", 70 * n**0.55, 180 * n**0.8, work=(34e9, 34e9 * n), place={"batch": n},
              details={"tok/s each": (70 * n**-0.45,) * n})
        for n in (1, 2, 4, 8, 16, 32)
    ]  # fmt: skip
    failed = Row(
        test="batch 64 x (512 + 128)", engine="nanochat", unit="tok/s", repeats=5, place={"batch": 64},
        error="out of memory: the step needs 1.20 GiB and 0.84 GiB is free",
    )  # fmt: skip
    flags = ("busy CPU: others used 0.9 of 2 cores",)
    return a_run(*rows, failed, name="20260103-090000-bbbb", preset="throughput", flags=flags)


def chat() -> Run:
    """Eight turns with the cache and without."""
    rows = [
        a_row(f"chat turn {n}, {'cached' if cache else 'no cache'}", (170 if cache else 60 + 260 * n), 100, unit="ms",
              work=(0.3e9, 60e9), place={"turn": n, "cache": cache})
        for cache in (True, False)
        for n in range(1, 9)
    ]  # fmt: skip
    return a_run(*rows, name="20260104-090000-cccc", preset="chat")


class DrivenProcess:
    """A run of the benchmark whose events come when the test says so."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.stopped = False
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    def open(self, plan: Plan) -> DrivenProcess:
        self.plan = plan
        return self

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def stop(self) -> None:
        self.stopped = True
        self._events.put_nowait(None)

    def tell(self, *events: Event | Exception | None) -> None:
        for event in events:
            self._events.put_nowait(event)


def progress(repeat: int = 3, **given: Any) -> Progress:
    values = {
        "value": 95.8,
        "unit": "tok/s",
        "seconds_left": 4.1,
        "run_seconds_left": 68.0,
        "rate": 97.3,
    } | given
    return Progress("tg128", "nanochat", 3, 4, repeat, 5, **values)


def under_way() -> list[Event]:
    """Two rows are done, the third is being measured."""
    run = quick()
    grown = replace(run, rows=run.rows[:2], partial=True)
    rates = [progress(rate=rate) for rate in (88.0, 95.0, 99.0, 91.0, 97.0, 98.0, 96.5, 97.3)]
    return [Grown(grown), *rates]


def stopped() -> Run:
    """What `under_way` ends as when it is stopped."""
    run = quick()
    third = replace(run.rows[2], samples=run.rows[2].samples[:3])
    return replace(run, rows=(*run.rows[:2], third), partial=True)


__all__ = [
    "DrivenProcess",
    "Ended",
    "a_row",
    "a_run",
    "chat",
    "progress",
    "quick",
    "stopped",
    "throughput",
    "under_way",
]

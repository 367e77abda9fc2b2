"""What disturbed a measurement is said, and energy is that of the measured tokens: with counters that a test sets."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench_fakes import FakeCore

from nanochat.benchmarks import watch
from nanochat.benchmarks.cost import Ceilings, ModelCost
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.benchmarks.measuring import Bench, measure_case
from nanochat.benchmarks.single import Decode
from nanochat.benchmarks.target import CoreTarget
from nanochat.benchmarks.watch import Look, Seen, Watch
from nanochat.engine.models.config import ModelConfig


class FakeNvml:
    """The part of pynvml that is used, with counters to set."""

    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules: int | None = 5_000
        self.held_back = {0: 0, 1: 0}
        self.processes: list[SimpleNamespace] = []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> str:
        return bus

    def nvmlDeviceGetTotalEnergyConsumption(self, device: str) -> int:
        if self.millijoules is None:
            raise self.NVMLError("not supported")
        return self.millijoules

    def nvmlDeviceGetViolationStatus(self, device: str, policy: int) -> SimpleNamespace:
        return SimpleNamespace(violationTime=self.held_back[policy])

    def nvmlDeviceGetComputeRunningProcesses(self, device: str) -> list[SimpleNamespace]:
        return self.processes


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(watch, "_bus_id", lambda gpu: "0000:01:00.0")
    return fake


def a_look(clock: float, busy: float = 0.0, own: float = 0.0) -> Look:
    return Look(clock, busy, own, None, None)


def test_a_busy_cpu_is_said_with_how_busy_it_was() -> None:
    watching = Watch()
    watching._cores = 4
    assert (
        watching.between(a_look(0), a_look(10, busy=31, own=30)).flags == ()
    )  # others had a tenth of a core
    (flag,) = watching.between(a_look(0), a_look(10, busy=45, own=30)).flags
    assert flag == "busy CPU: others used 1.5 of 4 cores"


def test_clocks_that_were_held_back_are_said_with_the_time(nvml: FakeNvml) -> None:
    watching = Watch(0)
    before = watching.look(0.0)
    nvml.held_back = {0: 250_000_000, 1: 0}
    assert watching.between(before, watching.look(0.1)).flags == (
        "the GPU's clocks were held back by power for 0.25 s",
    )
    nvml.held_back = {0: 250_000_000, 1: 40_000_000}
    assert "by heat for 0.04 s" in watching.between(before, watching.look(0.1)).flags[1]


def test_others_on_the_gpu_are_said_and_we_are_not(nvml: FakeNvml) -> None:
    watching = Watch(0)
    ours = [SimpleNamespace(pid=pid, usedGpuMemory=2**30) for pid in (os.getpid(), os.getppid())]
    nvml.processes = ours
    assert watching.between(watching.look(0.0), watching.look(0.1)).flags == ()
    nvml.processes = [*ours, SimpleNamespace(pid=1 << 22, usedGpuMemory=3 * 2**30)]
    assert watching.between(watching.look(0.0), watching.look(0.1)).flags == (
        "1 other processes use this GPU (3.0 GiB)",
    )


def test_energy_is_counted_where_the_device_counts_it(nvml: FakeNvml) -> None:
    watching = Watch(0)
    before = watching.look(0.0)
    nvml.millijoules = 12_500
    assert watching.between(before, watching.look(1.0)).joules == 7.5
    nvml.millijoules = None
    assert not watching.counts_energy and watching.between(before, watching.look(1.0)).joules is None


@dataclass
class Metered(Watch):
    """Draws 200 W all the time."""

    def look(self, clock: float) -> Look:
        return Look(clock, 0.0, 0.0, round(200_000 * clock), None)

    def between(self, before: Look, after: Look) -> Seen:
        assert before.millijoules is not None and after.millijoules is not None
        return Seen((), (after.millijoules - before.millijoules) / 1e3)


@pytest.mark.parametrize(
    ("step", "joules"),
    [(0.02, 200 * 0.02), (0.0001, None)],
    ids=["long enough", "shorter than the counter's step"],
)
def test_energy_per_token_is_power_times_the_time_of_a_token(
    step: float, joules: float | None, tmp_path: Path
) -> None:
    core = FakeCore(prefill=1e9, step_seconds=step)
    cost = ModelCost(ModelConfig.from_folder(write_shape("tiny", tmp_path)), 2)
    bench = Bench(
        [CoreTarget(core, clock=core.clock)],
        cost,
        Ceilings(1e9, 1e12),
        4096,
        repeats=3,
        watch=Metered(),
        clock=core.clock,
    )
    (row,), _ = measure_case(bench, Decode(100), 1, 1)
    assert row.joules_per_token == (pytest.approx(joules, rel=0.01) if joules is not None else None)

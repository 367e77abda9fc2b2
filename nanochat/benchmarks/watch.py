"""What disturbs a measurement: other work on the CPU or the GPU, throttling. And the energy that was used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanochat.engine import host

BUSY_CPU = 0.15
"""The share of all cores that others may use before a row is flagged."""

_THERMAL = (
    0x20 | 0x40 | 0x08
)  # software thermal, hardware thermal, hardware slowdown (nvml.h, ClocksEventReasons)
_POWER = 0x04 | 0x80  # software power cap, hardware power brake


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened between two looks."""

    flags: tuple[str, ...] = ()
    joules: float | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """Counters at one moment."""

    clock: float
    busy: float
    own: float
    millijoules: int | None
    held_back: tuple[int, int] | None  # nanoseconds for which power and heat held the clocks back


class Watch:
    """Looks at the machine before and after what is measured; nothing runs in between.

    Args:
        gpu: the index of the CUDA device that is measured, or None.
    """

    def __init__(self, gpu: int | None = None) -> None:
        self._cores = os.cpu_count() or 1
        self._device: Any = None
        self._nvml: Any = None
        if gpu is not None:
            self._open(gpu)

    @property
    def counts_energy(self) -> bool:
        """Whether NVML counts this device's energy."""
        return self._energy() is not None

    def _open(self, gpu: int) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._device = pynvml.nvmlDeviceGetHandleByPciBusId(_bus_id(gpu))
        except Exception:  # no NVML, or one that does not answer: the row says less, and is still a row
            self._nvml = self._device = None

    def look(self, clock: float) -> Look:
        """Read all counters; `clock` is now in seconds."""
        work = host.work()
        return Look(clock, work.all, work.own, self._energy(), self._held_back())

    def between(self, before: Look, after: Look) -> Seen:
        """What happened between two looks, and who else uses the device now."""
        seconds = after.clock - before.clock
        flags: list[str] = []
        others = (after.busy - before.busy) - (after.own - before.own)
        if seconds > 0.2 and others / seconds / self._cores > BUSY_CPU:
            flags.append(f"busy CPU: others used {others / seconds:.1f} of {self._cores} cores")
        flags += self._throttling(before, after)
        flags += self._neighbours()
        joules = None
        if before.millijoules is not None and after.millijoules is not None:
            joules = (after.millijoules - before.millijoules) / 1e3
        return Seen(tuple(flags), joules)

    def _energy(self) -> int | None:
        for value in self._ask("nvmlDeviceGetTotalEnergyConsumption"):
            return int(value)
        return None

    def _held_back(self) -> tuple[int, int] | None:
        times = [
            int(status.violationTime)
            for policy in ("NVML_PERF_POLICY_POWER", "NVML_PERF_POLICY_THERMAL")
            for status in self._ask("nvmlDeviceGetViolationStatus", getattr(self._nvml, policy, 0))
        ]
        return (times[0], times[1]) if len(times) == 2 else None

    def _throttling(self, before: Look, after: Look) -> list[str]:
        flags: list[str] = []
        if before.held_back is not None and after.held_back is not None:
            for name, old, new in zip(("power", "heat"), before.held_back, after.held_back, strict=True):
                if new > old:
                    flags.append(f"the GPU's clocks were held back by {name} for {(new - old) / 1e9:.2f} s")
            return flags
        for reasons in self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"):
            if reasons & _THERMAL:
                flags.append("the GPU's clocks are held back by heat")
            if reasons & _POWER:
                flags.append("the GPU's clocks are held back by power")
        return flags

    def _neighbours(self) -> list[str]:
        mine = host.relatives()  # the application that started this run has given its memory back
        for processes in self._ask("nvmlDeviceGetComputeRunningProcesses"):
            others = [process for process in processes if process.pid not in mine]
            if others and len(others) == len(processes) and not any(host.is_running(p.pid) for p in others):
                others = others[1:]  # in a container NVML tells the host's ids: one of these is this process
            if others:
                taken = sum(int(each.usedGpuMemory or 0) for each in others) / 2**30
                return [f"{len(others)} other processes use this GPU ({taken:.1f} GiB)"]
        return []

    def _ask(self, function: str, *arguments: Any) -> Iterator[Any]:
        """What an NVML function answers, or nothing where this driver or device has it not."""
        if self._device is None:
            return
        try:
            answer = getattr(self._nvml, function)(self._device, *arguments)
        except (AttributeError, self._nvml.NVMLError):
            return
        yield answer


def _bus_id(gpu: int) -> str:
    """NVML counts devices by their bus, CUDA in an order of its own."""
    import torch

    found = torch.cuda.get_device_properties(gpu)
    return f"{found.pci_domain_id:08x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"

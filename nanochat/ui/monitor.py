"""What the device is doing: memory and power, read once a second in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

log = logging.getLogger("nanochat.monitor")

_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_MEMORY_STEP = 4 << 20  # bytes
_POWER_STEP = 3.0  # watts


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the device. Bytes, watts, percent; None where it cannot be read."""

    device: str = ""
    memory_used: int | None = None
    memory_total: int | None = None
    power: float | None = None
    busy: float | None = None
    temperature: float | None = None

    def moved_from(self, shown: Reading) -> bool:
        """Whether it is worth drawing in the place of what is shown.

        Measured from what is shown, not in fixed steps: on the edge of a step a figure would flicker.
        """
        return (
            (self.device, self.memory_total) != (shown.device, shown.memory_total)
            or _moved(self.memory_used, shown.memory_used, _MEMORY_STEP, 0.002)
            or _moved(self.power, shown.power, _POWER_STEP, 0.02)
        )


def _moved(now: float | None, shown: float | None, step: float, share: float) -> bool:
    """By a step, or by a share of a large figure."""
    if now is None or shown is None:
        return now is not shown
    return abs(now - shown) >= max(step, share * shown)


class Monitor:
    """Reads the device once a second and calls `on_reading` from its thread when something changed visibly."""

    def __init__(self, on_reading: Callable[[Reading], None], *, seconds: float = 1.0) -> None:
        self._on_reading = on_reading
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nanochat-monitor", daemon=True)

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; does not wait for a reading under way."""
        self._stopped.set()

    def _run(self) -> None:
        probe = _gpu_probe() or ProcessProbe()
        last: Reading | None = None
        while not self._stopped.is_set():
            try:
                reading = probe.read()
            except Exception as error:  # a driver that goes away must not take anything with it
                log.warning("the device cannot be read any more: %s", error)
                return
            if last is None or reading.moved_from(last):
                last = reading
                self._on_reading(reading)
            self._stopped.wait(self._seconds)


class ProcessProbe:
    """A CPU machine: this process's memory of the machine's, its share of the cores, and the package's power."""

    def __init__(self, energy: Path = _RAPL) -> None:
        import psutil

        self._process = psutil.Process()
        self._total = psutil.virtual_memory().total
        self._cores = psutil.cpu_count() or 1
        self._energy = energy
        self._last_energy: tuple[float, int] | None = None

    def read(self) -> Reading:
        """One look."""
        with self._process.oneshot():
            used = self._process.memory_info().rss
            busy = self._process.cpu_percent() / self._cores
        return Reading("RAM", used, self._total, self._power(), busy)

    def _power(self) -> float | None:
        """Watts since the last look, from the package's energy counter where the user may read it."""
        try:
            now, energy = monotonic(), int(self._energy.read_text())
        except (OSError, ValueError):
            return None
        last, self._last_energy = self._last_energy, (now, energy)
        if last is None or energy < last[1] or now <= last[0]:
            return None
        return (energy - last[1]) / 1e6 / (now - last[0])


class GpuProbe:
    """An NVIDIA GPU through NVML: the whole device's memory, its power, load and temperature."""

    def __init__(self, nvml: Any, index: int = 0) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def read(self) -> Reading:
        """One look."""
        nvml, handle = self._nvml, self._handle
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return Reading(
            "VRAM", int(memory.used), int(memory.total),
            self._try(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            self._try(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            self._try(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        )  # fmt: skip

    def _try(self, read: Callable[[], float]) -> float | None:
        """What this device can tell; a partition of a GPU cannot tell its power."""
        try:
            return read()
        except self._nvml.NVMLError:
            return None


def _gpu_probe() -> GpuProbe | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no driver, no library, no permission: all mean that there is no GPU to read
        log.info("no NVIDIA GPU to read: %s", error)
        return None
    try:
        return GpuProbe(pynvml, _first_visible())
    except Exception as error:
        log.warning("the GPU cannot be read: %s", error)
        return None


def _first_visible() -> int:
    """The index of the first device that CUDA may use."""
    import os

    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return int(first) if first.isdigit() else 0

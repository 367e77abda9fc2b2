"""Ceilings are measured once for each device, dtype and way of measuring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nanochat.benchmarks import device_limits as limits
from nanochat.benchmarks.cost import Ceilings
from nanochat.settings import Paths

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch, tmp_path) -> list[Ceilings]:
    """What was measured, one after another, on a machine where nothing disturbs."""
    found: list[Ceilings] = []

    def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
        found.append(Ceilings(1e9 * (len(found) + 1), 1e12))
        return found[-1]

    class Quiet:
        flags = ()

        def __init__(self, device: int | None) -> None: ...

        def look(self, now: float) -> None: ...

        def between(self, before: None, after: None) -> Quiet:
            return self

    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    monkeypatch.setattr(limits, "measure", measure)
    monkeypatch.setattr(limits, "Watch", Quiet)
    return found


def test_what_was_measured_is_kept(measured: list[Ceilings]) -> None:
    for key, dtype, times in (("a", torch.float32, 1), ("a", torch.bfloat16, 2), ("b", torch.float32, 3)):
        first = limits.device_limits(CPU, dtype, key)
        assert limits.device_limits(CPU, dtype, key) == first == (measured[-1], ())
        assert len(measured) == times
    assert limits.device_limits(CPU, torch.float32, "a", anew=True)[0] == measured[3]


def test_what_an_older_way_of_measuring_found_is_measured_again(measured, monkeypatch) -> None:
    limits.device_limits(CPU, torch.float32, "a")
    file = Paths.find().cache / "ceilings.json"
    # As files from before the method was named in them.
    old = {name.rpartition("|")[0]: found for name, found in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(old))
    assert limits.device_limits(CPU, torch.float32, "a")[0] == measured[1]
    monkeypatch.setattr(limits, "_METHOD", limits._METHOD + 1)
    assert limits.device_limits(CPU, torch.float32, "a")[0] == measured[2]


def test_ceilings_that_cannot_be_kept_are_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    limits.keep(Ceilings(read=1e9, matrix=1e9), torch.float32, "a machine")

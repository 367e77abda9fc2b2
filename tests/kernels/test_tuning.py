"""What was measured is shared by all engines of a machine, and nobody's measurements are lost."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton runs on Linux only")

from nanochat.kernels.gemv_config import GemvShape, candidate_configs
from nanochat.kernels.tuning import TuningCache

SHAPES = [GemvShape(rows, 512, 256, False, False) for rows in (1, 2, 4)]


def test_engines_side_by_side_keep_and_find_each_others_measurements(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    first, second, third = (TuningCache(path, device) for device in ("a chip", "a chip", "another chip"))
    best, other = candidate_configs(SHAPES[0])[:2]
    first.put(SHAPES[0], best)
    first.save()
    third.put(SHAPES[0], other)
    third.save()
    second.put(SHAPES[1], other)
    second.save()

    second.look_again()
    assert (second.get(SHAPES[0]), second.get(SHAPES[1]), second.get(SHAPES[2])) == (best, other, None)
    afterwards = TuningCache(path, "a chip")
    assert (afterwards.get(SHAPES[0]), afterwards.get(SHAPES[1])) == (best, other)
    assert TuningCache(path, "another chip").get(SHAPES[0]) == other


def test_what_an_engine_chose_stays_when_another_chose_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    ours, theirs = (TuningCache(path, "a chip") for _ in range(2))
    best, other = candidate_configs(SHAPES[0])[:2]
    ours.put(SHAPES[0], best)
    theirs.put(SHAPES[0], other)
    theirs.save()
    ours.look_again()
    assert ours.get(SHAPES[0]) == best

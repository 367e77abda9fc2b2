"""What the GPU session's scripts compute from what they measured; runs anywhere."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_divergence_is_the_mean_over_positions() -> None:
    tally = script("divergence").Tally()
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    tally.add(p.log(), q.log() + 3.0)  # logits: a constant more changes nothing
    tally.add(p.log(), p.log())
    figures = tally.figures()
    assert figures["mean KL"] == pytest.approx(0.25 * torch.log(torch.tensor(2.0)).item() / 2)
    assert figures["same top token %"] == 50.0


def test_divergence_passes_up_to_a_quarter_more_and_two_tenths_of_a_point() -> None:
    passes = script("divergence").passes
    theirs = {"mean KL": 1e-3, "same top token %": 97.0}
    assert passes({"mean KL": 1.25e-3, "same top token %": 96.8}, theirs)
    assert not passes({"mean KL": 1.26e-3, "same top token %": 97.0}, theirs)
    assert not passes({"mean KL": 1e-3, "same top token %": 96.7}, theirs)


def test_a_part_is_summed_up_in_one_line(tmp_path: Path) -> None:
    session = script("session")
    row = {"test": "S", "unit": "tok/s", "median": 9.0, "quartiles": [8, 10], "samples": [9.0], "error": None}
    run = {"rows": [row], "environment": {"device": "a GPU"}, "ceilings": {"read": 3e12, "matrix": 1e15}}
    found = session.figures(f"noise\n{json.dumps(run)}\n")
    assert found["rows"] == [{"test": "S", "unit": "tok/s", "median": 9.0, "quartiles": [8, 10]}]
    assert found["device"] == "a GPU" and found["read GB/s"] == 3000
    assert session.figures("..F\nFAILED tests/a.py::b - E\n1 failed, 2 passed in 3s")["failed"]
    part = session.Part(
        [sys.executable, "-c", 'print(\'{"part": "x", "value": 1}\'); raise SystemExit(3)'], 60
    )
    result = session.run("x", part, tmp_path)
    assert (result["ok"], result["code"], result["value"]) == (False, 3, 1)
    slow = session.Part([sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert session.run("slow", slow, tmp_path)["code"] == -1


def test_every_part_names_files_that_are_there() -> None:
    session = script("session")
    for name, part in session.parts(Path("model")).items():
        files = [word for word in part.command if word.startswith("tests/")]
        assert all((session.ROOT / file).is_file() for file in files), name


def test_the_drawn_reply_is_read_by_what_the_benchmark_reads_it_with() -> None:
    drawing = script("drawing")
    assert drawing.drawn_parts.PlainReader is drawing.PLAIN
    assert len(drawing.FenceReader().push("abcd").text) > 100_000

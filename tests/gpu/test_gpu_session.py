"""What the GPU session's scripts compute from what they measured; runs anywhere."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
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
    module = script("divergence")

    def tally(kl: float, agreed: int, positions: int = 10_000) -> object:
        return module.Tally(positions, kl * positions, agreed)

    theirs = tally(1e-3, 9700)
    assert module.passes(tally(1.25e-3, 9680), theirs)
    assert not module.passes(tally(1.26e-3, 9700), theirs)
    assert not module.passes(tally(1e-3, 9679), theirs)
    few = tally(1e-3, 98, 100)  # one position is a point there
    assert module.passes(tally(1e-3, 97, 100), few) and not module.passes(tally(1e-3, 96, 100), few)


def test_a_part_is_summed_up_in_one_line(tmp_path: Path) -> None:
    session = script("session")
    row = {
        "test": "S",
        "engine": "nanochat, 2 ranks",
        "unit": "tok/s",
        "median": 9.0,
        "quartiles": [8, 10],
        "samples": [9.0],
        "error": None,
    }
    run = {"rows": [row], "environment": {"device": "a GPU"}, "ceilings": {"read": 3e12, "matrix": 1e15}}
    found = session.figures(f"noise\n{json.dumps(run)}\n")
    assert found["rows"] == [
        {"test": "S", "engine": "nanochat, 2 ranks", "unit": "tok/s", "median": 9.0, "quartiles": [8, 10]}
    ]
    assert found["device"] == "a GPU" and found["read GB/s"] == 3000
    assert session.figures("..F\nFAILED tests/a.py::b - E\n1 failed, 2 passed in 3s")["failed"]
    assert not session.figures("41 passed\n========= ERROR SUMMARY: 0 errors")["failed"]
    assert session.figures("40 passed\n========= ERROR SUMMARY: 2 errors")["failed"]
    said: list[dict[str, object]] = []
    part = session.Part(
        [sys.executable, "-c", 'print(\'{"part": "x", "value": 1}\'); raise SystemExit(3)'], 60
    )
    result = session.run("x", part, tmp_path, said.append)
    assert (result["ok"], result["code"], result["value"]) == (False, 3, 1)
    assert not said


def test_what_a_part_had_measured_when_its_time_was_up_is_kept(tmp_path: Path) -> None:
    session = script("session")
    rows = [
        "S decode (nanochat, 2 ranks): 360 tok/s, 54.0 % of 663",
        "so far: 2 ranks {}",
        "| by hand | 9.1 |",
    ]
    said: list[dict[str, object]] = []
    talk = f"import time; print(*{rows!r}, 'noise', 'half a (nanochat): li', sep='\\n', end='', flush=True); time.sleep(60)"
    result = session.run("slow", session.Part([sys.executable, "-c", talk], 3), tmp_path, said.append)
    assert result["code"] == -1
    assert [each["so far"] for each in said] == [row.removeprefix("so far: ") for row in rows]
    tests = "a.py::one PASSED [1%]\n[gw0] [2%] FAILED a.py::two\n[gw1] [3%] PASSED a.py::three"
    assert session.figures(tests) | {"summary": ""} == {
        "summary": "", "passed": 2, "failed": ["[gw0] [2%] FAILED a.py::two"]
    }  # fmt: skip


def test_every_part_names_files_that_are_there() -> None:
    session = script("session")
    for ranks in ([1], [1, 2, 4]):
        for name, part in session.parts(Path("model"), ranks).items():
            files = [word for word in part.command if word.startswith("tests/")]
            assert all((session.ROOT / file).is_file() for file in files), name


def test_each_number_of_ranks_has_a_part_that_ends_in_minutes() -> None:
    parts = script("session").parts(None, [1, 2, 4])
    large = {name: part for name, part in parts.items() if name.startswith("ranks-large-b")}
    assert list(large) == ["ranks-large-b-1", "ranks-large-b-2", "ranks-large-b-4"]
    assert all(part.seconds <= 200 and part.command.count("--workload") == 1 for part in large.values())
    assert "2" in large["ranks-large-b-2"].command
    assert not any(name.startswith("ranks") for name in script("session").parts(None, [1]))


def test_compiled_kernels_are_kept_in_pieces_and_found_again_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton runs on Linux only")
    from triton.runtime.cache import FileCacheManager

    kept, folder = script("kept"), tmp_path / "kept"
    monkeypatch.setattr(kept, "PIECE", 1000)

    def machine(name: str) -> FileCacheManager:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / name / "triton"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
        return FileCacheManager("a" * 64)

    first, binary = machine("first"), random.Random(0).randbytes(5000)
    group = {"k.cubin": first.put(binary, "k.cubin"), "k.ttir": first.put("text", "k.ttir")}
    group["k.json"] = first.put("{}", "k.json")
    first.put_group("k.json", group)
    kept.measured().parent.mkdir(parents=True)
    kept.measured().write_text('{"a GPU": {}}')
    (folder).mkdir()
    (folder / "kept.tar.gz.099").write_bytes(b"of an earlier, larger one")
    assert kept.save(folder)["pieces"] == len(kept.pieces(folder)) > 1
    shutil.rmtree(tmp_path / "first")

    second = machine("second")
    assert kept.load(tmp_path / "nothing")["ok"] is False
    assert kept.load(folder)["files"] == 4
    found = second.get_group("k.json")
    assert found is not None and set(found) == {"k.cubin", "k.json"}, "what is for people was left out"
    assert Path(found["k.cubin"]).read_bytes() == binary
    assert Path(found["k.cubin"]).is_relative_to(tmp_path / "second")
    assert kept.measured().read_text() == '{"a GPU": {}}'


def test_what_is_kept_is_the_file_that_kernels_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton runs on Linux only")
    from nanochat import kernels
    from nanochat.kernels import cuda

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(cuda, "CudaKernels", lambda device, *, tuning, **_: tuning)
    assert kernels.pick(torch.device("cuda")) == script("kept").measured()


def test_what_is_compiled_is_told_in_a_table() -> None:
    compiled = script("compiled")
    found = compiled.figures([100.0, 160.0])
    assert found == {"us a layer": 10.0, "us": [100.0, 160.0]}
    lines = [*compiled.head(640), compiled.row("by hand", found)]
    assert {line.count("|") for line in lines} == {5} and lines[-1] == "| by hand | 10.00 | 100.0 | 160.0 |"


def test_memory_that_nobody_wrote_is_poisoned(poisoned_memory: None) -> None:
    made = torch.empty(3), torch.empty_like(torch.zeros(2)), torch.zeros(1).new_empty(4, dtype=torch.bfloat16)
    assert all(tensor.isnan().all() for tensor in made)
    assert torch.empty(3, dtype=torch.int32).shape == (3,)


def test_the_drawn_reply_is_read_by_what_the_benchmark_reads_it_with() -> None:
    drawing = script("drawing")
    assert drawing.drawn_parts.PlainReader is drawing.PLAIN
    assert len(drawing.FenceReader().push("abcd").text) > 100_000

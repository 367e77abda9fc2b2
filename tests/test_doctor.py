"""What the doctor finds, and what it calls wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat import doctor
from nanochat.doctor import Fact
from nanochat.modelhub import starter
from nanochat.settings import Paths


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nanochat", "doctor", *arguments], capture_output=True, text=True, timeout=120
    )


def test_everything_that_was_promised_is_there(starter_home: Path) -> None:
    result = run_doctor()
    assert (result.returncode, result.stderr) == (0, "")
    for part in ("Python", "torch", "GPU", "memory", "processor", "config", "data", "cache", "log",
                 starter.NAME, "hub", "TERM=", "columns", str(starter_home)):  # fmt: skip
        assert part in result.stdout
    assert "WRONG" not in result.stdout


def test_without_a_gpu_the_reason_is_named(starter_home: Path) -> None:
    import torch

    from nanochat.kernels import pick

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    facts = doctor.examine()
    used = next(fact for fact in facts if fact.name == "used")
    assert used.value.startswith("none: ")
    assert not used.wrong
    kernels = next(fact for fact in facts if fact.name == "kernels")
    assert kernels.value == pick(torch.device("cpu")).describe(torch.bfloat16)


def test_json_holds_the_same_facts(starter_home: Path) -> None:
    result = run_doctor("--json")
    report = json.loads(result.stdout)
    assert report["problems"] == []
    assert report["software"]["nanochat"] == "0.1.0"
    assert starter.NAME in report["models"]


def test_what_is_wrong_is_marked_and_ends_with_1(starter_home: Path) -> None:
    file = Paths.find().settings_file
    file.parent.mkdir()
    file.write_text('[engine]\ndtype = "int9"\n')
    result = run_doctor()
    assert result.returncode == 1
    assert "WRONG: " in result.stdout
    assert "engine.dtype must be one of" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_log_that_cannot_be_written_is_wrong(starter_home: Path) -> None:
    Paths.find().log_file.mkdir(parents=True)
    result = run_doctor()
    assert result.returncode == 1
    assert f"WRONG: {Paths.find().log_file} cannot be written: Is a directory" in result.stdout
    assert "works without it" in result.stdout


def test_unknown_settings_are_named(starter_home: Path) -> None:
    file = Paths.find().settings_file
    file.parent.mkdir()
    file.write_text("[engine]\nwarp = 9\n")
    assert "unknown keys: engine.warp" in run_doctor().stdout


def test_a_probe_that_fails_is_a_finding_not_the_end(
    starter_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Fact]:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_machine", broken)
    facts = doctor.examine()
    assert Fact("machine", "error", "OSError: no such thing", wrong=True) in facts
    assert facts[-1].name == "hub"


def compiler_at(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def build_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where programs are looked for; `include` in it has Python's headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: name)
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path / "include")})
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    return tmp_path


def test_the_compiler_that_triton_would_take_is_found(
    build_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> str:
        [fact] = doctor._compiler()
        assert not fact.wrong
        return fact.value.split()[0]

    compiler_at(build_tools, "clang")
    assert found() == str(build_tools / "clang")
    compiler_at(build_tools, "gcc")
    assert found() == str(build_tools / "gcc")
    compiler_at(build_tools, "mine")
    monkeypatch.setenv("CC", "mine")
    assert found() == str(build_tools / "mine")


def test_on_a_gpu_a_missing_compiler_or_header_is_wrong(
    build_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def said() -> str:
        [fact] = [fact for fact in doctor._gpu() if fact.name == "compiler"]
        assert fact.wrong
        return fact.value

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(doctor, "_kernels", lambda *_: Fact("gpu", "kernels", ""))
    assert said().startswith("no gcc and no clang: install one, or set CC")
    compiler_at(build_tools, "gcc")
    (build_tools / "include" / "Python.h").unlink()
    assert "no Python.h in" in said()
    monkeypatch.setenv("CC", "absent")
    assert said().startswith("CC is absent, which is not there")
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    assert doctor._compiler() == [], "nothing is built where there is no Triton"

"""The command as a user runs it: a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

TINY = ("--random", "tiny", "--prompt", "16", "--output", "4", "--depth", "0", "--device", "cpu")
BARE = ("torch", "triton", "transformers", "safetensors")
"""What is installed, with all that these need."""
ABSENT = """
import sys
class Without:
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)
    def find_distributions(self, *given):
        return [each for finder in self.finders if hasattr(finder, "find_distributions")
                for each in finder.find_distributions(*given)]
sys.meta_path[:] = [Without(list(sys.meta_path))]
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that is started from here on lacks our other dependencies, its own children too."""
    needed, waiting = set[str](), list(BARE)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            found = [Requirement(each) for each in _requirements(name)]
            waiting += [
                re.sub(r"[-_.]+", "-", each.name).lower()
                for each in found
                if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    ours = [Requirement(each) for each in _requirements("nanochat")]
    others = {each.name for each in ours if "extra" not in str(each.marker)} - needed
    modules = {_MODULES.get(name, name) for name in others}
    assert {"textual", "psutil", "platformdirs", "pynvml"} <= modules and "click" not in modules
    folder = tmp_path / "absent"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ABSENT.format(names=sorted(modules)))
    monkeypatch.setenv("PYTHONPATH", str(folder))


_MODULES = {"nvidia-ml-py": "pynvml", "huggingface-hub": "huggingface_hub"}


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []  # triton is part of torch's CUDA build only


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanochat", "bench", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_a_quick_run_of_the_starter_model_is_kept_and_compared(starter_home: Path) -> None:
    sizes = ("--prompt", "16", "--output", "3", "--depth", "0", "--depth", "20", "--repeat", "1")
    done = bench("--model", "starter", "--preset", "quick", *sizes, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert [row["test"] for row in run["rows"]] == ["pp16", "tg3", "tg3 @ d20"]
    for row in run["rows"]:
        assert len(row["samples"]) == 1 and row["samples"][0] > 0
        assert 0 < row["fraction_of_ceiling"] < 1.5 and row["bound"] in ("bandwidth", "arithmetic")
    assert run["model"]["weights"] == "read" and run["environment"]["torch"] and not run["partial"]
    compared = bench("compare", "last", "last", "--json")
    assert [each["verdict"] for each in json.loads(compared.stdout)["differences"]] == ["too few samples"] * 3
    assert bench("show", "--format", "csv").stdout.count("\n") == 4
    assert (
        json.loads(bench("show", "--json").stdout)
        == json.loads(bench("show", "--format", "json").stdout)
        == run
    )
    assert f"{run['id']}  quick  SmolLM2-135M-Instruct  3 rows" in bench("list").stdout
    (starter_home / "data" / "bench" / "odd.json").write_text("{}")
    listed = json.loads(bench("list", "--json").stdout)
    assert [(each["id"], each["rows"]) for each in listed] == [(run["id"], 3), ("odd", None)]
    assert "odd.json" in listed[1]["problem"]


def test_everything_runs_where_only_the_engine_is_installed(
    nanochat_home: Path, known_ceilings: None, tmp_path: Path, bare: None
) -> None:
    picture = tmp_path / "out.svg"
    presets = ("--preset", "quick", "--preset", "throughput", "--preset", "chat", "--preset", "interference")
    workloads = ("--workload", "start", "--workload", "s", "--workload", "second-turn", "--workload", "b")
    sizes = ("--batch", "1", "--batch", "3", "--turns", "2", "--requests", "4", "--repeat", "1")
    done = bench(*TINY, *presets, *workloads, *sizes, "--plot", str(picture), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 1 + 2 + 2 + 4 + 1 + 2 + 1 + 1
    assert all(len(row["samples"]) == 1 and row["error"] is None for row in rows)
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--random", "gpt-5"), "qwen3-0.6b"),
        (("--random", "tiny", "--model", "starter"), "not both"),
        (("--preset", "quick", "--batch", "4"), "--batch changes nothing in quick: it is for throughput"),
        (
            ("--workload", "start", "--output", "4"),
            "--output changes nothing in start: it is for quick, throughput",
        ),
        (("--random", "tiny", "--against", "vllm"), "not installed"),
        (("--random", "tiny", "--against", "ollama"), "knows"),
        (("compare", "nothing", "last"), "no run is called"),
        ((*TINY, "--gguf", __file__), "--gguf changes nothing without --against llama.cpp"),
        ((*TINY, "--against", "llama.cpp", "--gguf", "/"), "is a directory"),
        (
            (
                "--random",
                "tiny",
                "--workload",
                "s",
                "--workload",
                "start",
                "--prompt",
                "90000",
                "--device",
                "cpu",
                "--no-save",
            ),
            "that takes 90,001 tokens at least, and the model's context holds 8,192",
        ),
        ((*TINY, "--plot", "/nowhere/x.svg"), "there is no folder /nowhere"),
        ((*TINY, "--plot", "/"), "/ is a folder"),
        ((*TINY, "--plot", "/sys/x.svg"), "/sys/x.svg cannot be written"),
        (("show", "--plot", "/nowhere/x.svg"), "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = bench(*arguments)
    assert done.returncode in (1, 2) and said in done.stderr and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_was_measured_is_shown_where_nothing_can_be_kept(
    nanochat_home: Path, known_ceilings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").symlink_to(nanochat_home / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bench").write_text("a file where the folder should be")
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    done = bench(*TINY, "--repeat", "1", "--plot", "/dev/full")
    assert "pp16" in done.stdout and "tg4" in done.stdout
    *_, lost, picture = done.stderr.strip().splitlines()
    assert lost.startswith(f"nanochat: this run could not be kept: {tmp_path}/data/bench cannot be written")
    assert "set NANOCHAT_HOME" in lost
    assert picture == "nanochat: the picture is not drawn: no space is left for /dev/full. Make room"
    assert done.returncode == 1
    kept = bench(*TINY, "--repeat", "1")
    assert kept.returncode == 0 and "pp16" in kept.stdout, kept.stderr


def test_ctrl_c_keeps_what_was_finished_and_marks_it_partial(
    nanochat_home: Path, known_ceilings: None
) -> None:
    command = [sys.executable, "-m", "nanochat", "bench", *TINY, "--repeat", "100000", "--json"]
    ours, theirs = os.openpty()  # progress is only shown to a terminal
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    os.close(theirs)
    seen = b""
    while b"): 1/100000" not in seen:  # a repeat was made
        seen = seen[-1000:] + os.read(ours, 1000)
    process.send_signal(signal.SIGINT)
    reader = threading.Thread(target=_read_to_the_end, args=(ours,))
    reader.start()
    out, _ = process.communicate(timeout=60)
    reader.join()
    os.close(ours)
    run = json.loads(out)
    assert process.returncode == 130 and run["partial"]
    (row, *_) = run["rows"]
    assert row["test"] == "pp16" and row["partial"] and row["samples"]
    kept = json.loads((nanochat_home / "data" / "bench" / f"{run['id']}.json").read_text())
    assert kept["partial"] and kept["rows"] == run["rows"]


def _read_to_the_end(terminal: int) -> None:
    with contextlib.suppress(OSError):  # a terminal whose other side is closed answers with an error
        while os.read(terminal, 1000):
            pass

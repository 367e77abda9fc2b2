"""Every kernel compiles for the chips that the engine runs on: a compile error must not first be met on a GPU.

`pytest -m full_compile` tries every model's shapes, dtypes and candidate configurations instead: that takes an hour.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nanochat.kernels

pytest.importorskip("triton", reason="Triton runs on Linux only")

COMMAND = [sys.executable, str(Path(__file__).with_name("ahead_of_time.py")), "--capability"]


def start(capability: int, *options: str) -> subprocess.Popen[str]:
    """In a process of its own: here Triton may be interpreting."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [*COMMAND, str(capability), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate()
    assert out, errors[-2000:]
    return json.loads(out)


def launched() -> set[str]:
    """The kernels that the package launches: device functions that some other function names."""
    folder = Path(nanochat.kernels.__file__).parent
    trees = [ast.parse(path.read_text()) for path in folder.glob("triton_*.py")]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    device = [f for f in functions if any("triton.jit" in ast.unparse(d) for d in f.decorator_list)]
    others = (node for f in functions if f not in device for node in ast.walk(f))
    return {f.name for f in device} & {node.id for node in others if isinstance(node, ast.Name)}


def test_every_kernel_compiles_for_sm_80_and_sm_90() -> None:
    processes = {capability: start(capability) for capability in (90, 80)}
    for capability, process in processes.items():
        report = report_of(process)
        assert not report["failures"], (capability, report["failures"])
        assert set(report["kernels"]) == launched() > {"_decode", "_gemv"}


def test_what_tuning_compiles_beside_each_other_is_what_it_then_measures() -> None:
    found = report_of(start(90, "--candidates"))
    assert found["there"] == found["again"] == found["measured"] == found["wanted"]
    assert min(found["wanted"]) > 3
    assert found["compiled anew"] == 0
    assert found["late"] < found["wanted"][0], "what is not begun in time is left"


@pytest.mark.full_compile
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("capability", [80, 89, 90, 120])
def test_every_shape_and_candidate_compiles(capability: int) -> None:
    assert not report_of(start(capability, "--all"))["failures"]

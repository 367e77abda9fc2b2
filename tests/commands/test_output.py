"""Standard streams that are missing or cannot be written: real processes, started by a shell that takes them away."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FULL = "/dev/full"
RUN = ["run", "Hello", "--max-tokens", "3", "--temperature", "0"]
NO_SPACE = "nanochat: cannot write the output: no space left on device\n"
needs_a_full_disk = pytest.mark.skipif(not os.path.exists(FULL), reason="needs /dev/full")


def nanochat(arguments: list[str], redirections: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a shell does with `redirections` behind it."""
    command = shlex.join([sys.executable, "-m", "nanochat", *arguments])
    return subprocess.run(
        ["sh", "-c", f"{command} {redirections}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250,
    )  # fmt: skip


@needs_a_full_disk
@pytest.mark.parametrize(
    "arguments", [RUN, [*RUN, "--json"], ["doctor", "--json"], ["--help"]], ids=["text", "json", "doctor", "help"]
)  # fmt: skip
def test_a_full_disk_is_one_line_and_no_bug(starter_home: Path, arguments: list[str]) -> None:
    result = nanochat(arguments, f">{FULL}")
    assert (result.returncode, result.stderr) == (1, NO_SPACE)


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_without_standard_output_the_answer_goes_nowhere(starter_home: Path, more: list[str]) -> None:
    result = nanochat([*RUN, *more], ">&-")
    assert result.returncode == 0 and result.stdout == ""
    assert result.stderr.startswith("prefill ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("redirection", ["2>&-", pytest.param(f"2>{FULL}", marks=needs_a_full_disk)])
def test_without_standard_error_the_answer_arrives(starter_home: Path, redirection: str) -> None:
    result = nanochat([*RUN, "--json"], redirection)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(json.loads(result.stdout)["token_ids"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code"), [(["run", "--max-tokens", "0", "hi"], 2), (["models", "use", "no/pe"], 3)]
)
def test_who_closes_the_pipe_of_standard_error_still_gets_the_exit_code(
    nanochat_home: Path, arguments: list[str], code: int
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "nanochat", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writing, timeout=250
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stdout) == (code, b"")


def test_without_any_stream_the_exit_code_is_the_same(starter_home: Path) -> None:
    assert nanochat(["--help"], "<&- >&- 2>&-").returncode == 0
    assert nanochat([], "<&- >&- 2>&-").returncode == 2


def test_no_other_file_gets_the_descriptor_of_a_missing_stream() -> None:
    program = (
        "import os, sys\n"
        "from nanochat.commands.output import guarded_streams\n"
        "with guarded_streams():\n"
        "    assert os.open(os.devnull, os.O_RDONLY) > 2\n"
        "    print('nobody reads this')\n"
        "os._exit(3)"
    )
    command = shlex.join([sys.executable, "-c", program])
    result = subprocess.run(["sh", "-c", f"{command} <&- >&-"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "")

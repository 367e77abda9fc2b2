"""What is read of the host: the same with psutil and without it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nanochat.engine import host

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def child() -> Iterator[int]:
    """A process of this one's that has computed for a while and now waits."""
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.communicate()


def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    for installed in (True, False):
        monkeypatch.setattr(host, "_has_psutil", lambda found=installed: found)
        yield installed


def test_memory_is_the_same_with_psutil_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [host.memory_available() for _ in both(monkeypatch)]
    resident = [host.memory_resident() for _ in both(monkeypatch)]
    assert free[0] == pytest.approx(free[1], rel=0.2) and free[0] > 2**20
    assert resident[0] == pytest.approx(resident[1], rel=0.1)


def test_work_counts_the_children_that_still_run(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with_psutil, without = [host.work() for _ in both(monkeypatch)]
    assert without.own == pytest.approx(with_psutil.own, abs=1.0) and without.own >= os.times().user + 0.25
    assert without.all == pytest.approx(with_psutil.all, rel=0.1) and without.all > without.own


def test_relatives_are_all_that_started_this_and_that_this_started(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in both(monkeypatch):
        found = host.relatives()
        assert {child, os.getpid(), os.getppid()} <= found


def test_a_process_that_has_ended_is_not_running(child: int) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert host.is_running(child) and not host.is_running(ended.pid)

"""The host's facts, with psutil and without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from nanochat.engine import host


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="without psutil the facts come from Linux")
def test_the_facts_are_the_same_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = (host.progress(os.getpid()), host.relatives(), host.swap_free())
    monkeypatch.setattr(host, "_has_psutil", lambda: False)
    without = (host.progress(os.getpid()), host.relatives(), host.swap_free())
    ours, theirs = without[0], with_it[0]
    assert ours is not None and theirs is not None
    assert ours.seconds == pytest.approx(theirs.seconds, abs=1.0)
    assert ours.busy and theirs.busy  # it asks
    assert {os.getpid(), os.getppid()} <= without[1] & with_it[1]
    assert without[2] == pytest.approx(with_it[2], abs=1 << 30)
    assert host.progress(1 << 22) is None


@pytest.mark.parametrize("psutil_there", [True, False])
def test_a_process_is_busy_only_while_it_or_what_it_has_started_works(
    psutil_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_has_psutil", lambda: psutil_there)
    waits = "import sys; print(flush=True); sys.stdin.read()"
    works = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass']); {waits}"
    for script, busy in ((waits, False), (works, True)):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        assert process.stdout is not None and process.stdout.readline()
        until = time.monotonic() + 10
        while (found := host.progress(process.pid)) is None or found.busy != busy:
            assert time.monotonic() < until
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

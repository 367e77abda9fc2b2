"""The host's facts, with psutil and without it."""

from __future__ import annotations

import os
import sys

import pytest

from nanochat.engine import host


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="without psutil the facts come from Linux")
def test_the_facts_are_the_same_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = (host.progress(os.getpid()), host.relatives(), host.swap_free())
    monkeypatch.setattr(host, "_has_psutil", lambda: False)
    without = (host.progress(os.getpid()), host.relatives(), host.swap_free())
    (ours, waits), (theirs, waited) = without[0] or (0, True), with_it[0] or (0, True)
    assert ours == pytest.approx(theirs, abs=1.0)
    assert not waits and not waited
    assert {os.getpid(), os.getppid()} <= without[1] & with_it[1]
    assert without[2] == pytest.approx(with_it[2], abs=1 << 30)
    assert host.progress(1 << 22) is None

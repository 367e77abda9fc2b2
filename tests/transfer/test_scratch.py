"""Folders that are needed a moment leave nothing behind, not even when their process is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nanochat.transfer.scratch import ABANDONED, scratch_folder


def test_where_the_cache_cannot_be_written_another_folder_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    with scratch_folder() as folder:
        (folder / "config.json").write_text("{}")
    assert not folder.exists()


def test_what_a_killed_process_left_goes_and_what_another_one_uses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    home = tmp_path / "cache" / "scratch"
    left, used = home / "left", home / "used"
    for folder in left, used:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    long_ago = time.time() - ABANDONED - 1
    os.utime(left, (long_ago, long_ago))
    with scratch_folder() as folder:
        assert folder.parent == home and not any(folder.iterdir())
        assert not left.exists() and (used / "config.json").exists()
    assert list(home.iterdir()) == [used]

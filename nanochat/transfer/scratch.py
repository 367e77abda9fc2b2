"""Folders for what is needed a moment: below our own cache, so that what a killed process leaves is found and removed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanochat.settings import Paths, private_folder

ABANDONED = 3600.0
"""Seconds after which nobody works in such a folder any more: questions to the hub end within minutes."""


@contextmanager
def scratch_folder() -> Generator[Path]:
    """An empty folder, gone afterwards. What processes that were killed have left goes when the next one begins."""
    home = private_folder(Paths.find().cache / "scratch")
    _sweep(home)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        yield Path(folder)


def _sweep(home: Path) -> None:
    for left in home.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps too, or its folder is gone in time
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)

"""Folders for what is needed a moment: below our own cache, so that what a killed process leaves is found and removed."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanochat.settings import Paths, private_folder

log = logging.getLogger("nanochat.scratch")

ABANDONED = 3600.0
"""Seconds after which nobody works in such a folder any more: questions to the hub end within minutes."""


@contextmanager
def scratch_folder() -> Generator[Path]:
    """An empty folder, gone afterwards. What processes that were killed have left goes when the next one begins."""
    with _made() as folder:
        yield Path(folder)


def _made() -> tempfile.TemporaryDirectory[str]:
    """Where the cache cannot be written, the system's folder for such things will do."""
    try:
        home = private_folder(Paths.find().cache / "scratch")
        _sweep(home)
        return tempfile.TemporaryDirectory(dir=home)
    except OSError as error:
        log.warning("no folder below the cache: %s", error)
        return tempfile.TemporaryDirectory(prefix="nanochat-")


def _sweep(home: Path) -> None:
    for left in home.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps too, or its folder is gone in time
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)

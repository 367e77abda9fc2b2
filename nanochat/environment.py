"""The process's surroundings, set once by the command line before anything heavy is imported."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from pathlib import Path

from nanochat.settings import private_folder

_LOG_BYTES = 2_000_000
# Threads of a parallel region that wait must not spin: beside one busy process (a terminal app is one) spinning costs
# most of the speed. It must be set before torch starts its threads.
_THREADS = {"GOMP_SPINCOUNT": "1000"}
_DEFAULTS = {
    **_THREADS,
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def set_variables() -> None:
    """Set what torch and the Hugging Face libraries read when they are imported; the user's own values stay."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_thread_variables() -> None:
    """Set what torch's threads read when they start, and no more: for a script that imports the Python API."""
    for name, value in _THREADS.items():
        os.environ.setdefault(name, value)


def end_at_once() -> None:
    """When this process ends, the collector does not walk over all that it had: half a second where torch was imported."""
    atexit.register(gc.freeze)


def own_module(module: str) -> tuple[list[str], dict[str, str]]:
    """(command, environment) that run a module of this very package in a new process, whatever lies in its folder.

    `python -m` alone looks into the current folder first, where another nanochat may be.
    """
    here = str(Path(__file__).resolve().parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return [sys.executable, "-P", "-m", module], os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def debugging() -> bool:
    """Whether `NANOCHAT_DEBUG` asks for tracebacks on stderr."""
    return os.environ.get("NANOCHAT_DEBUG", "") not in ("", "0")


def log_to(file: Path) -> None:
    """Send every log record and Python warning of this process to `file`; nothing of it reaches the screen."""
    root = logging.getLogger()
    root.addHandler(LogFile(file))
    logging.getLogger("nanochat").setLevel(logging.INFO)
    logging.captureWarnings(True)


class LogFile(logging.FileHandler):
    """A log file of limited size: over 2 MB it becomes `NAME.1` when next opened. Opened with the first record."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a log that cannot be written must not disturb what the user is doing."""
        try:
            if self.stream is None:
                self._prepare()
            super().emit(record)
        except OSError:
            self.setLevel(logging.CRITICAL + 1)  # not again in this process

    def handleError(self, record: logging.LogRecord) -> None:
        """Keep logging's own complaints off the screen: a full disk is reported where it matters."""

    def _prepare(self) -> None:
        file = Path(self.baseFilename)
        private_folder(file.parent)
        if file.exists() and file.stat().st_size > _LOG_BYTES:
            file.replace(file.with_name(file.name + ".1"))

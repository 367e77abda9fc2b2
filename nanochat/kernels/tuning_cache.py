"""Which cuts of matrix-vector products were settled on this machine, in memory and on disk."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from filelock import FileLock, Timeout

from nanochat.kernels.gemv_config import GemvConfig, GemvShape, default_config

KERNELS_VERSION = 2
"""To be raised with every change to the matrix-vector kernel, or to how it is measured, that makes another cut the fastest: then
all is measured anew."""
_LOCK_SECONDS = 5.0  # others hold the file for milliseconds

log = logging.getLogger("nanochat.kernels")


class TuningCache:
    """Configurations by device name, dtype, versions and shape, in one JSON file. Owned by one engine.

    A file that cannot be read counts as empty, and one that cannot be written is left: everything can be measured again.
    """

    def __init__(self, path: Path | None, device: str, dtype: torch.dtype) -> None:
        """`dtype`: of the matrices."""
        self._path = path
        kind = str(dtype).removeprefix("torch.")
        self._section = f"{device} / {kind} / triton {triton.__version__} / kernels {KERNELS_VERSION}"
        self._configs: dict[str, GemvConfig] = {}
        self._made_do: dict[str, GemvConfig] = {}
        self._tried: dict[str, GemvConfig] = {}
        self._unsaved: set[str] = set()
        self.look_again()

    def look_again(self) -> None:
        """Take what another engine measured meanwhile, of shapes that are not known here: equal engines then compute equal bits."""
        for name, config in self._saved(self._read()).items():
            if name not in self._made_do:  # what a graph was captured with stays
                self._configs.setdefault(name, config)

    def get(self, shape: GemvShape) -> GemvConfig | None:
        """What is tried or was settled for a shape; `None` where nothing was."""
        name = shape.name
        return self._tried.get(name) or self._configs.get(name) or self._made_do.get(name)

    def config(self, shape: GemvShape) -> GemvConfig:
        """What was settled for a shape, else the default."""
        return self.get(shape) or default_config(shape)

    @contextlib.contextmanager
    def trying(self, configs: Mapping[GemvShape, GemvConfig]) -> Generator[None]:
        """As if these had been settled, until the block ends."""
        self._tried = {shape.name: config for shape, config in configs.items()}
        try:
            yield
        finally:
            self._tried = {}

    def make_do(self, shape: GemvShape) -> None:
        """Settle for the default as long as this cache lives: it could not be measured now, and is not saved."""
        self._made_do[shape.name] = default_config(shape)

    def put(self, shape: GemvShape, config: GemvConfig) -> None:
        """Remember a configuration; `save` writes it, or finds that another engine was first."""
        self._configs[shape.name] = config
        self._unsaved.add(shape.name)

    def save(self) -> None:
        """Write the file whole, in one step; what others measured, on this device or another, stays.

        Of engines that measured the same shape at the same time the first to save it has settled it for all, so that equal
        engines compute equal bits: to be called before anything is captured with what was `put`.
        Where it cannot be written the log says so, and the next engine measures again.
        """
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock", timeout=_LOCK_SECONDS):
                self._merge(self._path)
        except (OSError, Timeout, NotImplementedError) as error:  # a full disk, or one without locks
            log.warning("what was measured of the kernels could not be saved: %s", error)
        self._unsaved.clear()  # graphs are captured with them now

    def _merge(self, path: Path) -> None:
        content = self._read()
        saved = self._saved(content)
        self._configs |= {name: saved[name] for name in self._unsaved & saved.keys()}
        ours = {name: asdict(config) for name, config in (self._configs | saved).items()}
        content[self._section] = dict(sorted((content.get(self._section, {}) | ours).items()))
        _replace(path, json.dumps(content, indent=1))

    def _saved(self, content: dict[str, dict[str, dict[str, Any]]]) -> dict[str, GemvConfig]:
        """This engine's part of the file's content."""
        found: dict[str, GemvConfig] = {}
        for name, fields in content.get(self._section, {}).items():
            with contextlib.suppress(TypeError):  # written by a version with other fields
                found[name] = GemvConfig(**fields)
        return found

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        sections: dict[str, Any] = content if isinstance(content, dict) else {}
        return {name: section for name, section in sections.items() if isinstance(section, dict)}


def _replace(path: Path, text: str) -> None:
    """Write a file whole, in one step; a failure leaves nothing behind."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise

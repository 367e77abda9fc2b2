"""Weights that are drawn, not read: a config.json is then all that is needed to measure a model's speed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nanochat.engine.models.config import ModelConfig
from nanochat.engine.weights import Checkpoint, Progress
from nanochat.kernels.headway import made

_AT_ONCE = 2**24  # numbers that a host draws in a second or so
_SPREAD = 0.02  # the standard deviation that such models are initialised with


class DrawnWeights(Checkpoint):
    """What a `Checkpoint` is to the loader, without a file: every tensor that is asked for is there.

    Norms are ones (zeros in Gemma, which stores them less one), biases zeros, matrices normal(0, 0.02). They are
    drawn on the device, from a seed that is the tensor's name: the same draw on every run and, of what every rank of a
    tensor-parallel model holds whole, on every rank; but not the same on every kind of device.
    """

    def __init__(self, folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = folder
        self.entries = {}
        self.num_bytes = config.weight_bytes(dtype)
        self.progress: Progress | None = None
        self._norm = 0.0 if config.gemma else 1.0
        self._generator = torch.Generator(device)
        self._drawn = 0

    @property
    def bytes_read(self) -> int:
        """There are no files."""
        return 0

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""

    def __contains__(self, name: str) -> bool:
        return True

    def read(
        self,
        name: str,
        to: Tensor,
        *,
        shape: Sequence[int],
        rows: slice | None = None,
        columns: slice | None = None,
        height: int | None = None,
    ) -> None:
        """Draw what would be read into `to`; `rows` and `columns` were already applied to its shape."""
        if name.endswith("norm.weight"):
            to.fill_(self._norm)
        elif name.endswith(".bias"):
            to.zero_()
        else:
            self._generator.manual_seed(zlib.crc32(name.encode()))
            for part in _parts(to):
                part.normal_(0.0, _SPREAD, generator=self._generator)
                made()
        self._drawn += math.prod(to.shape) * to.element_size()
        if self.progress is not None:
            self.progress(min(self._drawn, self.num_bytes), self.num_bytes)


def _parts(whole: Tensor) -> tuple[Tensor, ...]:
    """Where a host draws, what it draws at a time."""
    return (
        whole.view(-1).split(_AT_ONCE) if whole.device.type == "cpu" and whole.is_contiguous() else (whole,)
    )

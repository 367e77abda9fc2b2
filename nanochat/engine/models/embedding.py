"""Token ids to rows of the embedding."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.errors import InvalidModel
from nanochat.kernels.bundle import Reduce
from nanochat.kernels.headway import READING, longer, made


class Embedding:
    """A table in memory, [vocab_size, hidden_size]."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [T] -> [T, hidden_size]."""
        return F.embedding(ids, self.table)


class EmbeddingShare:
    """One rank's rows of the table, [share, hidden_size], from id `first` on; the ranks' parts are summed."""

    def __init__(self, table: Tensor, first: int, reduce: Reduce) -> None:
        self.table = table
        self.first, self._reduce = first, reduce

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [T] -> [T, hidden_size]: each row comes from the rank that has it, and is zero on the others."""
        at = ids - self.first
        elsewhere = (at < 0) | (at >= self.table.shape[0])
        rows = F.embedding(at.masked_fill(elsewhere, 0), self.table)
        return self._reduce(rows.masked_fill_(elsewhere[:, None], 0.0))


class RowsOnDisk:
    """A table that stays in its file, of which a step reads the few rows that it needs.

    For a tied embedding on the CPU: the head holds the same numbers, packed for multiplying, and rows cannot be
    taken out of that. A second copy would be a fifth of a small model's memory; a row costs about 2 us from the
    page cache.
    """

    def __init__(self, path: Path, offset: int, width: int, saved: torch.dtype, dtype: torch.dtype) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._offset, self._width = offset, width
        self._saved, self._dtype = saved, dtype

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [T] -> [T, hidden_size]."""
        tokens: list[int] = ids.tolist()
        size = self._width * self._saved.itemsize
        data = bytearray(size * len(tokens))
        with longer(READING):
            for place, token in enumerate(tokens):
                row = os.pread(self._file, size, self._offset + token * size)
                if len(row) != size:
                    raise InvalidModel(
                        f"{self._path.name} was cut short while the model was in use: load the model again"
                    )
                data[place * size : (place + 1) * size] = row
                made()
        return torch.frombuffer(data, dtype=self._saved).view(-1, self._width).to(self._dtype)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

"""Safetensors from disk into place: each tensor is read straight to where it belongs.

Files are read, not mapped: a mapped page that was read stays in memory beside the tensor that it was copied to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nanochat.engine.tensor_files import TORCH_DTYPES, TensorEntry, fail_damaged, read_entries
from nanochat.errors import InvalidModel, UnsupportedModel
from nanochat.kernels.headway import READING, longer

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""

_STAGING = 8 * 2**20
_AT_ONCE = 2**20  # bytes of a file that one call reads: what a slow disk gives in a second or so


class Checkpoint:
    """A model folder's safetensors. Opening it checks every header; no weight is read before `read`."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            InvalidModel: no weights, a shard is missing, or a file is truncated, overlapping or damaged.
        """
        self.folder = folder
        self.entries = read_entries(folder)
        self.num_bytes = sum(entry.num_bytes for entry in self.entries.values())
        self.progress: Progress | None = None
        self._files: dict[Path, FileIO] = {}
        self._staging: Tensor | None = None
        self._done = 0
        self._skipped = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors that were read from the files."""
        return self._done - self._skipped

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._staging = None

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str, shape: Sequence[int] | None = None) -> TensorEntry:
        """What is known of a tensor; with `shape`, checked against what the config says."""
        entry = self.entries.get(name)
        if entry is None:
            raise InvalidModel(
                f"{self.folder.name} has no tensor {name}: its config and weights disagree; fetch the model again"
            )
        if shape is not None and entry.shape != tuple(shape):
            raise InvalidModel(
                f"{name} in {entry.path.name} has shape {list(entry.shape)}, and config.json makes it {list(shape)}: "
                "config and weights disagree; fetch the model again"
            )
        if entry.dtype not in TORCH_DTYPES:
            raise UnsupportedModel(
                f"{name} in {entry.path.name} is {entry.dtype}, which this engine does not read: take the bfloat16 or "
                "float16 original"
            )
        return entry

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
        """Read a tensor, or the part of a matrix that `rows` and `columns` select, into `to`.

        Args:
            to: of the part's shape, on any device, of any floating dtype; values are converted.
            shape: of the whole tensor, as the config has it.
            height: how many rows the tensor has as a matrix; by default its first dimension.
        """
        entry = self.entry(name, shape)
        dtype = TORCH_DTYPES[entry.dtype]
        num_rows = height or (entry.shape[0] if entry.shape else 1)
        width = math.prod(entry.shape) // num_rows if num_rows else 0
        first, last, _ = (rows or slice(None)).indices(num_rows)
        assert columns is not None or to.numel() == (last - first) * width
        start = entry.offset + first * width * dtype.itemsize
        if columns is None and to.dtype == dtype and to.device.type == "cpu" and to.is_contiguous():
            self._fill(entry, to.view(-1).view(torch.uint8), start)
        elif columns is None:
            self._convert(entry, to.view(-1), start, dtype)
        else:
            self._convert_columns(entry, to, start, dtype, width, columns)

    def skip(self, name: str) -> None:
        """Count a tensor that is not needed as read."""
        self._skipped += self.entries[name].num_bytes
        self._report(self.entries[name].num_bytes)

    def _convert(self, entry: TensorEntry, to: Tensor, start: int, dtype: torch.dtype) -> None:
        step = _STAGING // dtype.itemsize
        for at in range(0, to.numel(), step):
            part = to[at : at + step]
            part.copy_(self._stage(entry, start + at * dtype.itemsize, part.numel(), dtype))

    def _convert_columns(
        self, entry: TensorEntry, to: Tensor, start: int, dtype: torch.dtype, width: int, columns: slice
    ) -> None:
        """Each row's part is read by itself: a rank reads its share and no more."""
        first, last, _ = columns.indices(width)
        part = (last - first) * dtype.itemsize
        start += first * dtype.itemsize
        step = max(_STAGING // max(part, 1), 1)
        staging = self._stage_room(step * part)
        for row in range(0, to.shape[0], step):
            count = min(step, to.shape[0] - row)
            staged = staging[: count * part]
            for place in range(count):
                at = start + (row + place) * width * dtype.itemsize
                self._fill(entry, staged[place * part : (place + 1) * part], at)
            to[row : row + count].copy_(staged.view(dtype).view(count, last - first))

    def _stage(self, entry: TensorEntry, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` values from the file, in memory that the next call reuses."""
        staged = self._stage_room(count * dtype.itemsize)
        self._fill(entry, staged, start)
        return staged.view(dtype)

    def _stage_room(self, size: int) -> Tensor:
        """`size` bytes of memory that the next call reuses."""
        if self._staging is None or self._staging.numel() < size:
            self._staging = torch.empty(max(size, _STAGING), dtype=torch.uint8)
        return self._staging[:size]

    def _fill(self, entry: TensorEntry, to: Tensor, start: int) -> None:
        file = self._files.get(entry.path)
        if file is None:
            file = self._files[entry.path] = FileIO(entry.path)
        view = memoryview(cast(Any, to.numpy()))
        for at in range(0, len(view), _STAGING):
            part = view[at : at + _STAGING]
            _read_exactly(file, entry.path, part, start + at)
            self._report(len(part))

    def _report(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self.progress is not None:
            self.progress(min(self._done, self.num_bytes), self.num_bytes)


def _read_exactly(file: FileIO, path: Path, to: memoryview, at: int) -> None:
    while len(to):
        try:
            file.seek(at)
            with longer(READING):
                count = file.readinto(to[:_AT_ONCE])
        except OSError as error:
            raise InvalidModel(
                f"{path.name} cannot be read ({error.strerror}): check the disk, or fetch the model again"
            ) from error
        if not count:
            fail_damaged(
                path, f"it ends at byte {at:,}, before its last tensor: it changed while it was read"
            )
        to, at = to[count:], at + count

"""The safetensors files of a model's folder, by their index and headers: where each tensor lies, checked.

The format: 8 bytes of header length, little-endian; that many bytes of JSON, name -> {dtype, shape,
data_offsets}; then the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, cast

import torch

from nanochat.engine.models.fields import read_json
from nanochat.errors import InvalidModel, UnsupportedModel

INDEX = "model.safetensors.index.json"
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LARGEST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: `offset` counts from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a model's folder; no weight is read.

    Raises:
        InvalidModel: no weights, a shard is missing, or a file is truncated, overlapping or damaged.
        UnsupportedModel: its weights are not safetensors.
    """
    entries: dict[str, TensorEntry] = {}
    for path, expected in _files(folder):
        found = _read_header(path)
        for name in expected if expected is not None else found:
            if name not in found:
                fail_damaged(path, f"{INDEX} says that it holds {name[:100]!r}, and it does not")
            entries[name] = found[name]
    return entries


def _files(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """Each safetensors file, with the tensors that the index says are in it (None: no index)."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        weight_map = index.section("weight_map")
        if weight_map is None or not weight_map.values:
            index.fail("weight_map is missing or empty")
        shards: dict[str, list[str]] = {}
        for name, shard in weight_map.values.items():
            if not _is_file_name(shard):
                index.fail(
                    f"{name[:100]!r} is said to be in {str(shard)[:100]!r}, which is not a file of this folder"
                )
            if not shard.endswith(".safetensors"):
                raise UnsupportedModel(
                    f"{folder.name}: {shard[:100]!r} is not safetensors, the only weights that this engine reads: "
                    "fetch a version with *.safetensors"
                )
            shards.setdefault(shard, []).append(name)
        missing = [shard for shard in sorted(shards) if not (folder / shard).is_file()]
        if missing:
            raise InvalidModel(
                f"{folder.name} lacks {len(missing)} of its {len(shards)} weight files, first {missing[0][:100]}: "
                "fetch the model again"
            )
        yield from ((folder / shard, names) for shard, names in sorted(shards.items()))
        return
    found = [path for path in (folder / "model.safetensors",) if path.is_file()] or sorted(
        folder.glob("*.safetensors")
    )
    if not found:
        raise InvalidModel(f"{folder.name} has no *.safetensors: fetch the model again, with its weights")
    yield from ((path, None) for path in found)


def _read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, checked: every byte belongs to exactly one of them."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                fail_damaged(path, f"it has {size:,} bytes and its header claims {length:,}")
            parsed = json.loads(file.read(length))
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read ({error.strerror}): fetch the model again") from error
    except (ValueError, RecursionError) as error:
        fail_damaged(path, f"its header is not JSON ({str(error)[:80]})")
    if not isinstance(parsed, dict):
        fail_damaged(path, "its header is not a JSON object")
    parsed = cast("dict[str, Any]", parsed)
    entries = {
        name: _entry(path, name, value, 8 + length)
        for name, value in parsed.items()
        if name != "__metadata__"
    }
    end, last = 8 + length, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if entry.offset != end:
            what = "overlaps" if entry.offset < end else "leaves a gap after"
            fail_damaged(path, f"{name[:100]!r} {what} {last[:100]!r}")
        end, last = entry.offset + entry.num_bytes, name
    if end != size:
        fail_damaged(
            path,
            f"it should have {end:,} bytes and has {size:,}: it was {'cut short' if size < end else 'appended to'}",
        )
    return entries


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            fail_damaged(path, f"the entry of {name[:100]!r} is not one of a tensor")
    sides = cast("list[Any]", shape)
    if not all(type(side) is int and 0 <= side < 2**48 for side in sides) or len(sides) > 8:
        fail_damaged(path, f"the shape of {name[:100]!r} is {str(sides)[:80]}")
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end < 2**62:
        fail_damaged(path, f"{name[:100]!r} lies at {begin} to {end}")
    known = TORCH_DTYPES.get(dtype)
    if known is not None and math.prod(sides) * known.itemsize != end - begin:
        fail_damaged(path, f"{name[:100]!r} of shape {sides} in {dtype} cannot have {end - begin:,} bytes")
    return TensorEntry(path, dtype, tuple(sides), data_start + begin, end - begin)


def _is_file_name(shard: object) -> TypeGuard[str]:
    """Whether it is a plain name, that cannot lead out of the folder."""
    return isinstance(shard, str) and shard not in ("", ".", "..") and not set(shard) & set("/\\\0")


def fail_damaged(path: Path, what: str) -> NoReturn:
    """Raise InvalidModel: this file is not what it should be."""
    raise InvalidModel(f"{path.name} is damaged: {what}; fetch the model again")

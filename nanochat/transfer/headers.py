"""How many parameters a model has, from the headers of its safetensors files: a few KB by range, not the weights.

Format: 8 bytes little-endian length, then as much JSON: name -> {dtype, shape, data_offsets}.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nanochat.errors import DownloadError, InvalidModel
from nanochat.transfer.repository import RemoteFile
from nanochat.transfer.store import BlobStore

FIRST = 1 << 16
LARGEST = 100_000_000
CONNECTIONS = 8
NOT_LOADED = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
"""What the engine leaves out of models that see as well as speak."""

Tensors = dict[str, tuple[str, int]]
"""Name -> (dtype, number of values)."""


def parse_header(text: bytes, where: str) -> Tensors:
    """The tensors that a header names. InvalidModel when it is none."""
    try:
        header: dict[str, Any] = json.loads(text)
        return {
            name: (str(entry["dtype"]), math.prod(int(size) for size in entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(f"{where} does not begin with a safetensors header: {error}") from error


def header_length(first: bytes, where: str) -> int:
    """The length of the JSON that follows the first eight bytes."""
    if len(first) < 8:
        raise InvalidModel(f"{where} has {len(first)} bytes: that is no safetensors file")
    (length,) = struct.unpack("<Q", first[:8])
    if not 2 <= length <= LARGEST:
        raise InvalidModel(f"{where} announces a header of {length} bytes: that is no safetensors file")
    return length


def local_tensors(folder: Path) -> Tensors:
    """The tensors of every safetensors file in a folder."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = header_length(file.read(8), path.name)
            tensors |= parse_header(file.read(length), path.name)
    return tensors


def remote_tensors(store: BlobStore, files: list[RemoteFile]) -> Tensors:
    """The same by range requests, a few at a time."""

    def fetch(file: RemoteFile) -> Tensors:
        with store.session() as session:
            url = store.hub.file_url(store.repository.repo_id, store.commit, file.name)

            def span(first: int, last: int) -> bytes:
                answer = session.get(url, {"Range": f"bytes={first}-{last}"})
                try:
                    if answer.status != 206:
                        raise DownloadError(
                            f"{file.name}: the server answered {answer.status} to a range request"
                        )
                    return answer.read_all(last - first + 1)
                finally:
                    session.finish(answer)

            text = span(0, min(FIRST, file.size) - 1)
            length = header_length(text, file.name)
            if 8 + length > len(text):
                text += span(len(text), 8 + length - 1)
            return parse_header(text[8 : 8 + length], file.name)

    tensors: Tensors = {}
    with ThreadPoolExecutor(min(CONNECTIONS, len(files) or 1)) as pool:
        for found in pool.map(fetch, files):
            tensors |= found
    return tensors


def count(tensors: Tensors, *, tied: bool) -> int:
    """Parameters in memory: some files hold an output layer that is tied to the embedding, or a part that sees."""
    return sum(
        values
        for name, (_, values) in tensors.items()
        if not (tied and name.endswith("lm_head.weight")) and not name.startswith(NOT_LOADED)
    )


def dtypes(tensors: Tensors) -> dict[str, int]:
    """Number of values by dtype, largest first."""
    counts: Counter[str] = Counter()
    for dtype, values in tensors.values():
        counts[dtype] += values
    return dict(counts.most_common())

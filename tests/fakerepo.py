"""What a fake hub serves: files with their hashes, repositories at a commit, and a tiny model to fill them with."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK = 1 << 18


@dataclass
class File:
    """One file of a repository: bytes in memory, or a path for the big ones."""

    content: bytes | Path
    lfs: bool = False
    sha256: str = ""
    blob_id: str = ""

    def __post_init__(self) -> None:
        size, sha256 = self.size, hashlib.sha256()
        sha1 = hashlib.sha1(b"blob %d\0" % size)
        for piece in self.pieces(0, size):
            sha256.update(piece)
            sha1.update(piece)
        self.sha256, self.blob_id = sha256.hexdigest(), sha1.hexdigest()

    @property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            for at in range(start, stop, CHUNK):
                yield self.content[at : min(at + CHUNK, stop)]
            return
        with self.content.open("rb") as source:
            source.seek(start)
            while start < stop and (piece := source.read(min(CHUNK, stop - start))):
                start += len(piece)
                yield piece


@dataclass
class Repo:
    """A repository at one commit. `gated` and `private` say who may read: see `Hub.accounts`."""

    id: str
    files: dict[str, File]
    gated: bool | str = False
    private: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    commit: str = ""

    def __post_init__(self) -> None:
        text = "".join(f"{name} {file.etag}\n" for name, file in sorted(self.files.items()))
        self.commit = self.commit or hashlib.sha1(text.encode()).hexdigest()


def from_folder(folder: Path) -> list[Repo]:
    """Every `org/name` below `folder`; files from 1 MiB on, and all weights, are large files."""
    repos: list[Repo] = []
    for home in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        files = {}
        for path in sorted(home.rglob("*")):
            if path.is_file():
                lfs = path.suffix == ".safetensors" or path.stat().st_size >= 1 << 20
                files[path.relative_to(home).as_posix()] = File(path, lfs)
        config = json.loads((home / "config.json").read_bytes()) if "config.json" in files else {}
        repos.append(Repo(f"{home.parent.name}/{home.name}", files, facts={"config": config}))
    return repos


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


def safetensors(shapes: dict[str, list[int]], seed: int = 0) -> bytes:
    """A well-formed file of random bfloat16 tensors."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + random.Random(seed).randbytes(end)


def tiny_model(
    repo_id: str = "org/tiny", *, shards: int = 1, rows: int = 512, seed: int = 0, **changes: Any
) -> Repo:
    """A model that this engine would run: `shards` weight files of `rows` x 128 bytes each, and what belongs to it."""
    files = {
        "README.md": File(b"# a model"),
        "config.json": File(json.dumps(CONFIG | changes.pop("config", {})).encode()),
        "generation_config.json": File(b'{"temperature": 0.7}'),
        "tokenizer.json": File(b'{"version": "1.0"}'),
        "tokenizer_config.json": File(b'{"chat_template": "{{ messages }}"}'),
        "pytorch_model.bin": File(b"pickle", lfs=True),
        "consolidated.safetensors": File(b"the same weights again", lfs=True),
        "original/model.safetensors": File(b"and again", lfs=True),
    }
    if shards == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        index = {"metadata": {}, "weight_map": {f"layer{i}": name for i, name in enumerate(names)}}
        files["model.safetensors.index.json"] = File(json.dumps(index).encode())
    for i, name in enumerate(names):
        files[name] = File(safetensors({f"layer{i}": [rows, 64]}, seed * 100 + i), lfs=True)
    return Repo(repo_id, files, **changes)

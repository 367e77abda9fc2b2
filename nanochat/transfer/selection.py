"""Which files of a repository are needed to run it, and which repositories are refused, by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from nanochat.errors import InvalidModel, UnsupportedModel
from nanochat.transfer.repository import RemoteFile, check_file

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
SMALL = frozenset(
    (
        CONFIG,
        INDEX,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
    )
)
WITHOUT_TOKENIZER_JSON = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def refuse_by_listing(repo_id: str, names: Iterable[str]) -> None:
    """Raise UnsupportedModel or InvalidModel for what the file names alone give away."""
    known = set(names)
    if any(name.endswith(".safetensors") and "/" not in name for name in known):
        if CONFIG in known:
            return
        if "adapter_config.json" in known:
            raise UnsupportedModel(
                f"{repo_id} is an adapter, not a model: pull the model that it was made for"
            )
        raise UnsupportedModel(
            f"{repo_id} has weights and no {CONFIG}: it is not a language model of the usual form"
        )
    gguf = sorted(name for name in known if name.endswith(".gguf"))
    if gguf:
        raise UnsupportedModel(
            f"{repo_id} has GGUF weights only ({gguf[0]}), which this engine does not read: pull the original model"
        )
    pickles = sorted(name for name in known if name.endswith(PICKLES) and "/" not in name)
    if pickles:
        raise UnsupportedModel(
            f"{repo_id} has pickle weights only ({pickles[0]}): loading them can run anything that its author put "
            "there, so nanochat never does. Look for a conversion to safetensors"
        )
    raise UnsupportedModel(f"{repo_id} has no safetensors weights: there is nothing to run")


def select(repo_id: str, files: Mapping[str, RemoteFile], index: bytes | None) -> list[RemoteFile]:
    """The files to fetch, small ones first. `index` is the content of the weights' index, when there is one.

    Raises InvalidModel when the index is damaged, names a file outside the folder, or one that is not there.
    """
    weights = _from_index(repo_id, files, index) if index is not None else _without_index(repo_id, files)
    small = [name for name in files if name in SMALL or name.startswith("additional_chat_templates/")]
    if index is None:
        small = [name for name in small if name != INDEX]
    if "tokenizer.json" not in files:
        small += [
            name
            for name in files
            if name in WITHOUT_TOKENIZER_JSON or ("/" not in name and name.endswith(".tiktoken"))
        ]
    if not any(name in files for name in TOKENIZERS) and not any(
        name.endswith(".tiktoken") for name in small
    ):
        raise InvalidModel(f"{repo_id} has no tokenizer: there is no way to turn text into its tokens")
    return [check_file(files[name], repo_id) for name in [*sorted(small), *weights]]


def _from_index(repo_id: str, files: Mapping[str, RemoteFile], index: bytes) -> list[str]:
    try:
        shards = json.loads(index)["weight_map"].values()
        names = sorted({str(name) for name in shards})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(f"{repo_id}: {INDEX} is damaged: {error}; nothing was fetched") from error
    for name in names:
        check_file(RemoteFile(name, 0, "0" * 40), repo_id)
        if name not in files:
            raise InvalidModel(f"{repo_id}: {INDEX} names {name!r}, which is not in the repository")
        if not name.endswith(".safetensors"):
            raise UnsupportedModel(f"{repo_id}: {INDEX} names {name!r}; only safetensors are loaded")
    if not names:
        raise InvalidModel(f"{repo_id}: {INDEX} names no files")
    return names


def _without_index(repo_id: str, files: Mapping[str, RemoteFile]) -> list[str]:
    if SINGLE in files:
        return [SINGLE]
    shards = sorted(name for name in files if SHARD.fullmatch(name))
    if shards:
        match = SHARD.fullmatch(shards[0])
        assert match is not None
        if len(shards) != int(match[2]):
            raise InvalidModel(
                f"{repo_id} has {len(shards)} of its {int(match[2])} weight files and no index"
            )
        return shards
    # The same weights again, in the layout of other programs.
    others = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    plain = sorted(name for name in others if not name.startswith(("consolidated", "adapter_model")))
    if len(plain) == 1:
        return plain
    raise UnsupportedModel(
        f"{repo_id} has no {SINGLE} and no index; it has {', '.join(sorted(others)[:4])}: unclear what belongs together"
    )

"""The models on this machine: what is there, and which folder a name means. Reads no network and imports no torch."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.errors import InvalidModel, ModelError, ModelNotFound
from nanochat.modelhub import starter
from nanochat.settings import Paths, Settings

STARTER = "starter"
_GENERATES = ("ForCausalLM", "LMHeadModel", "Gemma3ForConditionalGeneration")
_INDEX = "model.safetensors.index.json"

Source = Literal["starter", "cache", "folder"]


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this machine. `size` is the weights' bytes on disk; `missing` counts weight files not there."""

    name: str
    path: Path
    source: Source
    size: int
    architecture: str = ""
    dtype: str = ""
    context: int = 0
    missing: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name, "path": str(self.path), "source": self.source, "size": self.size,
            "architecture": self.architecture, "dtype": self.dtype, "context": self.context, "missing": self.missing,
        }  # fmt: skip


def cache_folder() -> Path:
    """The standard Hugging Face cache, by the variables that its own tools read."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def local_models(paths: Paths | None = None) -> list[LocalModel]:
    """Every language model with safetensors weights that is here: the starter model first, then by name."""
    folder = starter.folder(paths)
    found = [_describe(folder, starter.NAME, "starter")] if starter.is_intact(folder) else []
    return found + sorted(_cached_models(), key=lambda model: model.name.lower())


def resolve(
    name: str | None = None,
    *,
    paths: Paths | None = None,
    settings: Settings | None = None,
    progress: starter.Report | None = None,
) -> LocalModel:
    """The model that `name` means.

    `None` or "" is the settings' default model, else the starter model. "starter" is the starter model, which
    is fetched (with `progress`) when it is not here yet. Otherwise a folder, the name of a model in the Hugging
    Face cache ("Qwen/Qwen3-0.6B"), or the end of such a name when only one has it ("qwen3-0.6b").

    Raises:
        ModelNotFound: nothing here has this name; the text says what is here and what comes close.
        InvalidModel: the folder is no model, or a part of its weights is missing.
        DownloadError: the starter model is needed and cannot be fetched.
    """
    if not name:
        settings = settings or Settings.load((paths or Paths.find()).settings_file)
        if settings.default_model:
            return _resolve_default(settings.default_model, paths, progress)
        name = STARTER
    if starter.is_named(name):
        return _describe(starter.ensure(progress, paths=paths), starter.NAME, "starter")
    expanded = os.path.expanduser(name)  # unlike Path's, these two take any text
    if _is_path(name) or os.path.isdir(expanded):
        return _from_folder(Path(expanded))
    models = local_models(paths)
    wanted = name.lower()
    matches = [model for model in models if model.name.lower() == wanted]
    matches = matches or [model for model in models if model.name.lower().endswith("/" + wanted)]
    if len(matches) > 1:
        names = ", ".join(model.name for model in matches)
        raise ModelNotFound(f"{name!r} could be {names}: give the whole name")
    if not matches:
        raise _not_found(name, models)
    return _complete(matches[0])


def _resolve_default(name: str, paths: Paths | None, progress: starter.Report | None) -> LocalModel:
    try:
        return resolve(name, paths=paths, progress=progress)
    except ModelError as error:
        raise type(error)(f"{error}. It is models.default in your settings") from error


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..")


def _from_folder(folder: Path) -> LocalModel:
    if not os.path.exists(folder):
        raise ModelNotFound(f"there is no folder {folder}: `nanochat models` lists what is here")
    if not folder.is_dir():
        raise InvalidModel(
            f"{folder} is a file: give the folder of a model (config.json, tokenizer.json, *.safetensors)"
        )
    if not (folder / "config.json").is_file():
        raise InvalidModel(f"{folder} is not a model's folder: it has no config.json")
    return _complete(_describe(folder.absolute(), folder.absolute().name, "folder"))


def _complete(model: LocalModel) -> LocalModel:
    if model.missing:
        raise InvalidModel(
            f"{model.name} lacks {model.missing} of its weight files in {model.path}: fetch it again, or choose another"
        )
    return model


def _not_found(name: str, models: list[LocalModel]) -> ModelNotFound:
    names = [STARTER, *(model.name for model in models if model.source != "starter")]
    by_lower = {known.lower(): known for known in names} | {
        known.split("/")[-1].lower(): known for known in names
    }
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(dict.fromkeys(close))}? " if close else ""
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    fetch = f", and `nanochat models pull {name}` fetches one from the hub" if name.count("/") == 1 else ""
    return ModelNotFound(
        f"no model {name!r} on this machine: {hint}what is here: {shown}; a path to a model's folder works too{fetch}"
    )


def _cached_models() -> Iterator[LocalModel]:
    """Models in the Hugging Face cache: the snapshot of `main`, else the newest one."""
    for repository in cache_folder().glob("models--*"):
        folder = _snapshot(repository)
        name = repository.name.removeprefix("models--").replace("--", "/")
        if folder is None or not (folder / "config.json").is_file():
            continue
        model = _describe(folder, name, "cache")
        if any(kind in model.architecture for kind in _GENERATES) and (model.size or model.missing):
            yield model


def _snapshot(repository: Path) -> Path | None:
    snapshots = repository / "snapshots"
    try:
        main = snapshots / (repository / "refs" / "main").read_text(encoding="ascii").strip()
        if main.is_dir():
            return main
    except (OSError, ValueError):
        pass  # no main, or a damaged one: the newest snapshot stands in for it
    folders = [path for path in snapshots.glob("*") if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime, default=None)


def _describe(folder: Path, name: str, source: Source) -> LocalModel:
    config = _read_json(folder / "config.json")
    inner = config.get("text_config")
    text: dict[str, Any] = inner if isinstance(inner, dict) else {}
    architectures = config.get("architectures")
    size, missing = _weights(folder)
    return LocalModel(
        name,
        folder,
        source,
        size,
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        dtype=str(config.get("dtype") or config.get("torch_dtype") or text.get("torch_dtype") or ""),
        context=_whole(config.get("max_position_embeddings") or text.get("max_position_embeddings")),
        missing=missing,
    )


def _weights(folder: Path) -> tuple[int, int]:
    """(bytes of the safetensors files that are there, how many that the index names are not)."""
    mapping = _read_json(folder / _INDEX).get("weight_map")
    named: set[str] = {str(file) for file in mapping.values()} if isinstance(mapping, dict) else set()
    files = {folder / name for name in named} or set(folder.glob("*.safetensors"))
    sizes = [file.stat().st_size for file in files if file.is_file()]
    return sum(sizes), len(files) - len(sizes)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is none. The engine says what is wrong when it loads the model."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0

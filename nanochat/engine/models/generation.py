"""What a model says about generating: its end-of-sequence tokens and the sampling parameters that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanochat.engine.models.fields import Fields, read_json

_LARGEST_ID = 2**31 - 1
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 10.0),
}


def read_generation(
    folder: Path, outer: Fields, config: Fields, vocab_size: int
) -> tuple[tuple[int, ...], int | None, dict[str, Any]]:
    """(every end-of-sequence id, the beginning-of-sequence id, sampling defaults).

    generation_config.json goes before config.json, and a multimodal model's outer config before its text part.
    An id that the vocabulary does not have is left out: no token can end with it.
    """
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else Fields({}, f"{folder.name}/generation_config.json")
    sources = (generation, outer, config)
    eos = next((ids for ids in (_token_ids(source, "eos_token_id") for source in sources) if ids), ())
    bos = next((ids for ids in (_token_ids(source, "bos_token_id") for source in sources) if ids), ())
    kept = tuple(dict.fromkeys(token for token in eos if token < vocab_size))
    return kept, bos[0] if bos and bos[0] < vocab_size else None, _sampling(generation)


def _token_ids(source: Fields, key: str) -> tuple[int, ...]:
    if isinstance(source.values.get(key), list):
        return source.integers(key, 0, _LARGEST_ID) or ()
    return (source.integer(key, 0, _LARGEST_ID),) if key in source else ()


def _sampling(generation: Fields) -> dict[str, Any]:
    """The sampling parameters of a generation_config.json. `do_sample: false` means greedy, whatever else it says."""
    found: dict[str, Any] = {
        key: generation.number(key, low, high) for key, (low, high) in _RANGES.items() if key in generation
    }
    for key in ("top_p", "repetition_penalty"):
        if found.get(key) == 0:
            generation.fail(f"{key} is 0, and must be above 0")
    if "top_k" in generation:
        found["top_k"] = generation.integer("top_k", -1, _LARGEST_ID)
    if not generation.boolean("do_sample", True):
        found["temperature"] = 0.0
    return found

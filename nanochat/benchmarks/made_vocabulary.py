"""A made-up vocabulary for models with random weights: their replies become text that can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

_LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
_LINE = 12  # every so many words a line ends, as in prose and lists
_SPACE, _NEWLINE = "Ġ", "Ċ"  # as byte-level tokenizers write them


def write_vocabulary(folder: Path, size: int) -> None:
    """Write a tokenizer.json of `size` words, each its own token, into a model's folder that has none."""
    file = folder / "tokenizer.json"
    if file.exists():
        return
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {_word(number): number for number in range(size)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "fuse_unk": False, "byte_fallback": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model,
    }  # fmt: skip
    file.write_text(json.dumps(content), encoding="utf-8")


def _word(number: int) -> str:
    letters, rest = "", number
    while rest or not letters:
        rest, letter = divmod(rest, len(_LETTERS))
        letters += _LETTERS[letter]
    return (_NEWLINE if number % _LINE == 0 else _SPACE) + letters

"""A model's tokenizer: text to token ids and back, read straight from `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from nanochat.engine.text_encoder import Place, TextEncoder
from nanochat.errors import InvalidModel, UnsupportedModel

_FLAGS = ("lstrip", "rstrip", "single_word", "special")
_SLOW_FILES = ("tokenizer.model", "tekken.json", "vocab.json", "spiece.model", "vocab.txt")
_MAX_FILE_BYTES = 256 * 2**20


class Tokenizer:
    """One model's tokenizer. Nothing in it changes after construction, so threads may share it.

    Attributes:
        vocab_size: one more than the highest id that text can become.
        added_tokens: text -> id of every added token, special or not.
        special_ids: ids that `decode` leaves out: added tokens marked special.
        added: id -> the added token with its flags.
        unknown_ids: what stands for characters that the vocabulary lacks, where that is a special token.
        byte_level: every token is a run of bytes (`token_bytes`).
        holds_bytes: the decoder joins bytes to characters somewhere, so text may end in half a character.
        byte_ids: ids of byte tokens (`<0xE4>`), of which several make a character.
        named_tokens: bos_token, eos_token, ... -> their text, as chat templates see them.
    """

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None) -> None:
        """Take over `backend`; `config` is the content of `tokenizer_config.json`."""
        config = config or {}
        backend.no_truncation()
        backend.no_padding()
        self.named_tokens = _named_tokens(config)
        _apply_config(backend, config, self.named_tokens)
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        self.added: dict[int, AddedToken] = dict(added)
        self.added_tokens = {token.content: index for index, token in added.items()}
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.vocab_size = max(
            [backend.get_vocab_size(with_added_tokens=True), *(index + 1 for index in added)]
        )
        self._prefix, self._suffix = self._affixes()
        # What nobody may type: every added token except runs of whitespace and single characters, which the
        # model's own vocabulary may hold as well, and what stands for any character that it lacks.
        unguarded = TextEncoder(backend, {}, frozenset())
        self.unknown_ids = frozenset(unguarded.encode("\U0010fffe", Place.INSIDE)) & self.special_ids
        guarded = {i for i, token in added.items() if token.special or len(token.content.strip()) > 1}
        self._plain = TextEncoder(backend, {}, frozenset(guarded) - self.unknown_ids)
        kinds = _decoder_kinds(backend)
        self.byte_level = kinds == ["ByteLevel"]
        self.holds_bytes = "ByteLevel" in kinds
        names = (
            [f"<0x{value:02{case}}>" for value in range(256) for case in "xX"]
            if "ByteFallback" in kinds
            else []
        )
        self.byte_ids = frozenset(i for name in names if (i := backend.token_to_id(name)) is not None)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """Read the tokenizer of the model in `path`.

        Raises:
            InvalidModel: there is no tokenizer, or a file of it is damaged.
            UnsupportedModel: it needs Python code of its own.
        """
        config = _read_json(path / "tokenizer_config.json", optional=True)
        if "added_tokens_decoder" not in config:  # an older layout
            config |= _read_json(path / "special_tokens_map.json", optional=True)
        file = path / "tokenizer.json"
        if not file.is_file():
            return cls(_convert_slow(path, config), config)
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise InvalidModel(
                f"{file} is {file.stat().st_size:,} bytes; no tokenizer is over {_MAX_FILE_BYTES:,}."
            )
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for damaged files
            raise InvalidModel(f"{file} is damaged: {error}. Fetch the model again.") from error
        return cls(backend, config)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`.

        `special=True`, as in Transformers, is for text that we trust: added tokens in it become their ids, and
        what the post-processor adds (BOS) is added, but never a second BOS. `special=False` is for text from
        outside: no added token, special or not, comes out of it, and nothing is added around it.
        """
        if not special:
            return self._plain.encode(text, Place.START)
        ids = self.backend.encode(text, add_special_tokens=False).ids
        size = len(self._prefix)
        prefix = [] if size and ids[:size] == self._prefix else self._prefix
        return [*prefix, *ids, *self._suffix]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids outside the vocabulary are skipped."""
        try:
            return self.backend.decode(cast("list[int]", ids), skip_special_tokens=skip_special_tokens)
        except OverflowError:  # the library's ids have 32 bits and no sign
            known = [index for index in ids if 0 <= index < 2**32]
            return self.backend.decode(known, skip_special_tokens=skip_special_tokens)

    def token(self, index: int) -> str | None:
        """The vocabulary's spelling of one id, or `None` outside the vocabulary."""
        return self.backend.id_to_token(index) if 0 <= index < 2**32 else None

    def token_bytes(self, index: int) -> bytes:
        """The bytes of one id in a byte-level vocabulary; nothing for an id outside it."""
        known = self._bytes.get(index)
        if known is None:
            spelling = self.token(index) or ""
            values = [_BYTE_OF_CHARACTER.get(character) for character in spelling]
            known = spelling.encode() if None in values else bytes(cast("list[int]", values))
            self._bytes[index] = known
        return known

    def _affixes(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and after a text."""
        bare = self.backend.encode("a", add_special_tokens=False).ids
        full = self.backend.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []


def _decoder_kinds(backend: Backend) -> list[str]:
    """The types in the decoder chain, flat."""
    holder = Backend(models.BPE())
    if backend.decoder is not None:
        holder.decoder = backend.decoder
    decoder: dict[str, Any] = json.loads(holder.to_str())["decoder"] or {"type": "none"}
    parts: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return [part["type"] for part in parts]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: https://github.com/openai/gpt-2/blob/master/src/encoder.py."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [value for value in range(256) if value not in shown]
    table = {chr(value): value for value in shown}
    return table | {chr(256 + place): value for place, value in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    named = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    return {name: text for name, text in named.items() if text is not None}


def _content(token: Any) -> str | None:
    """The text of a token that is written as a string or as an object."""
    text = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _apply_config(backend: Backend, config: dict[str, Any], named: dict[str, str]) -> None:
    """Add what only tokenizer_config.json knows, in Transformers' order; its flags override the file's."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    entries = cast("dict[str, Any]", listed).items() if isinstance(listed, dict) else ()
    numbered = [
        (int(index), entry) for index, entry in entries if index.isdecimal() and isinstance(entry, dict)
    ]
    for _, entry in sorted(numbered, key=lambda item: item[0]):
        text = entry.get("content")
        if isinstance(text, str) and text:
            flags = {flag: entry.get(flag) is True for flag in _FLAGS} | {
                "normalized": entry.get("normalized", True)
            }
            flags["special"] = flags["special"] or text in named.values()
            backend.add_tokens([AddedToken(text, **flags)])
            known.add(text)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    texts = [_content(token) for token in cast("list[Any]", extra)] if isinstance(extra, list) else []
    for text in [*named.values(), *texts]:
        if text and text not in known:
            known.add(text)
            backend.add_tokens([AddedToken(text, special=True, normalized=False)])


def _convert_slow(path: Path, config: dict[str, Any]) -> Backend:
    """A tokenizer that has no tokenizer.json, converted by Transformers. Code in the folder is never run."""
    present = [name for name in _SLOW_FILES if (path / name).is_file()]
    if not present:
        raise InvalidModel(
            f"{path} has no tokenizer: neither tokenizer.json nor any of {', '.join(_SLOW_FILES)}. "
            "Fetch the model again."
        )
    for holder in (config, _read_json(path / "config.json", optional=True)):
        if "auto_map" in holder and "AutoTokenizer" in (holder["auto_map"] or {}):
            raise UnsupportedModel(
                f"The tokenizer of {path} is Python code of its own, and that is never run."
            )
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # any of the converters' errors, ImportError of an optional library among them
        raise InvalidModel(
            f"{path} has {', '.join(present)}, but no tokenizer could be made of it: {error}"
        ) from error
    backend = getattr(slow, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise UnsupportedModel(
            f"The tokenizer of {path} ({type(slow).__name__}) has no fast form. Convert it to tokenizer.json."
        )
    return backend


def _read_json(file: Path, *, optional: bool) -> dict[str, Any]:
    if optional and not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(f"{file} is damaged: {error}. Fetch the model again.") from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{file} is damaged: it holds a {type(content).__name__}, not an object.")
    return cast("dict[str, Any]", content)

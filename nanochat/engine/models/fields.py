"""Typed reading of a model's JSON files: every value is checked before anything is built from it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from nanochat.errors import InvalidModel, ModelNotFound

_LARGEST_JSON = 32 * 2**20
_MISSING = object()


class Fields:
    """A JSON object whose values are taken out by type and range; errors name the file, the key and the value."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def fail(self, what: str) -> NoReturn:
        """Raise InvalidModel with where this came from and what to do."""
        raise InvalidModel(
            f"{self.where}: {what}; the file is damaged or not a model's: fetch the model again"
        )

    def integer(self, key: str, low: int, high: int, default: int | None = None, *also: str) -> int:
        """An int in [low, high]; `also` are older spellings of the key."""
        value = self._find(key, *also)
        if value is _MISSING:
            if default is None:
                self.fail(f"{key} is missing")
            value = default
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{key} is {_shown(value)}, not a whole number")
        if not low <= value <= high:
            self.fail(f"{key} is {_shown(value)}, and must be between {low:,} and {high:,}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]."""
        value = self._find(key)
        if value is _MISSING:
            if default is None:
                self.fail(f"{key} is missing")
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{key} is {_shown(value)}, not a number")
        if not math.isfinite(value) or not low <= value <= high:
            self.fail(f"{key} is {_shown(value)}, and must be between {low:g} and {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._find(key)
        if value is _MISSING:
            return default
        if not isinstance(value, bool):
            self.fail(f"{key} is {_shown(value)}, not true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self._find(key)
        if value is _MISSING:
            return default
        if not isinstance(value, str):
            self.fail(f"{key} is {_shown(value)}, not text")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or None where there is none."""
        values = self._list(key)
        if values is None:
            return None
        for value in values:
            if not isinstance(value, str):
                self.fail(f"{key} holds {_shown(value)}, not text")
        return tuple(cast("list[str]", values))

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...] | None:
        """A list of ints in [low, high], or None where there is none."""
        values = self._list(key)
        if values is None:
            return None
        return tuple(Fields({key: value}, self.where).integer(key, low, high) for value in values)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...] | None:
        """A list of finite numbers in [low, high], or None where there is none."""
        values = self._list(key)
        if values is None:
            return None
        return tuple(Fields({key: value}, self.where).number(key, low, high) for value in values)

    def section(self, key: str) -> Fields | None:
        """A nested object, or None where there is none."""
        value = self._find(key)
        if value is _MISSING:
            return None
        if not isinstance(value, dict):
            self.fail(f"{key} is {_shown(value)}, not an object")
        return Fields(cast("dict[str, Any]", value), f"{self.where}: {key}")

    def _find(self, *keys: str) -> Any:
        for key in keys:
            if self.values.get(key) is not None:
                return self.values[key]
        return _MISSING

    def _list(self, key: str) -> Sequence[Any] | None:
        value = self._find(key)
        if value is _MISSING:
            return None
        if not isinstance(value, list):
            self.fail(f"{key} is {_shown(value)}, not a list")
        return cast("list[Any]", value)


def read_json(path: Path) -> Fields:
    """The object in a JSON file.

    Raises:
        ModelNotFound: there is no such file.
        InvalidModel: it cannot be read, is absurdly large, or does not hold one JSON object.
    """
    where = f"{path.parent.name}/{path.name}"
    fields = Fields({}, where)
    try:
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            fields.fail(f"it has {size:,} bytes, and at most {_LARGEST_JSON:,} are read")
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"{path.parent} has no {path.name}: give the folder of a model, or fetch one"
        ) from error
    except OSError as error:
        raise InvalidModel(f"{where} cannot be read ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        fields.fail(f"it is not JSON ({str(error)[:80]})")
    if not isinstance(parsed, dict):
        fields.fail("it does not hold a JSON object")
    return Fields(cast("dict[str, Any]", parsed), where)


def _shown(value: object) -> str:
    """A value as an error shows it: short, on one line."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

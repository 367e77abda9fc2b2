"""How large the result of one operation in a chat template can be, known before it is done.

Units are those of the meter: 1 for a character, 64 for an item. What has no small bound is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import Formatter
from typing import Any

from nanochat.templating.meter import ITEM, LimitReached, Meter, size

MAX_BITS = 4096  # of a whole number
FREE = (
    "abs", "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length", "round", "safe",
)  # fmt: skip
SHALLOW = ("list", "map", "reject", "rejectattr", "reverse", "select", "selectattr")
TEXT = (
    "capitalize", "e", "escape", "forceescape", "lower", "string", "title", "trim", "truncate", "upper",
    "urlencode", "wordcount",
)  # fmt: skip
ORDER = ("dictsort", "groupby", "max", "min", "sort", "unique")
SPECIAL = ("center", "format", "indent", "join", "replace", "sum", "tojson")


def filter_bound(meter: Meter, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Units that a filter reads and makes at most."""
    given = (*args, *kwargs.values())
    if name in FREE:
        if name == "round" and any(isinstance(item, int) and abs(item) > 100 for item in given):
            raise LimitReached("round takes at most 100 places")
        return 0
    if name in SHALLOW:
        return size(value)
    weight = meter.weigh(value)
    if name in TEXT or name in ORDER:
        return 8 * weight
    if name == "replace":
        return replaced_size(str(value), *[str(item) for item in given][:2])
    if name == "format":
        return formatted_size(meter, str(value), given)
    widest = max((abs(item) if isinstance(item, int) else size(item) for item in given), default=4)
    if name == "center":
        return weight + widest
    if name == "indent":
        return weight + len(str(value).splitlines()) * widest
    if name == "sum" and not all(isinstance(item, (int, float)) for item in value):
        return weight * (1 + len(value))  # every step copies what was added up so far
    return 4 * weight + len(value) * widest


# Methods of built-in types that templates may call; all others are refused.
_STR_METHODS = """
    capitalize casefold center count encode endswith expandtabs find format format_map index isalnum isalpha isascii
    isdecimal isdigit isidentifier islower isnumeric isspace istitle isupper join ljust lower lstrip partition
    removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith
    strip swapcase title upper zfill
"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset(("copy", "fromkeys", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    bytes: frozenset(("decode",)),
}
_PADDING = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))


def method_bound(meter: Meter, owner: Any, name: str, args: tuple[Any, ...]) -> int:
    """Units that `owner.name(*args)` of a built-in type reads and makes at most.

    Raises:
        LimitReached: templates may not call it.
    """
    kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
    if kind is None or name not in _METHODS[kind]:
        raise LimitReached(f"templates may not call {type(owner).__name__}.{name}")
    if not isinstance(owner, str):
        return meter.weigh(owner) if name in ("count", "index") else 0 if name == "get" else size(owner)
    if name == "replace":
        return replaced_size(owner, *[str(item) for item in args][:2])
    if name == "join":
        return meter.weigh(args) + len(owner) * sum(len(item) for item in args if hasattr(item, "__len__"))
    if name in _PADDING:
        widest = max((abs(item) for item in args if isinstance(item, int)), default=8)
        return (1 + owner.count("\t")) * widest + len(owner)
    if name in ("split", "rsplit", "splitlines"):
        return len(owner) + ITEM * (
            owner.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(owner)
        )
    return 3 * len(owner)


def replaced_size(text: str, old: str = "", new: str = "", *_: str) -> int:
    """Characters of `text.replace(old, new)` at most."""
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def formatted_size(meter: Meter, text: str, args: Iterable[Any]) -> int:
    """Units of `text % args` and of `text.format(*args)` at most: every field as long as all arguments together."""
    specs = re.findall(r"%(?:\([^)]*\))?([^a-zA-Z%]*)", text)
    specs += (
        [spec or "" for _, name, spec, _ in Formatter().parse(text) if name is not None]
        if "{" in text
        else []
    )
    for spec in specs:
        if re.search(r"\d{4}|[*{]", spec):
            raise LimitReached("it formats with a width of more than three digits, or one that is computed")
    return len(text) + len(specs) * (1000 + 4 * meter.weigh(tuple(args)))


def operator_bound(meter: Meter, operator: str, left: Any, right: Any) -> int:
    """Units that `left operator right` makes at most; whole numbers stay below `MAX_BITS` bits."""
    if operator == "%" and isinstance(left, str):
        return formatted_size(meter, left, right if isinstance(right, tuple) else (right,))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * max(right, 0)
        if bits > MAX_BITS:
            raise LimitReached(f"a number of more than {MAX_BITS} bits")
        return 0
    if operator == "*":
        times = next((item for item in (left, right) if isinstance(item, int)), 1)
        return max(times, 0) * max(size(left), size(right))
    return size(left) + size(right) if operator == "+" else 0

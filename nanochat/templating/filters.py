"""The filters and tests that chat templates may use, each charged to the meter before it works."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from jinja2 import pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.tests import TESTS

from nanochat.templating.bounds import FREE, ORDER, SHALLOW, SPECIAL, TEXT, filter_bound
from nanochat.templating.meter import ITEM, Meter, size

_Any = Callable[..., Any]


def charged_filters(meter: Meter) -> dict[str, _Any]:
    """The filters that templates may use, each with its charge, and those that `Instrument` puts in.

    All take the context, so that the optimizer never runs them while compiling.
    """

    @pass_context
    def text(_: Context, value: Any) -> str:
        meter.spend(8 + (len(value) if isinstance(value, str) else 4 * meter.weigh(value)))
        return value if isinstance(value, str) else str(value)

    @pass_context
    def steps(_: Context, value: Iterable[Any]) -> Iterator[Any]:
        for item in value:
            meter.spend(ITEM)
            yield item

    @pass_context
    def made(_: Context, value: Any) -> Any:
        meter.spend(meter.weigh(value))
        return value

    @pass_context
    def copied(_: Context, value: Any) -> Any:
        meter.spend(size(value))
        return value

    charged: dict[str, _Any] = {"_text": text, "_steps": steps, "_made": made, "_copied": copied}
    for name in (*FREE, *SHALLOW, *TEXT, *ORDER, *SPECIAL):
        if name != "tojson":
            charged[name] = _charged(meter, name)
    charged["tojson"] = _tojson(meter)
    return charged


_SEQUENCES = frozenset(("join", "sum"))


def _charged(meter: Meter, name: str) -> _Any:
    original = cast("_Any", FILTERS[name])
    passed = getattr(getattr(original, "jinja_pass_arg", None), "name", "")

    @pass_context
    def charged(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        if name in _SEQUENCES and not hasattr(value, "__len__"):
            value = list(value)
        meter.spend(
            ITEM + meter.weigh((*args, *kwargs.values())) + filter_bound(meter, name, value, args, kwargs)
        )
        first = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
        }
        result = original(*first.get(passed, ()), value, *args, **kwargs)
        if name in SHALLOW:
            meter.spend(size(result))
        return result

    return charged


def _tojson(meter: Meter) -> _Any:
    @pass_context
    def tojson(
        _: Context,
        x: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Transformers' tojson: JSON as it is, with no HTML escapes."""
        options: dict[str, Any] = {
            "ensure_ascii": ensure_ascii,
            "separators": separators,
            "sort_keys": sort_keys,
        }
        wide = sum(len(text) for text in separators or ())
        meter.spend(ITEM + meter.weigh(x) * (2 + wide))
        if indent is None:
            return json.dumps(x, **options)
        meter.spend(ITEM * (len(indent) if isinstance(indent, str) else indent))
        pieces: list[str] = []
        for piece in json.JSONEncoder(indent=indent, **options).iterencode(x):
            meter.spend(ITEM + len(piece))
            pieces.append(piece)
        return "".join(pieces)

    return tojson


def charged_tests(meter: Meter) -> dict[str, _Any]:
    """Jinja's tests; those that read their operands are charged for it."""
    reading = (
        "in",
        "lower",
        "upper",
        "==",
        "eq",
        "equalto",
        "!=",
        "ne",
        ">",
        "gt",
        "greaterthan",
        "ge",
        ">=",
    )
    reading += ("<", "lt", "lessthan", "<=", "le")

    def charge(test: _Any) -> _Any:
        @pass_context
        def charged(_: Context, *args: Any) -> Any:
            meter.spend(meter.weigh(args))
            return test(*args)

        return charged

    return TESTS | {name: charge(TESTS[name]) for name in reading}

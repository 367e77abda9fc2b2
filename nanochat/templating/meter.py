"""What a chat template may spend. A template comes from outside: it may loop, call and build, but not for long.

Every loop step, call, operator, filter, literal and piece of output is charged before it happens, by an upper
bound of the characters (1 unit) and items (64 units) that it makes or reads. So no single operation is large,
and a clock that is read at every charge stops whatever is merely long.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

ITEM = 64  # units: what an item of a list, a loop step or a call costs


class LimitReached(SecurityError):
    """A template asked for more time, memory or output than it may have."""


class Meter:
    """How much one rendering may still spend, in units and seconds."""

    def __init__(self, units: int, seconds: float) -> None:
        self._units, self._seconds = units, seconds
        self.restart()

    def restart(self) -> None:
        """A new rendering begins."""
        self.left = self._units
        self._deadline = time.perf_counter() + self._seconds

    def spend(self, units: int) -> None:
        """Pay, or stop the template."""
        self.left -= units
        if self.left < 0:
            raise LimitReached(f"it handles more than {self._units:,} characters")
        self._watch()

    def _watch(self) -> None:
        if time.perf_counter() > self._deadline:
            raise LimitReached(f"it takes longer than {self._seconds:g} s")

    def weigh(self, value: Any) -> int:
        """Units of everything that `value` holds; what is there twice counts twice, as it does in its text."""
        if isinstance(value, str):
            return len(value)
        units, pending, seen = 0, [value], 0
        while pending:
            item = pending.pop()
            seen += 1
            if not seen & 1023:
                self._watch()
            if isinstance(item, (str, bytes)):
                units += len(item)
                continue
            units += ITEM
            if isinstance(item, Namespace):
                item = cast("dict[str, Any]", item._Namespace__attrs)  # pyright: ignore
            if isinstance(item, Mapping):
                pending += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
                pending += list(cast("Iterable[Any]", item))
            if units > self.left:
                raise LimitReached(f"it builds more than {self._units:,} characters")
        return units


def size(value: Any) -> int:
    """Units of `value` itself, not of what its items hold."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return ITEM * len(value) if hasattr(value, "__len__") else ITEM


class Instrument(NodeTransformer):
    """Puts the meter's filters into a parsed template."""

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        """Every piece of output is charged, inside macros and blocks too."""
        self.generic_visit(node)
        node.nodes = [_filter(child, "_text") for child in node.nodes]
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Every step of a loop is charged."""
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_steps")
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        """What is compared is read."""
        self.generic_visit(node)
        node.expr = _read(node.expr)
        for operand in node.ops:
            operand.expr = _read(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        """A slice is a copy."""
        self.generic_visit(node)
        return _filter(node, "_copied") if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        """A ~ b makes a text."""
        self.generic_visit(node)
        node.nodes = [_filter(child, "_text") for child in node.nodes]
        return node

    def _made(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return (
            node if getattr(node, "ctx", "load") != "load" or _is_constant(node) else _filter(node, "_made")
        )

    visit_List = visit_Tuple = visit_Dict = _made


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _read(node: nodes.Expr) -> nodes.Expr:
    return node if _is_constant(node) else _filter(node, "_made")


def _is_constant(node: nodes.Expr) -> bool:
    items = getattr(node, "items", ()) if isinstance(node, (nodes.List, nodes.Tuple)) else (node,)
    return all(isinstance(item, nodes.Const) for item in items)

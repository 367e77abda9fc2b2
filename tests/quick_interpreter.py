"""Triton's interpreter without what takes half of its time: at every call of a function it looks through all of its language.

What it finds there is the same each time; and where the kernel that calls has been through, nothing is left to do. The
interpreter itself is as it was.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@cache
def _builtins(package: Any) -> tuple[str, ...]:
    return tuple(name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member))


def _is_replaced(package: Any) -> bool:
    """All of a package's builtins are replaced together, and come back together."""
    names = _builtins(package)
    return bool(names) and not tl.core.is_builtin(getattr(package, names[0]))


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    if not _is_replaced(package):
        for name in _builtins(package):
            interpreter._patch_attr(package, name, getattr(package, name), builder, scope)


@cache
def _languages(function: Any) -> tuple[Any, ...]:
    return tuple(each for each in function.__globals__.values() if each is tl or each is tl.core)


def _patch_lang(function: Any) -> Any:
    languages = _languages(function)
    if languages and all(map(_is_replaced, languages)):
        return interpreter._LangPatchScope()
    return _patched(function)


_numpy_dtypes: dict[str, Any] = {}


def _get_np_dtype(dtype: Any) -> Any:
    scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
    if scalar.name not in _numpy_dtypes:
        _numpy_dtypes[scalar.name] = _numpy_dtype(scalar)
    return _numpy_dtypes[scalar.name]


def quicken() -> None:
    """Once, before any kernel runs."""
    global _patched, _numpy_dtype
    for package in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base):
        _builtins(package)
    _patched = interpreter._patch_lang
    interpreter._patch_builtin, interpreter._patch_lang = _patch_builtin, _patch_lang
    _numpy_dtype, interpreter._get_np_dtype = interpreter._get_np_dtype, _get_np_dtype

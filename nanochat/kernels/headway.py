"""Headway: how work that somebody watches says that it comes further, from the depth of whatever does it.

A rank of a model over several devices that comes no further is lost, and ends the engine. So each piece of work that a
slow machine does in a second or so says `made()`, and the one call that may take longer, because nothing can be said
in it, is given time by name: `with longer(READING): ...`. Seconds in which the process was held up by others do not
count (`engine/parallel/standstill.py`), so what is given is for slow devices, not for busy ones.

Who is told is a matter of the thread: `witnessed` names it for what a rank's thread does. Elsewhere nobody is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

IMPORTING = 10.0  # seconds: a library of half a gigabyte is mapped and linked (torch); each module is a piece by itself
READING = 112.0  # a mebibyte of a file: the disk starts up, the network is away
COMPILING = 30.0  # a kernel, by LLVM; Triton's, in a GPU's step that is not captured
TRANSFORMERS = 30.0  # Transformers makes a model, or takes in the tensors that were read for it
DEVICE = 30.0  # a GPU's driver makes a context, and libraries load their kernels
JOINING = 60.0  # NCCL finds the other ranks and how they are linked
MEASURING = 60.0  # on GPUs ranks compile, try, measure and capture, and wait for each other on the device

_PRODUCTS = 1e9  # multiplications a second that are expected of the slowest device
_BYTES = 1e8  # bytes a second that it moves in memory

Result = TypeVar("Result")


class Witness(Protocol):
    """Who is told."""

    @property
    def allowed(self) -> int:
        """Seconds that the call under way may take longer than a piece of work."""
        ...

    @allowed.setter
    def allowed(self, seconds: int) -> None: ...

    def advance(self) -> None:
        """A piece of work is done."""
        ...


_witness: ContextVar[Witness | None] = ContextVar("witness", default=None)


@contextmanager
def witnessed(witness: Witness) -> Generator[None]:
    """Inside it, `witness` is told what this thread does."""
    before = _witness.set(witness)
    try:
        yield
    finally:
        _witness.reset(before)


def made() -> None:
    """A piece of work is done."""
    witness = _witness.get()
    if witness is not None:
        witness.advance()


@contextmanager
def longer(seconds: float) -> Generator[None]:
    """For one call that may take so much longer than a piece of work; it is a piece when it is done."""
    witness = _witness.get()
    if witness is None:
        yield
        return
    before = witness.allowed
    witness.allowed = before + math.ceil(seconds)
    try:
        yield
    finally:
        witness.allowed = before
        witness.advance()


def in_its_time(products: int, call: Callable[[], Result]) -> Result:
    """A library's call of so many multiplications, which is given the time that the slowest device takes for them."""
    if products < _PRODUCTS:
        result = call()
        made()
        return result
    with longer(products / _PRODUCTS):
        return call()


def moving(num_bytes: int) -> float:
    """What `longer` gives a call that reads and writes so many bytes of memory."""
    return num_bytes / _BYTES

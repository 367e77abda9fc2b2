"""Sizes that kernels are cut to."""

from __future__ import annotations


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n`, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def room_for(sequences: int) -> int:
    """Places for the sequences of a launch: a power of two, of few, since each is another kernel to compile."""
    return next(size for size in (1, 64, 512, next_power_of_2(sequences)) if size >= sequences)

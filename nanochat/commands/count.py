"""A whole number on the command line, in a range."""

from __future__ import annotations

import click


class Count(click.IntRange):
    """From `least` on, up to `most` where there is one; click calls what is no number "not a valid integer range"."""

    name = "whole number"

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        super().__init__(least, most)

"""What tests of the history share: other processes that write into it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Where processes come from that know the history already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["history_writer"])
    return context

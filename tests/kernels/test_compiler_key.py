"""What Triton hashes before a first launch is hashed once, in a thread."""

from __future__ import annotations

import pytest

from nanochat.kernels.compiler_key import compiler_key

cache = pytest.importorskip("triton.runtime.cache")


def test_the_hash_is_there_before_the_first_launch_asks() -> None:
    cache.triton_key.cache_clear()
    compiler_key.cache_clear()
    begun = compiler_key()
    assert compiler_key() is begun  # whoever asks waits for the same one
    begun.join()
    before = cache.triton_key.cache_info()
    assert before.misses == 1
    assert cache.triton_key()
    assert cache.triton_key.cache_info().misses == 1

"""The hash of Triton's compiler, taken while a model is read.

Compiled kernels are kept on disk under it. Triton takes it in a process's first launch: it reads all of its own library, a
third of a second in which nothing else is done.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import cache


@cache
def compiler_key() -> threading.Thread:
    """Begun by the first call. A launch before its end takes the hash anew, so it is joined before the first one."""
    thread = threading.Thread(target=_compute, name="nanochat-compiler-key", daemon=True)
    thread.start()
    return thread


def _compute() -> None:
    with suppress(ImportError, OSError):  # then the first launch does without, and says what is wrong
        from triton.runtime.cache import triton_key  # keeps its result

        triton_key()

"""How a failed allocation is told from other failures."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch's or the driver's means that an allocation failed, on a GPU or on the host."""
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return True
    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # the second: cuBLAS found no room for its own
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def comes_from_out_of_memory(error: BaseException | None) -> bool:
    """Whether it, or one that it was raised in the handling of, is such: a capture that fails ends with an error of its own."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Answers of the CUDA driver, which is called through ctypes where torch has no way to what it can do."""

from __future__ import annotations

from ctypes import byref, c_char_p
from typing import Any

from nanochat.errors import NanochatError


class DriverError(NanochatError, RuntimeError):
    """The CUDA driver refused; the text holds its answer. As with torch's, memory may have run out."""


def check(driver: Any, code: int, name: str) -> None:
    """Raise DriverError when the driver's call `name` answered anything but success."""
    if code:
        text = c_char_p()
        driver.cuGetErrorString(code, byref(text))
        raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")

"""Triton kernels without a GPU: import this before any kernel, and they run in Triton's interpreter.

Triton reads the variable when it is imported, so conftest.py sets it too, for the sake of what imports Triton earlier.
"""

from __future__ import annotations

import os

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("with a GPU, tests/gpu runs the compiled kernels", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton runs on Linux only")

from triton.language import standard

if "Interpreted" not in type(standard.zeros).__name__:
    pytest.fail(
        "Triton was imported before TRITON_INTERPRET was set: set it in the environment", pytrace=False
    )

from quick_interpreter import quicken

quicken()

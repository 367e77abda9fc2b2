"""What kernels in their smallest shapes run on: the GPU where there is one, else Triton's interpreter. Import it before them."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    import interpreted  # noqa: F401  # it turns the interpreter on

MARKS = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]  # the interpreter's integers wrap
THERE = torch.cuda.is_available()
DEVICE = torch.device("cuda" if THERE else "cpu")
PDL = THERE and torch.cuda.get_device_capability() >= (9, 0)
DTYPE = torch.bfloat16 if THERE else torch.float16  # the interpreter's products of bfloat16 are wrong
TOLERANCE = 5e-3

"""What a captured graph leaves in its pool's memory, without keeping that memory from the pool's other graphs.

Logits of every batch size would be a gigabyte together. A tensor that a capture made and that is let go stays where it
is as long as its graph lives; graphs captured later may write over it. So it is good from a replay of its own graph to
the next replay of any graph of the pool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Place:
    """Memory that is somebody else's, described as torch and others agree.

    https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    """

    def __init__(self, description: Any) -> None:
        self.__cuda_array_interface__ = description


def borrowed(tensor: Tensor) -> Tensor:
    """The same numbers at the same place, owned by nobody; on the host the tensor itself."""
    if tensor.device.type != "cuda":
        return tensor
    view = torch.as_tensor(_Place(tensor.__cuda_array_interface__), device=tensor.device)
    assert view.data_ptr() == tensor.data_ptr(), "it was copied"
    return view

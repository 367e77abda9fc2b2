"""Which kernels a mixture of experts runs in on a CUDA GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.kernels.gemv_config import GemvShape, default_config
from nanochat.kernels.triton_experts import choose, few_rows
from nanochat.kernels.triton_gemv import MAX_ROWS, gemv
from nanochat.kernels.triton_grouped import library_takes, many_rows
from nanochat.kernels.triton_matmul import invariant_linear


class CudaExperts:
    """The experts of a step. Whatever the number of rows, nothing waits for the device: a graph can capture it."""

    def __init__(self, major: int, *, deterministic: bool) -> None:
        """`major`: of the chip's compute capability."""
        self._major = major
        self._deterministic = deterministic

    def __call__(
        self,
        x: Tensor,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        per_token: int,
        normalized: bool,
        activation: str,
    ) -> Tensor:
        """See `Kernels.experts`."""
        if not x.shape[0]:
            return torch.empty_like(x)
        weights, chosen = choose(self._logits(x, router), per_token, normalized)
        if self._deterministic:
            return many_rows(x, weights, chosen, gate_up, down, activation, steady=True)
        if x.shape[0] <= MAX_ROWS:
            return few_rows(x, weights, chosen, gate_up, down, activation)
        library = library_takes(x, gate_up, self._major)
        return many_rows(x, weights, chosen, gate_up, down, activation, library=library)

    def _logits(self, x: Tensor, router: Tensor) -> Tensor:
        """In float32: what rounding takes from a logit, softmax takes from an expert's weight."""
        if self._deterministic or x.shape[0] > MAX_ROWS:
            return invariant_linear(x, router, narrow=True)
        # Not as it was measured here: all ranks of a model must choose the same experts, so they must compute the same bits.
        shape = GemvShape.of(x.shape[0], router.shape[0], router.shape[1], False, False)
        return gemv(x, router, config=default_config(shape), out_dtype=torch.float32)

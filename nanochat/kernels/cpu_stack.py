"""All layers of a dense decoder for a few rows, as one call of machine code.

What a step's jobs are given is written down once for each number of rows. From step to step only the sequences and their
angles change, and with them some places of each attention's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import Array, addressof, c_int64
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from nanochat.kernels import cpu_attention
from nanochat.kernels.bundle import DenseLayer
from nanochat.kernels.cpu import CpuKernels, CpuPlan
from nanochat.kernels.cpu_arguments import (
    attends,
    attention_arguments,
    norm_arguments,
    norms,
    product_arguments,
    turns,
)
from nanochat.kernels.cpu_matmul import ADDED, GELU, MOST_ROWS, PLAIN, SILU
from nanochat.kernels.cpu_matrix import Matrix
from nanochat.kernels.cpu_steps import ATTEND, MULTIPLY, NORMALIZE, PLACES
from nanochat.kernels.headway import in_its_time
from nanochat.kernels.reference import Rotation

KVTensors = Sequence[tuple[Tensor, Tensor]]


class CpuStack:
    """See `Stack`. It belongs to one thread, as its model does."""

    def __init__(
        self, kernels: CpuKernels, layers: Sequence[DenseLayer], final_norm: Tensor, eps: float, activation: str
    ) -> None:  # fmt: skip
        self._kernels, self._layers, self._eps = kernels, layers, eps
        self._next_norms = [*(layer.input_norm for layer in layers[1:]), final_norm]
        self._gate = SILU if activation == "silu" else GELU
        self._numbers = sum(math.prod(matrix.shape) for layer in layers for matrix in _matrices(layer))
        qkv, output, gate_up, _ = _matrices(layers[0])
        widths = (
            len(final_norm),
            len(final_norm),
            *(qkv.shape[0], output.shape[1], gate_up.shape[0] // 2),
        )
        self._x, self._normed, self._qkv, self._attended, self._inner = (
            torch.empty((MOST_ROWS, width), dtype=torch.bfloat16) for width in widths
        )
        self._kv_cache: KVTensors | None = None
        self._jobs: dict[int, _Jobs] = {}  # of so many rows

    @classmethod
    def of(
        cls, kernels: CpuKernels, layers: Sequence[DenseLayer], final_norm: Tensor, eps: float, activation: str
    ) -> CpuStack | None:  # fmt: skip
        """None where machine code does not know a layer, or where they are of several shapes."""
        if not norms(final_norm) or not all(_known(layer) for layer in layers):
            return None
        one_shape = len({_shape(layer) for layer in layers}) == 1
        return cls(kernels, layers, final_norm, eps, activation) if one_shape else None

    def takes(self, rotations: Sequence[Rotation], plan: CpuPlan) -> bool:
        """See `Stack`."""
        return plan.few and all(turns(rotation) for rotation in rotations)

    def __call__(
        self, x: Tensor, rotations: Sequence[Rotation], plan: CpuPlan, kv_cache: KVTensors
    ) -> Tensor:
        """See `Stack`."""
        if kv_cache is not self._kv_cache:
            self._kv_cache, self._jobs = kv_cache, {}
        jobs = self._jobs.get(plan.rows)
        if jobs is None:
            jobs = self._jobs[plan.rows] = self._written_down(plan.rows, rotations, kv_cache)
        places = [
            self._kernels.places(plan, rotation, self._layers[0].spec) for rotation in (*rotations, None)
        ]
        jobs.attention[:, cpu_attention.COS : cpu_attention.SPANS] = torch.tensor(places)[jobs.ropes]
        self._x[: plan.rows] = x
        in_its_time(plan.rows * self._numbers, lambda: self._kernels.perform(jobs.calls))
        return self._normed[: plan.rows].clone()

    def _written_down(self, rows: int, rotations: Sequence[Rotation], kv_cache: KVTensors) -> _Jobs:
        x, normed, eps = self._x, self._normed, self._eps
        product = partial(product_arguments, self._kernels.threads)
        halves = [*(rotation.rotated // 2 for rotation in rotations), 0]
        ropes = [len(rotations) if layer.rope is None else layer.rope for layer in self._layers]
        attention = torch.tensor(
            [
                list(attention_arguments(self._qkv, layer.spec, halves[rope], cache, rows, self._attended))
                for layer, rope, cache in zip(self._layers, ropes, kv_cache, strict=True)
            ]
        )
        products = [norm_arguments(x, rows, self._layers[0].input_norm, eps, normed)]
        calls = [(NORMALIZE, addressof(products[0]))]
        for layer, next_norm, attend in zip(self._layers, self._next_norms, attention, strict=True):
            qkv, output, gate_up, down = _matrices(layer)
            made = [
                product(normed, rows, qkv, self._qkv, PLAIN),
                product(self._attended, rows, output, x, ADDED, layer.mlp_norm, eps, normed),
                product(normed, rows, gate_up, self._inner, self._gate),
                product(self._inner, rows, down, x, ADDED, next_norm, eps, normed),
            ]
            first, *others = ((MULTIPLY, addressof(args)) for args in made)
            calls += [first, (ATTEND, attend.data_ptr()), *others]
            products += made
        written = (c_int64 * (PLACES * len(calls)))(*chain.from_iterable(calls))
        return _Jobs(attention, torch.tensor(ropes), written, products)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """A step's calls, with what they are given.

    Attributes:
        attention: int64 [layers, SIZE], what `attend` takes.
        ropes: int64 [layers], which rotation; the number of rotations stands for none.
        calls: see `cpu_steps`.
        products: what the others take.
    """

    attention: Tensor
    ropes: Tensor
    calls: Array[c_int64]
    products: list[Array[c_int64]]


def _matrices(layer: DenseLayer) -> tuple[Any, Any, Any, Any]:
    return layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down


def _known(layer: DenseLayer) -> bool:
    matrices = all(isinstance(matrix, Matrix) for matrix in _matrices(layer))
    return (
        matrices
        and attends(layer.spec)
        and norms(layer.input_norm)
        and norms(layer.mlp_norm)
        and (layer.mlp.gate_up.shape[0] % 32 == 0)
    )


def _shape(layer: DenseLayer) -> tuple[object, ...]:
    spec = layer.spec
    return spec.num_heads, spec.num_kv_heads, spec.head_dim, *(m.shape for m in _matrices(layer))

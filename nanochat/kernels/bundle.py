"""What a device's kernels must offer: the operations that a decoder is written in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nanochat.kernels.layout import AttentionLayout

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks of a tensor-parallel model. None stands for one rank, where there is nothing to do."""


class FusedReduce(ABC):
    """A `Reduce` that can do what follows it too, for messages that it takes."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """See `Reduce`."""

    @abstractmethod
    def takes(self, x: Tensor) -> bool:
        """Whether `add` can be asked about a tensor [T, H]."""

    @abstractmethod
    def norms(self, x: Tensor) -> bool:
        """Whether `add_norm` can be asked about a tensor [T, H]."""

    @abstractmethod
    def add_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`add_rms_norm(reduce(delta), x, weight, eps)`."""

    @abstractmethod
    def add(self, delta: Tensor, x: Tensor, *, pdl: bool = False) -> Tensor:
        """`x + reduce(delta)`, in new memory. `pdl`: a programmatic dependent launch."""

    @abstractmethod
    def outlet(self, x: Tensor) -> Any:
        """Where a product can send its results by itself (`triton_outlet.Outlet`), for `collect`; None where it cannot."""

    @abstractmethod
    def collect(self, x: Tensor, *, pdl: bool = False) -> Tensor:
        """x + the sum of what every rank's product sent last, in new memory. `pdl`: the product was a `late` one."""


Gather = Callable[[Tensor], Tensor]
"""Puts the shares [rows, vocab / ranks] of all ranks side by side: [rows, vocab]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """One layer's attention on this rank.

    Attributes:
        scale: multiplies the scores.
        window: a query sees this many positions, itself included; 0 is all of them.
        soft_cap: scores become `soft_cap * tanh(scores / soft_cap)`; 0 leaves them.
        q_norm, k_norm: [head_dim] weights of the RMS norm of each query and key, before the rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    soft_cap: float = 0.0
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    norm_eps: float = 1e-6


class DenseMlp(Protocol):
    """The two halves of a feed-forward net, packed."""

    gate_up: Any
    down: Any


class DenseLayer(Protocol):
    """What a layer must hold, its matrices packed; norms of what a half adds (Gemma's) are not part of it."""

    rope: int | None
    spec: AttentionSpec
    qkv: Any
    output: Any
    mlp: DenseMlp
    input_norm: Tensor
    mlp_norm: Tensor


class Stack(Protocol):
    """All layers of a dense decoder as one operation."""

    def takes(self, rotations: Sequence[Any], plan: Any) -> bool:
        """Whether it knows how to do a step. `rotations`: of each rope of the model."""
        ...

    def __call__(
        self, x: Tensor, rotations: Sequence[Any], plan: Any, kv_cache: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Embedded tokens [T, H] -> hidden states after the final norm, [T, H]."""
        ...


class Kernels(Protocol):
    """The operations of a decoder on one kind of device. Stateless: what a step needs is passed in.

    T tokens, H hidden_size, I intermediate_size. Packed weights, plans and rotations are the bundle's own:
    only the bundle that made one reads it.
    """

    def describe(self, dtype: torch.dtype) -> str:
        """In a few words, what computes a model of this dtype here: for reports."""
        ...

    def pack(self, weight: Tensor, bias: Tensor | None = None, *, kept: bool = False) -> Any:
        """A weight [out, in] in the form that `linear` is fastest with; the caller drops its own copy, unless it is `kept`."""
        ...

    def plan(self, layout: AttentionLayout) -> Any:
        """What all layers of a step share about its sequences."""
        ...

    def rotation(self, cos: Tensor, sin: Tensor, like: Tensor) -> Any:
        """What all layers of a step share about one rope: float32 [T, rotated / 2] each, a row for each token.

        `like` is a tensor of the dtype that will be rotated.
        """
        ...

    def stack(
        self, layers: Sequence[DenseLayer], final_norm: Tensor, eps: float, activation: str
    ) -> Stack | None:
        """One operation in place of all that layers do, where the bundle has one that is faster for some steps."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / rms(x) * weight` over the last axis, in the weight's dtype where that is the wider one."""
        ...

    def add_rms_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(the norm of x + delta, x + delta). May overwrite x."""
        ...

    def linear(self, x: Tensor, weight: Any) -> Tensor:
        """x [T, in] -> [T, out]."""
        ...

    def gated(self, x: Tensor, weight: Any, activation: str) -> Tensor:
        """[T, H] -> activation(gate) * up, [T, I]. The weight: the gate's rows, then the up projection's, [2 * I, H].

        The activation is "silu" or "gelu_tanh".
        """
        ...

    def project_add_norm(
        self, y: Tensor, weight: Any, x: Tensor, norm: Tensor, eps: float, reduce: Reduce | None
    ) -> tuple[Tensor, Tensor]:
        """`add_rms_norm(reduce(linear(y, weight)), x, norm, eps)`, the row-parallel end of both halves of a layer."""
        ...

    def attention(
        self, qkv: Tensor, spec: AttentionSpec, rotation: Any | None, cache: tuple[Tensor, Tensor], plan: Any
    ) -> Tensor:
        """Norm and rotate queries and keys, write keys and values into the cache, attend.

        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim] -> [T, num_heads * head_dim].
        """
        ...

    def write_kv(self, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], plan: Any) -> None:
        """Put the new tokens' keys and values, [T, num_kv_heads, head_dim] each, into their slots."""
        ...

    def attend(self, q: Tensor, spec: AttentionSpec, cache: tuple[Tensor, Tensor], plan: Any) -> Tensor:
        """Queries [T, num_heads, head_dim], already normed and rotated, over the cache -> the same shape."""
        ...

    def experts(
        self,
        x: Tensor,
        router: Tensor,
        gate_up: Tensor,
        down: Tensor,
        per_token: int,
        normalized: bool,
        activation: str,
    ) -> Tensor:
        """Each token through the `per_token` experts that the router likes best, summed by their weights.

        router [E, H], gate_up [E, 2 * I, H], down [E, H, I].
        """
        ...

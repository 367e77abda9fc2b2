"""What machine code is given: int64 arguments by place, of tensors that it knows how to compute with."""

from __future__ import annotations

import struct
from ctypes import Array, c_int64

import torch
from torch import Tensor

from nanochat.kernels import cpu_attention, cpu_matmul, cpu_prompts
from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cpu_matmul import GELU, SILU
from nanochat.kernels.cpu_matrix import Matrix
from nanochat.kernels.reference import Rotation

_Products = c_int64 * cpu_matmul.SIZE
_Attention = c_int64 * cpu_attention.SIZE
# Of a product's tickets. Memory is read faster the further a thread reads on; but who comes late must find something to do.
_LEAST_BYTES, _MOST_BYTES = 32 * 1024, 512 * 1024
_EACH = 4  # tickets for a thread, where they are neither too small nor too large


def product_arguments(
    threads: int, x: Tensor, rows: int, matrix: Matrix, out: Tensor, mode: int,
    norm: Tensor | None = None, eps: float = 0.0, normed: Tensor | None = None,
) -> Array[c_int64]:  # fmt: skip
    """What `multiply` takes, by its places; the tensors must outlive the call.

    Args:
        threads: that share it out.
        rows: of x, from the first on.
        out: what is there is added to where the mode is `ADDED`; then its norm goes into `normed`.
    """
    columns, width = matrix.shape
    if mode in (SILU, GELU):
        columns //= 2
    units = columns // 16
    read, planes = matrix.read(rows)
    tickets = max(read.nbytes // _MOST_BYTES + 1, min(_EACH * threads, read.nbytes // _LEAST_BYTES))
    return _Products(
        x.data_ptr(), x.stride(0), rows, width,
        read.data_ptr(), 0 if matrix.bias is None else matrix.bias.data_ptr(),
        out.data_ptr(), out.stride(0),
        mode, columns, units, max(1, units // tickets),
        0 if norm is None else norm.data_ptr(), _bits(eps),
        0 if normed is None else normed.data_ptr(),
        planes, matrix.quantizer.room(rows, width) if planes else 0,
    )  # fmt: skip


def norm_arguments(x: Tensor, rows: int, weight: Tensor, eps: float, out: Tensor) -> Array[c_int64]:
    """What `normalize` takes, by its places; the tensors must outlive the call."""
    args = _Products()
    args[cpu_matmul.X], args[cpu_matmul.X_ROW] = x.data_ptr(), x.stride(0)
    args[cpu_matmul.ROWS], args[cpu_matmul.IN] = rows, x.shape[1]
    args[cpu_matmul.NORM], args[cpu_matmul.EPS] = weight.data_ptr(), _bits(eps)
    args[cpu_matmul.NORMED] = out.data_ptr()
    return args


def attention_arguments(
    qkv: Tensor, spec: AttentionSpec, half: int, cache: tuple[Tensor, Tensor], rows: int, out: Tensor
) -> Array[c_int64]:  # fmt: skip
    """What `attend` takes of a layer, by its places; the tensors must outlive the call.

    Args:
        half: of what is rotated of a head.
    """
    q_norm, k_norm = spec.q_norm, spec.k_norm
    return _Attention(
        qkv.data_ptr(), rows, spec.num_heads, spec.num_kv_heads, spec.head_dim, half,
        cache[0].data_ptr(), cache[1].data_ptr(),
        spec.window, _bits(spec.scale), out.data_ptr(),
        int(q_norm is not None),
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        _bits(spec.norm_eps),
    )  # fmt: skip


def norms(weight: Tensor) -> bool:
    """Whether `normalize` knows a norm."""
    return weight.dtype == torch.bfloat16 and weight.shape[0] % 16 == 0


def turns(rotation: Rotation | None) -> bool:
    """Whether `attend` knows a rotation."""
    return rotation is None or (rotation.rotated % 32 == 0 and rotation.cos.dtype == torch.bfloat16)


def attends(spec: AttentionSpec) -> bool:
    """Whether `attend` knows a layer's attention."""
    group = spec.num_heads // spec.num_kv_heads
    return (
        not spec.soft_cap
        and spec.head_dim % 32 == 0
        and group <= cpu_attention.MOST_GROUP
        and spec.head_dim <= cpu_prompts.MOST_HEAD
        and group * spec.head_dim <= cpu_attention.MOST_WIDTH
        and spec.num_heads <= cpu_attention.MOST_HEADS
        and spec.num_heads * spec.head_dim <= cpu_attention.MOST_ROW
        and (spec.q_norm is None or (norms(spec.q_norm) and spec.k_norm is not None and norms(spec.k_norm)))
    )


def _bits(value: float) -> int:
    """A float32's bits."""
    return struct.unpack("<i", struct.pack("<f", value))[0]

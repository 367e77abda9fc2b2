"""A decode step for one sequence in one launch (persistent.cu): the host's side."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_longlong, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.kernels.nvrtc import Kernel, compile_cubin

if TYPE_CHECKING:
    from nanochat.kernels.cuda import CudaKernels
    from nanochat.kernels.fused_decoder import DenseModel
    from nanochat.kernels.triton_step import DecodeRows

_WARPS = 8
_PARAMETER_BYTES = 4096  # of a launch
_KVCache = Sequence[tuple[Tensor, Tensor]]


class _Layer(ctypes.Structure):
    _fields_ = (
        ("matrices", c_void_p * 4), ("input_norm", c_void_p), ("mlp_norm", c_void_p), ("q_norm", c_void_p),
        ("k_norm", c_void_p), ("qkv_bias", c_void_p), ("k_cache", c_void_p), ("v_cache", c_void_p),
    )  # fmt: skip


_STEP_FIELDS = (
    *(
        (name, c_void_p)
        for name in ("embedding", "final_norm", "head", "frequencies", "id", "position", "slot")
    ),
    *((name, c_void_p) for name in ("context", "table", "logits", "exchange", "state")),
    *((name, c_longlong) for name in ("block_stride", "slot_stride", "head_stride")),
    *((name, c_float) for name in ("scale", "eps", "qk_eps", "rope_factor")),
)


def sizes(model: DenseModel, multiprocessors: int, shared_memory: int) -> dict[str, int] | None:
    """The kernel's macros for a model on a chip; `None` if the kernel does not run it."""
    layer = model.layers[0]
    spec, hidden = layer.spec, layer.input_norm.shape[0]
    width, inner = spec.num_heads * spec.head_dim, layer.mlp.down.weight.shape[1]
    group = spec.num_heads // spec.num_kv_heads
    splits = 1 << min(5, (multiprocessors // max(spec.num_kv_heads, 1)).bit_length() - 1)
    unit = next((u for u in (2048, 1024, 512, 256) if not (hidden % u or width % u or inner % u)), 0)
    qkv = width + 2 * spec.num_kv_heads * spec.head_dim
    if not unit or spec.head_dim not in (64, 128) or splits < 1 or spec.num_kv_heads > multiprocessors:
        return None
    if group * spec.head_dim % (2 * splits) or not _plain(model):
        return None

    def rows(pairs: int) -> int:  # of a warp, at most
        return -(-(-(-pairs // multiprocessors) * 2) // _WARPS)

    pieces = (
        rows(qkv // 2) * (hidden // unit) + rows(hidden // 2) * ((width + inner) // unit)
        + 2 * rows(inner // 2) * (hidden // unit)
    )  # fmt: skip
    other = (
        2 * max(hidden, width, inner) + 4 * spec.head_dim * (group + 2 + _WARPS * group + group + 1) + 8192
    )
    units = min(24, (shared_memory - other) // (_WARPS * unit * 2))
    if pieces > 32 or units < 4 or hidden // 2 < multiprocessors or hidden > 4096:
        return None
    return {
        "HIDDEN": hidden, "INNER": inner, "VOCAB": model.head.weight.shape[0], "LAYERS": len(model.layers),
        "HEADS": spec.num_heads, "KV_HEADS": spec.num_kv_heads, "HEAD_DIM": spec.head_dim, "BLOCKS": multiprocessors,
        "UNIT": unit, "UNITS": units, "SPLITS": splits, "QK_NORM": int(spec.q_norm is not None),
        "QKV_BIAS": int(layer.qkv.bias is not None), "GELU": int(model.activation == "gelu_tanh"),
    }  # fmt: skip


def _plain(model: DenseModel) -> bool:
    """Whether all layers are alike and ask for nothing that the kernel leaves out."""
    first = model.layers[0]
    return (
        model.embedding.dtype == torch.bfloat16
        and model.embedding_scale == 1.0
        and model.frequencies.shape == (1, first.spec.head_dim // 2)
        and model.head.bias is None
        and ctypes.sizeof(_Layer) * len(model.layers) + 256 <= _PARAMETER_BYTES
        and all(
            layer.rope == 0
            and not layer.spec.window
            and not layer.spec.soft_cap
            and layer.output.bias is None
            and layer.mlp.down.bias is None
            and layer.mlp.gate_up.bias is None
            and layer.input_norm.dtype == torch.bfloat16
            and layer.qkv.weight.dtype == torch.bfloat16
            and (layer.spec.q_norm is None) == (first.spec.q_norm is None)
            and (layer.qkv.bias is None) == (first.qkv.bias is None)
            for layer in model.layers
        )
    )


class PersistentStep:
    """Runs `DenseModel` for one row. Owns what its blocks exchange, so one step may be under way at a time."""

    def __init__(
        self, model: DenseModel, kernels: CudaKernels, macros: dict[str, int], cache: Path | None
    ) -> None:
        """Compile for `macros` (see `sizes`); machine code is kept in the folder `cache`.

        Raises:
            CompilerMissing, DriverError: then there is no such step, and `FusedDecoder` does without.
        """
        self.model, self.macros = model, macros
        folder = Path(__file__).parent
        major, minor = torch.cuda.get_device_capability(kernels.device)
        code = compile_cubin(
            (folder / "persistent.cu").read_text(),
            {"persistent_attention.cuh": (folder / "persistent_attention.cuh").read_text()},
            macros, f"sm_{major}{minor}", cache,
        )  # fmt: skip
        self._kernel = Kernel(code, "decode_step", "shared_bytes")
        self._struct = type("_Step", (ctypes.Structure,), {
            "_fields_": (("layers", _Layer * macros["LAYERS"]), *_STEP_FIELDS)
        })  # fmt: skip
        m = macros
        part = m["HEADS"] // m["KV_HEADS"] * (m["HEAD_DIM"] + 2)
        pairs = (2 * m["HEADS"] + 2 * m["KV_HEADS"]) * m["HEAD_DIM"] // 2 + m["HIDDEN"] + m["INNER"] // 2
        words = pairs + m["KV_HEADS"] * m["SPLITS"] * part
        self._exchange = torch.zeros(words, dtype=torch.int64, device=kernels.device)
        self.state = torch.zeros(2, dtype=torch.int32, device=kernels.device)

    def logits(self, rows: DecodeRows, kv_cache: _KVCache) -> Tensor:
        """Feed the one row of `rows`, write its keys and values, and return logits, float32 [1, vocab]."""
        out = torch.empty(1, self.macros["VOCAB"], dtype=torch.float32, device=rows.ids.device)
        self._kernel.launch(self.macros["BLOCKS"], 32 * _WARPS, self._parameters(rows, kv_cache, out))
        return out

    def _parameters(self, rows: DecodeRows, kv_cache: _KVCache, out: Tensor) -> ctypes.Structure:
        model, spec = self.model, self.model.layers[0].spec

        def at(tensor: Tensor | None) -> int:
            return 0 if tensor is None else tensor.data_ptr()

        step = self._struct()
        for index, (layer, (k, v)) in enumerate(zip(model.layers, kv_cache, strict=True)):
            matrices = (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
            step.layers[index] = _Layer(
                (c_void_p * 4)(*(at(m.weight) for m in matrices)), at(layer.input_norm), at(layer.mlp_norm),
                at(layer.spec.q_norm), at(layer.spec.k_norm), at(layer.qkv.bias), at(k), at(v),
            )  # fmt: skip
        values = {
            "embedding": at(model.embedding), "final_norm": at(model.final_norm), "head": at(model.head.weight),
            "frequencies": at(model.frequencies), "id": at(rows.ids), "position": at(rows.positions),
            "slot": at(rows.slots), "context": at(rows.context_lens), "table": at(rows.block_tables), "logits": at(out),
            "exchange": at(self._exchange), "state": at(self.state), "block_stride": kv_cache[0][0].stride(0),
            "slot_stride": kv_cache[0][0].stride(1), "head_stride": kv_cache[0][0].stride(2), "scale": spec.scale,
            "eps": model.eps, "qk_eps": spec.norm_eps, "rope_factor": model.rope_factor,
        }  # fmt: skip
        for name, value in values.items():
            setattr(step, name, value)
        return step

"""A dense model's layer as the fused decoder takes it, without the engine that reads one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import Weight


@dataclass
class Mlp:
    gate_up: Weight
    down: Weight


@dataclass
class Layer:
    rope: int | None
    spec: AttentionSpec
    qkv: Weight
    output: Weight
    mlp: Mlp
    input_norm: torch.Tensor
    mlp_norm: torch.Tensor

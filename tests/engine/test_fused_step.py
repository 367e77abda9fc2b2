"""What a fused step asks of its model before it runs; its kernels are in Triton's interpreter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton runs on Linux only")
import interpreted  # noqa: F401  # first: it turns the interpreter on

from nanochat.engine import models
from nanochat.engine.cuda_graphs import DecodeGraphs
from nanochat.engine.fused_step import fused_decoder
from nanochat.engine.models.config import ModelConfig
from nanochat.kernels import tuning
from nanochat.kernels.cuda import CudaKernels

CPU = torch.device("cpu")
CHIP = SimpleNamespace(
    multi_processor_count=4, shared_memory_per_block_optin=100_000, major=8, minor=0, name="a chip"
)


def test_only_fused_steps_are_said_to_be_launched_dependently() -> None:
    def said(step: object) -> str:
        graphs = object.__new__(DecodeGraphs)
        graphs._fused = step  # type: ignore[assignment]
        return graphs.describe()

    assert said(SimpleNamespace(dependent=True)) == "fused steps up to 8 rows, launched dependently"
    assert said(SimpleNamespace(dependent=False)) == "fused steps up to 8 rows"
    assert said(None) == "plain steps"


def test_products_are_measured_over_the_models_own_matrices(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: CHIP)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1 << 30))
    monkeypatch.setattr(models, "pick", lambda device, *, dtype, **_: CudaKernels(device, dtype=dtype))
    folder = tiny_folder("qwen3")
    model = models.load_model(folder, ModelConfig.from_folder(folder), dtype=torch.float32, device=CPU)
    step = fused_decoder(model)
    assert step is not None
    read: set[int] = set()
    gemv = tuning.gemv

    def watched(x: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        read.add(weight.data_ptr())
        return gemv(x, weight, **options)

    def time_of_launches(launches: list[Any], **_: object) -> float:
        for launch in launches if not read else launches[:1]:
            launch()
        return 1.0

    monkeypatch.setattr(tuning, "gemv", watched)
    monkeypatch.setattr(tuning, "time_of_launches", time_of_launches)
    size = min(layer.output.weight.nbytes for layer in model.weights.layers)  # type: ignore[union-attr]
    monkeypatch.setattr(tuning, "_ROTATED_BYTES", size)
    step.tune(1)
    assert step.dependent == step._kernels.pdl is False
    assert " float32 " in step._kernels.tuning._section
    assert step.is_tuned(1)
    own = {model.weights.head.weight.data_ptr()}  # type: ignore[union-attr]
    for layer in model.weights.layers:  # type: ignore[union-attr]
        matrices = (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
        own |= {matrix.weight.data_ptr() for matrix in matrices}
    assert read <= own
    assert len(read) >= 4

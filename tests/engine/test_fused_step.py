"""What a fused step asks of its model before it runs; its kernels are in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton runs on Linux only")
import interpreted  # noqa: F401  # first: it turns the interpreter on

from nanochat.engine import fused_step, models
from nanochat.engine.cuda_graphs import DecodeGraphs
from nanochat.engine.fused_step import fused_decoder
from nanochat.engine.models.config import ModelConfig
from nanochat.kernels import tuning
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.gemv_config import candidate_configs, default_config

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


@pytest.fixture
def step(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fused step of a small model, and the model, on a chip that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: CHIP)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1 << 30))
    monkeypatch.setattr(models, "pick", lambda device, *, dtype, **_: CudaKernels(device, dtype=dtype))
    folder = tiny_folder("qwen3")
    model = models.load_model(folder, ModelConfig.from_folder(folder), dtype=torch.float32, device=CPU)
    fused = fused_decoder(model)
    assert fused is not None
    return SimpleNamespace(fused=fused, model=model, cache=cache_of(model))


def cache_of(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    shape = (3, 16, model.num_kv_heads, model.config.head_dim)  # fewer blocks than a trial has in its tables
    return [(torch.randn(shape), torch.randn(shape)) for _ in range(model.config.num_layers)]


def test_on_one_device_products_are_measured_in_the_step_itself_and_no_key_is_written(
    step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [tensor.clone() for pair in step.cache for tensor in pair]
    logits: list[torch.Tensor] = []
    timed: list[str] = []

    def time_of_launches(launches: list[Any], rounds: int) -> float:
        timed.append("step")
        if len(timed) == 1:  # Triton's interpreter takes a while
            logits.append(launches[0]())
        return 1.0

    def few(uses: Any, **_: object) -> Any:  # the interpreter compiles nothing
        return {shape: candidate_configs(shape)[:3] for shape in uses}

    monkeypatch.setattr(fused_step, "compile_candidates", few)
    monkeypatch.setattr(tuning, "time_of_launches", time_of_launches)
    step.fused.tune(2, step.cache)
    assert len(timed) == 1 + 2 * 3 * len(step.fused._decoder.uses(2))
    assert step.fused.is_tuned(2) and not step.fused.is_tuned(1)
    assert logits[0].shape == (2, step.model.config.vocab_size)
    assert torch.isfinite(logits[0]).all()
    for tensor, kept in zip((tensor for pair in step.cache for tensor in pair), before, strict=True):
        assert torch.equal(tensor, kept)
    again = len(timed)
    step.fused.tune(2, step.cache)
    assert len(timed) == again


def test_where_not_even_a_steps_inputs_have_room_the_defaults_are_made_do_with(
    step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    with monkeypatch.context() as patch:
        patch.setattr(fused_step, "compile_candidates", lambda uses, **_: {key: [] for key in uses})
        patch.setattr(torch, "full", full)
        step.fused.tune(1, step.cache)
    assert step.fused.is_tuned(1)
    for shape in step.fused._decoder.uses(1):
        assert step.fused._kernels.tuning.config(shape) == default_config(shape)


def test_over_ranks_products_are_measured_over_the_models_own_matrices(
    step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step.fused._decoder, "model", replace(step.fused._decoder.model, reduce=torch.clone))
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
    size = min(layer.output.weight.nbytes for layer in step.model.weights.layers)
    monkeypatch.setattr(tuning, "_ROTATED_BYTES", size)
    step.fused.tune(1, step.cache)
    assert step.fused.dependent == step.fused._kernels.pdl is False
    assert " float32 " in step.fused._kernels.tuning._section
    assert step.fused.is_tuned(1)
    own = {step.model.weights.head.weight.data_ptr()}
    for layer in step.model.weights.layers:
        matrices = (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
        own |= {matrix.weight.data_ptr() for matrix in matrices}
    assert read <= own
    assert len(read) >= 4

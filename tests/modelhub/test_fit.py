"""Whether a model fits: the answer is the engine's own plan, and what is said to be missing is exactly missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakerepo import CONFIG, File, safetensors, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.config import EngineConfig
from nanochat.engine.memory import plan
from nanochat.modelhub.device_memory import Memory, device_count, free_memory, gpu_handle
from nanochat.modelhub.fit import LEAST_CONTEXT, Limits, Reserves, fit, least, tokens
from nanochat.modelhub.shape import Shape

GIB = 2**30
QWEN3_8B = Shape(
    parameters=8_190_735_360,
    layers=36,
    kv_heads=8,
    head_dim=128,
    hidden=4096,
    intermediate=12288,
    vocabulary=151936,
    context=40960,
)


def gpu(usable: float) -> Memory:
    return Memory("cuda", "a GPU", int(usable), int(usable), int(usable))


def ram(usable: float) -> Memory:
    return Memory("cpu", "RAM", int(usable), int(usable), int(usable))


SHAPES = st.builds(
    Shape,
    parameters=st.integers(10**6, 10**11),
    layers=st.integers(1, 128),
    kv_heads=st.integers(1, 64),
    head_dim=st.sampled_from([64, 80, 128, 256]),
    hidden=st.integers(64, 16384),
    intermediate=st.integers(64, 65536),
    vocabulary=st.integers(1000, 300_000),
    context=st.integers(512, 262_144),
)


def test_the_words_are_fits_with_so_much_or_needs_so_much_more() -> None:
    assert fit(QWEN3_8B, gpu(80e9)).text == "fits with 40k"
    tight = fit(QWEN3_8B, gpu(21e9))
    assert tight.fits and LEAST_CONTEXT <= tight.context < 40960
    assert tight.text == f"fits with {tight.context // 1024}k"
    short = fit(QWEN3_8B, gpu(16e9))
    assert not short.fits and short.text == f"needs {short.missing / 1e9:.1f} GB more"


@given(SHAPES, st.floats(1e8, 2e11), st.sampled_from(["cuda", "cpu"]))
def test_with_what_is_missing_it_fits_and_with_a_little_less_it_does_not(
    shape: Shape, free: float, kind: str
) -> None:
    memory = Memory(kind, "x", int(free), int(free), int(free))
    found = fit(shape, memory)
    assert found.fits == (found.missing == 0)
    if found.missing:
        enough = replace(memory, usable=memory.usable + found.missing)
        assert fit(shape, enough).context == least(shape.context)
        block = 16 * found.kv_bytes_per_token * 2
        assert not fit(shape, replace(enough, usable=enough.usable - block)).fits


@given(SHAPES, st.floats(1e9, 2e11))
def test_the_context_is_the_one_that_the_engine_plans(shape: Shape, free: float) -> None:
    found = fit(shape, gpu(free))
    if found.fits:
        truth = plan(
            EngineConfig(model=Path()),
            context=shape.context,
            block_bytes=16 * found.kv_bytes_per_token,
            free=int(free) - found.weights,
            weights=found.weights,
            reserve=found.reserve,
            on_cpu=False,
        )
        assert found.context == truth.max_model_len
        assert "(+0.0 %)" in found.beside(truth.weights, truth.max_model_len)[0]


def test_the_arithmetic_names_every_part() -> None:
    text = "\n".join(fit(QWEN3_8B, gpu(30e9)).arithmetic())
    assert "15.26 GiB in bfloat16" in text and "147,456 bytes a token" in text
    assert "estimated; measured at the first load" in text and "fits with" in text


def test_a_measured_reserve_replaces_the_formula_and_is_remembered(tmp_path: Path) -> None:
    reserves = Reserves.load(tmp_path)
    guess = fit(QWEN3_8B, gpu(22e9), reserves=reserves, key="Qwen/Qwen3-8B")
    assert not guess.measured
    reserves.note("a GPU", "Qwen/Qwen3-8B", GIB)
    known = fit(QWEN3_8B, gpu(22e9), reserves=Reserves.load(tmp_path), key="Qwen/Qwen3-8B")
    assert known.measured and known.reserve == GIB and known.context != guess.context
    (tmp_path / "reserves.json").write_text("{broken")
    assert not fit(QWEN3_8B, gpu(22e9), reserves=Reserves.load(tmp_path), key="Qwen/Qwen3-8B").measured


def test_a_cpu_runs_float32_weights_in_bfloat16() -> None:
    shape = replace(QWEN3_8B, dtype="float32")
    assert fit(shape, ram(1e11)).weights == 2 * shape.parameters
    assert fit(shape, gpu(1e11)).weights == 4 * shape.parameters


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512"), (6144, "6k"), (32768, "32k"), (131072, "128k"), (33000, "32k")]
)
def test_tokens_are_rounded_down(count: int, text: str) -> None:
    assert tokens(count) == text


def write(folder: Path, config: dict[str, Any], tensors: dict[str, list[int]]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


def test_a_folder_is_read_as_the_engine_reads_it(tmp_path: Path) -> None:
    from nanochat.engine.models.config import ModelConfig

    folder = write(tmp_path / "m", CONFIG, {"model.embed_tokens.weight": [512, 64]})
    config, shape = ModelConfig.from_folder(folder), Shape.in_folder(folder)
    assert shape is not None
    assert shape == Shape.of(config, parameters=512 * 64)


def test_the_estimate_is_what_a_load_takes(tmp_path: Path) -> None:
    from nanochat.engine.loading import load

    config = CONFIG | {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = Shape(
        parameters=4096 * 128 + 128 + 2 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 512 + 256),
        layers=2, kv_heads=2, head_dim=32, hidden=128, intermediate=512, vocabulary=4096, context=4096,
    )  # fmt: skip
    estimate = fit(shape, free_memory("cpu"))
    loaded = load(EngineConfig(model=tmp_path, device="cpu", random_weights=True, skip_tokenizer=True))
    assert estimate.weights == loaded.memory.weights
    assert estimate.context == loaded.memory.max_model_len
    held = loaded.memory.weights_held  # besides the weights: tables of the rotary embedding
    assert estimate.weights <= held < 1.05 * estimate.weights + 2 * 4096 * 32 * 4
    assert f"{estimate.context:,} possible" in estimate.beside(held, loaded.memory.max_model_len)[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_starter_takes_what_was_estimated_within_a_twentieth(dtype: str, starter_model: Path) -> None:
    from nanochat.engine.loading import load

    shape = Shape.in_folder(starter_model)
    assert shape is not None
    estimate = fit(shape, free_memory("cpu"), limits=Limits(dtype=dtype))
    loaded = load(EngineConfig(model=starter_model, device="cpu", dtype=dtype, skip_tokenizer=True))
    memory, quantized = loaded.memory, loaded.runner.weight_itemsize is not None
    if quantized:  # its matrices are kept in the 4 and 8 bits that they hold, which no estimate can know
        assert dtype == "bfloat16" and 0.5 * estimate.weights < memory.weights_held < 0.65 * estimate.weights
    else:
        assert abs(estimate.weights - memory.weights_held) < 0.05 * memory.weights_held
    assert estimate.context == memory.max_model_len


def test_what_the_user_has_set_is_part_of_the_answer() -> None:
    shorter = fit(QWEN3_8B, gpu(80e9), limits=Limits(max_model_len=1000))
    assert shorter.fits and shorter.context == 1000
    capped = fit(QWEN3_8B, gpu(80e9), limits=Limits(kv_cache_bytes=GIB))
    assert capped.fits and capped.context == GIB // 147456 // 16 * 16
    exact = fit(QWEN3_8B, gpu(80e9), limits=Limits(dtype="float32"))
    assert exact.weights == 4 * QWEN3_8B.parameters
    whole = fit(QWEN3_8B, gpu(21e9), limits=Limits(max_model_len=40960))
    assert not whole.fits and whole.missing > GIB  # the engine gives that context whole or not at all


def test_what_the_loaded_model_gives_back_counts_as_free() -> None:
    short = fit(QWEN3_8B, gpu(16e9))
    room = fit(QWEN3_8B, gpu(16e9).with_returned(10 * GIB))
    assert not short.fits and room.fits
    assert "10.00 GiB that the loaded model gives back" in "\n".join(room.arithmetic())


def test_tied_and_unloaded_tensors_are_not_counted(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": [512, 64], "lm_head.weight": [512, 64], "vision_tower.a": [9, 9]}
    tied = Shape.in_folder(write(tmp_path / "a", CONFIG, tensors))
    untied = Shape.in_folder(write(tmp_path / "b", CONFIG | {"tie_word_embeddings": False}, tensors))
    assert tied is not None and tied.parameters == 512 * 64
    assert untied is not None and untied.parameters == 2 * 512 * 64


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"num_attention_heads": 0, "hidden_size": 1}']
)
def test_a_damaged_config_has_no_shape(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert Shape.in_folder(tmp_path) is None


def test_the_tiny_model_of_the_tests_is_well_formed() -> None:
    file = tiny_model().files["model.safetensors"]
    assert isinstance(file, File) and isinstance(file.content, bytes)
    assert len(file.content) == file.size


class Driver:
    """What of NVML is asked for the handle of a device."""

    def nvmlDeviceGetCount(self) -> int:
        return 4

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"#{index}"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        return name


@pytest.mark.parametrize(
    ("visible", "index", "handle"),
    [
        (None, 1, "#1"),
        (None, 7, None),
        ("2,3", 0, "#2"),
        ("2,3", 2, None),
        ("GPU-8a", 0, "GPU-8a"),
        ("", 0, None),
        ("-1", 0, None),
    ],
)
def test_cuda_visible_devices_renumbers(visible: str | None, index: int, handle: str | None) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu_handle(Driver(), index, environment) == handle


def test_the_memory_of_this_machine_is_read() -> None:
    memory = free_memory("cpu")
    assert memory.kind == "cpu" and 0 < memory.free <= memory.total


def gpus(usable: float, devices: int) -> Memory:
    return replace(gpu(usable), devices=devices)


def test_a_model_that_one_gpu_does_not_hold_fits_on_the_two_that_are_there() -> None:
    assert not fit(QWEN3_8B, gpu(12 * GIB)).fits
    found = fit(QWEN3_8B, gpus(12 * GIB, 2))
    assert found.fits and found.devices == 2
    assert found.weights == QWEN3_8B.weight_bytes("bfloat16") // 2
    assert "and 1 more: on each" in found.arithmetic()[0]


def test_a_model_that_one_gpu_holds_is_on_one_and_what_is_asked_for_is_done() -> None:
    assert fit(QWEN3_8B, gpus(80 * GIB, 8)).devices == 1
    assert fit(QWEN3_8B, gpus(80 * GIB, 8), limits=Limits(devices=4)).devices == 4
    assert fit(QWEN3_8B, gpus(12 * GIB, 3)).devices == 2, "three do not divide its heads"


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_what_is_missing_on_several_gpus_is_missing_exactly(devices: int) -> None:
    large = replace(QWEN3_8B, parameters=400_000_000_000)
    memory = gpus(20 * GIB, devices)
    missing = fit(large, memory).missing
    enough = gpus(20 * GIB + missing // devices + 1, devices)
    assert missing > 0 and fit(large, enough).fits
    assert not fit(large, gpus(enough.usable - 2**20, devices)).fits


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 8), ("0,1", 2), ("3", 1), ("", 0), ("0,-1,1", 1), ("GPU-abc,GPU-def", 2)]
)
def test_devices_are_counted_as_programs_see_them(visible: str | None, count: int) -> None:
    nvml: Any = type("Nvml", (), {"nvmlDeviceGetCount": staticmethod(lambda: 8)})
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert device_count(nvml, environment) == count

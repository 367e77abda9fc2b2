"""A model that does not fit on a GPU is refused with the arithmetic and with what would fit; memory and device are faked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat.benchmarks.known_shapes import SHAPES
from nanochat.engine import loading, reserve
from nanochat.engine.config import EngineConfig
from nanochat.engine.memory import GIB, plan
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.reserve import Reserve
from nanochat.engine.service import EngineService
from nanochat.errors import OutOfMemory

CUDA = torch.device("cuda")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of Qwen3-8B's shape: 15.26 GiB in bfloat16, 147,456 bytes a token."""
    path = tmp_path / "qwen3-8b"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SHAPES["qwen3-8b"]))
    return path


def refusal(
    folder: Path, free: float, monkeypatch: pytest.MonkeyPatch, *, dtype: torch.dtype = torch.bfloat16,
    ranks: int = 1, device: str = "cuda", **options: Any,
) -> str:  # fmt: skip
    monkeypatch.setattr(loading, "memory_free", lambda *_: int(free * GIB))
    config = EngineConfig(model=folder, skip_tokenizer=True, **options)
    collectives: Any = SimpleNamespace(rank=0, ranks=ranks) if ranks > 1 else None
    with pytest.raises(OutOfMemory) as caught:
        loading.load_share(config, ModelConfig.from_folder(folder), torch.device(device), dtype, collectives)
    return str(caught.value)


def test_weights_that_do_not_fit_are_refused_with_all_that_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = refusal(folder, 10, monkeypatch)
    assert "the weights of qwen3-8b take 15.26 GiB in bfloat16 and 10.00 GiB of cuda memory is free" in text
    assert "2,048 tokens of context take 288 MiB of KV cache (147,456 bytes a token)" in text
    assert "a step 512 MiB of reserve or more" in text
    assert "Up to 9.22 GiB of weights fit, 4.9 billion parameters" in text
    assert "or split it over 2 such devices (tensor_parallel_size=2, --tp 2)" in text
    assert "over 4 such devices" in refusal(folder, 5, monkeypatch)
    assert "such devices" not in refusal(folder, 1.5, monkeypatch)
    assert "No model fits in that" in refusal(folder, 0.5, monkeypatch)


def test_ranks_are_told_their_own_part_and_a_wide_dtype_that_a_narrow_one_would_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = refusal(folder, 5, monkeypatch, ranks=2)
    assert "take 7.63 GiB in bfloat16 on each of 2 devices" in text
    assert "(73,728 bytes a token)" in text and "over 4 such devices" in text
    assert "Up to 4.36 GiB of weights fit on each of 2 devices, 4.7 billion parameters" in text
    text = refusal(folder, 20, monkeypatch, dtype=torch.float32)
    assert "take 30.51 GiB in float32" in text
    assert "or load it in bfloat16, in which it takes 15.26 GiB" in text


def test_on_a_host_there_is_no_reserve_and_half_is_left_to_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = refusal(folder, 10, monkeypatch, device="cpu")
    assert "10.00 GiB of cpu memory is free" in text and "as much is left to others" in text
    assert "Up to 9.44 GiB of weights fit, 5.1 billion parameters" in text and "such devices" not in text


def test_memory_that_runs_out_while_weights_are_read_is_refused_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_model", raises(OUT_OF_MEMORY))
    assert "take 15.26 GiB in bfloat16 and 16.00 GiB of cuda memory" in refusal(folder, 16, monkeypatch)


class Step:
    """What a step on a small card takes: `each` bytes a token, and all that is left is `left`."""

    def __init__(self, left: float, each: int) -> None:
        self.left, self.each = left * GIB, each
        self.tried: list[int] = []

    def __call__(self, model: Any, tokens: int, rows: int, device: Any, dtype: Any) -> int:
        self.tried.append(tokens)
        if tokens * self.each > self.left:
            raise OUT_OF_MEMORY
        return tokens * self.each


@pytest.fixture
def small_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`small_card(left, each)`: the refusal of a model whose weights leave `left` GiB."""

    def refused(left: float, each: int, ranks: int = 1) -> str:
        step = Step(left, each)
        monkeypatch.setattr(reserve, "_taken", step)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        model = SimpleNamespace(config=ModelConfig.from_folder(folder), num_kv_heads=8 // ranks)
        monkeypatch.setattr(loading, "load_model", lambda *_, **__: model)
        frees = iter([16.0, left])
        monkeypatch.setattr(loading, "memory_free", lambda *_: int(next(frees) * GIB))
        config = EngineConfig(model=folder, skip_tokenizer=True, deterministic=ranks > 1)
        collectives: Any = SimpleNamespace(rank=0, ranks=ranks, sums=None, gather=lambda *_, **__: None)
        with pytest.raises(OutOfMemory) as caught:
            loading.load_share(config, model.config, CUDA, torch.bfloat16, collectives if ranks > 1 else None)
        assert len(step.tried) == 1 or ranks == 1, "other ranks wait in the step"
        assert step.tried == [8192 // 2**i for i in range(len(step.tried))]
        return str(caught.value)

    return refused


def test_a_step_that_finds_no_room_is_refused_with_one_that_does(small_card: Callable[..., str]) -> None:
    text = small_card(1.75, 2**19)
    assert text.startswith(
        "a step of 8,192 tokens of qwen3-8b found no room: its weights take 15.26 GiB in bfloat16"
    )
    assert "1.75 GiB of cuda memory is left" in text and "(147,456 bytes a token)" in text
    assert "the device said: CUDA out of memory. Tried to allocate 2.00 GiB. A step" in text
    assert (
        "A step of 2,048 tokens fits with a reserve of 1.50 GiB, and beside it a context of 1,820 tokens"
        in text
    )
    assert "set max_num_batched_tokens to that" in text
    text = small_card(2.0, 2**19)
    assert "A step of 4,096 tokens has room, but with its reserve of 2.50 GiB not for a context" in text


def test_where_no_step_finds_room_nothing_is_promised(small_card: Callable[..., str]) -> None:
    assert "No step of a useful size fits: lower max_num_seqs (256)" in small_card(0.1, 2**21)
    assert "Lower max_num_batched_tokens or max_num_seqs (256)" in small_card(2.0, 2**19, ranks=2)


def test_other_errors_of_the_measured_step_are_not_taken_for_short_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reserve, "_taken", raises(RuntimeError("illegal memory access")))
    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))
    with pytest.raises(RuntimeError, match="illegal"):
        reserve.measure_reserve(model, EngineConfig(model=Path()), CUDA, torch.bfloat16, alone=True)


def test_a_reserve_that_was_measured_at_once_has_the_slack_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "_taken", Step(2.0, 2**10))
    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))
    found = reserve.measure_reserve(model, EngineConfig(model=Path()), CUDA, torch.bfloat16, alone=True)
    assert found == Reserve(512 * 2**10 + 2**29, 512)


def test_through_the_service_it_is_out_of_memory_and_not_a_dead_engine(
    starter_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so it is where the state of the sequences is what finds no room."""
    monkeypatch.setattr(loading, "ModelRunner", raises(OUT_OF_MEMORY))
    service = EngineService()
    try:
        load = service.load(EngineConfig(model=starter_model, device="cpu", skip_tokenizer=True))
        with pytest.raises(
            OutOfMemory, match=r"the state of 256 sequences found no room beside .* of weights"
        ):
            load.wait(60)
    finally:
        service.close()


def test_a_context_that_leaves_no_room_is_refused_with_the_weights_that_would() -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(OutOfMemory) as caught:
            plan(
                EngineConfig(model=Path(), **options), context=40960, block_bytes=16 * 147_456, free=GIB,
                weights=15 * GIB, reserve=2 * GIB, on_cpu=False,
            )  # fmt: skip
        return str(caught.value)

    text = refused()
    assert "a context of 40,960 tokens needs 5.62 GiB of KV cache (147,456 bytes a token)" in text
    assert (
        "0 MiB is left of 1.00 GiB free after 15.00 GiB of weights and a reserve of 2.00 GiB: 0 tokens fit"
        in text
    )
    assert "beside 13.72 GiB of weights, 2,048 such tokens fit" in text
    assert "such tokens" not in refused(kv_cache_bytes=2**20), "its own cap is what it does not fit in"


def raises(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails

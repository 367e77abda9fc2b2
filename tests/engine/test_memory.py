"""Who insists on a model that does not fit gets a short context from what is left, or an error and a whole engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.engine import loading
from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.memory import LEAST_CONTEXT, MemoryPlan, plan
from nanochat.engine.service import EngineService
from nanochat.errors import OutOfMemory

LEAST_BLOCKS = LEAST_CONTEXT // BLOCK_SIZE
BLOCK = 1000


def planned(
    free_blocks: float, *, on_cpu: bool = True, reserve: int = 0, ranks: int = 1, **options: object
) -> MemoryPlan:
    config = EngineConfig(model=Path(), overcommit=True, **options)  # type: ignore[arg-type]
    free = int(free_blocks * BLOCK)
    return plan(
        config, context=40960, block_bytes=BLOCK, free=free, weights=1, reserve=reserve, on_cpu=on_cpu,
        ranks=ranks,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("hub/models--org--a-model/snapshots/0123abcd", "org/a-model"),
        ("hub/models--gpt2/snapshots/0123abcd", "gpt2"),
        ("models/own", "own"),
        ("models/own/", "own"),
        ("snapshots/own", "own"),
    ],
)
def test_a_model_has_the_name_that_people_know_it_by(folder: str, name: str) -> None:
    assert EngineConfig(model=Path(folder)).name == name


def test_more_than_half_of_a_hosts_memory_is_taken_for_the_least_context() -> None:
    assert planned(1.2 * LEAST_BLOCKS).max_model_len == LEAST_CONTEXT
    assert planned(4 * LEAST_BLOCKS).max_model_len == 2 * LEAST_CONTEXT


def test_a_gpus_reserve_is_taken_for_the_least_context() -> None:
    assert planned(1.2 * LEAST_BLOCKS, on_cpu=False, reserve=10**9).max_model_len == LEAST_CONTEXT


def test_a_context_that_was_asked_for_and_does_not_fit_becomes_shorter() -> None:
    assert planned(4 * LEAST_BLOCKS, max_model_len=30_000).max_model_len == 2 * LEAST_CONTEXT


@pytest.mark.parametrize("on_cpu", [True, False])
def test_ranks_together_take_no_more_kv_cache_than_was_asked_for(on_cpu: bool) -> None:
    """And it holds as many tokens as on one device, whose blocks are as many times larger."""
    cap = 3 * LEAST_BLOCKS * BLOCK
    assert planned(100 * LEAST_BLOCKS, on_cpu=on_cpu, kv_cache_bytes=cap).kv_bytes == cap
    assert planned(100 * LEAST_BLOCKS, on_cpu=on_cpu, kv_cache_bytes=cap, ranks=3).kv_bytes == cap // 3


def test_a_kv_cache_without_room_is_told_with_its_arithmetic(starter_model: Path) -> None:
    blocks = 10**9
    config = EngineConfig(model=starter_model, device="cpu", skip_tokenizer=True, num_blocks=blocks)
    with pytest.raises(
        OutOfMemory, match=r"a KV cache of [\d.]+ GiB \([\d,]+ tokens of [\d,]+ bytes\) found no room"
    ):
        loading.load(config)


@pytest.mark.parametrize(("asked", "said"), [(10**9, True), (256, False), (64, False), (None, False)])
def test_a_model_of_a_shorter_context_than_asked_for_is_loaded_with_its_own_and_says_so(
    asked: int | None, said: bool, tiny_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_folder("qwen3")
    config = EngineConfig(
        model=folder, device="cpu", skip_tokenizer=True, max_model_len=asked, kv_cache_bytes=2**24
    )
    assert loading.load(config).memory.max_model_len == min(asked or 256, 256)
    words = (
        f"max_model_len 1,000,000,000 is more than {folder.name} was made for: its own context of 256 tokens"
    )
    assert [words in message for message in caplog.messages] == [True] * said


def test_where_not_even_that_is_left_it_says_so() -> None:
    with pytest.raises(OutOfMemory, match=r"0 tokens fit\. Free memory, or take a smaller model"):
        planned(0.5)


def test_weights_beyond_memory_and_swap_are_refused_and_the_engine_loads_the_next_model(
    starter_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(model=starter_model, device="cpu", skip_tokenizer=True, overcommit=True)
    service = EngineService()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(
                loading, "host_memory_free", lambda *, swap=False: 20_000_000 if swap else 10_000_000
            )
            with pytest.raises(
                OutOfMemory, match=r"the weights of .* take .* and 10 MiB of cpu memory is free"
            ):
                service.load(config).wait(60)
            free = iter((10_000_000, 10**9, 10**9))  # what swap space takes in, and what is left then
            patch.setattr(loading, "host_memory_free", lambda *, swap=False: next(free))
            service.load(config).wait(60)
        assert service.stats().state == "ready"
        assert service.stats().max_model_len == 8192
    finally:
        service.close()

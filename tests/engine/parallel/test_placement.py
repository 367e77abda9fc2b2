"""Over how many devices a model goes: as many as are asked for, divide it, are there and are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.engine.config import EngineConfig
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.parallel.placement import choose_ranks, divides
from nanochat.errors import UsageError

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """So many GPUs, each with so many bytes free."""

    def there(count: int, free: int = 1 << 40) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, free))

    return there


def ranks(folder: Path, device: torch.device, asked: int | None = None, **changes) -> int:
    model = replace(ModelConfig.from_folder(folder), **changes)
    return choose_ranks(EngineConfig(model=folder, tensor_parallel_size=asked), model, device, torch.float32)


def test_a_cpu_gets_one_rank_unless_more_are_asked_for(tiny_folder) -> None:
    folder = tiny_folder("qwen3")
    assert ranks(folder, CPU) == 1 and ranks(folder, CPU, 3) == 3
    with pytest.raises(UsageError, match="at least 1, not 0"):
        ranks(folder, CPU, 0)


def test_what_divides_evenly(tiny_folder) -> None:
    model = ModelConfig.from_folder(tiny_folder("qwen3"))  # 4 heads, 2 of keys and values
    assert [divides(model, count) for count in (1, 2, 3, 4)] == [True, True, False, True]


def test_a_small_model_stays_on_one_gpu_however_many_are_there(tiny_folder, gpus) -> None:
    gpus(8)
    assert ranks(tiny_folder("qwen3"), GPU) == 1


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [
        (2.0, 8, 1),  # it fits twice
        (0.75, 8, 2),
        (0.75, 1, 1),  # one is there: what is missing is said when it is loaded
        (0.4, 8, 4),  # three would do, and do not divide four heads
        (0.01, 8, 4),  # none is enough: as many as divide the heads
        (0.01, 3, 2),
    ],
)
def test_a_large_model_gets_as_few_gpus_as_hold_it(share, count, expected, tiny_folder, gpus) -> None:
    folder = tiny_folder("qwen3")
    weights = ModelConfig.from_folder(folder).weight_bytes(torch.float32)
    gpus(count, int(weights * share / 0.9 / 0.75) + 1)
    assert ranks(folder, GPU) == expected


def test_more_gpus_than_there_are_cannot_be_asked_for(tiny_folder, gpus) -> None:
    gpus(2)
    assert ranks(tiny_folder("qwen3"), GPU, 2) == 2
    with pytest.raises(UsageError, match=r"4 was asked for, and there are 2 CUDA devices from cuda:0 on"):
        ranks(tiny_folder("qwen3"), GPU, 4)
    with pytest.raises(UsageError, match=r"2 was asked for, and there are 1 CUDA devices from cuda:1 on"):
        ranks(tiny_folder("qwen3"), torch.device("cuda", 1), 2)


def test_a_model_without_a_plan_stays_on_one_gpu_however_large_it_is(tiny_folder, gpus) -> None:
    gpus(8, 1000)
    assert ranks(tiny_folder("gpt2"), GPU) == 1
    assert ranks(tiny_folder("gemma2"), GPU) == 4

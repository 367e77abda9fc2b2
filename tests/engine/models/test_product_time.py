"""The time that a rank is given for what a model of Transformers' does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nanochat.engine.models import ModelConfig, load_model
from nanochat.engine.models.embedding import RowsOnDisk
from nanochat.engine.models.product_time import give_time
from nanochat.kernels import headway
from nanochat.kernels.headway import witnessed

CPU = torch.device("cpu")


class Told:
    def __init__(self) -> None:
        self.pieces, self.allowed = 0, 0

    def advance(self) -> None:
        self.pieces += 1


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """A multiplication takes a second, and so does a byte."""
    monkeypatch.setattr(headway, "_PRODUCTS", 1.0)
    monkeypatch.setattr(headway, "_BYTES", 1.0)
    return Told()


def rank_0_of_two(folder: Path):
    config = ModelConfig.from_folder(folder)
    more = {"rank": 0, "world_size": 2, "reduce": lambda x: x, "gather": lambda x: x}
    return load_model(folder, config, dtype=torch.float32, device=CPU, **more)


def test_experts_are_given_the_time_of_those_that_are_asked(
    tiny_folder: Callable[[str], Path], told: Told
) -> None:
    """And of all of them, where it is not seen which are."""
    model, allowed = rank_0_of_two(tiny_folder("mixtral")), []
    experts = next(m for m in model._decoder.modules() if hasattr(m, "gate_up_proj"))
    experts.act_fn.register_forward_hook(lambda *_: allowed.append(told.allowed))
    numbers = experts.gate_up_proj.numel() + experts.down_proj.numel()
    chosen = torch.tensor([[0, 1], [2, 1], [3, 0], [1, 2], [0, 3]])
    with witnessed(told):
        experts(torch.ones(5, experts.gate_up_proj.shape[2]), chosen, torch.full((5, 2), 0.5))
    assert set(allowed) == {10 * numbers // 4} and told.allowed == 0


def test_experts_whose_choice_is_not_seen_are_given_the_time_of_all(told: Told) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrices = nn.Parameter(torch.ones(4, 3, 2))

        def forward(self, hidden: torch.Tensor) -> int:
            return told.allowed

    experts = Experts()
    give_time(experts)
    with witnessed(told):
        assert experts(hidden=torch.ones(2, 5, 3)) == 10 * 24


def test_a_model_that_moves_to_its_device_is_given_time(
    tiny_folder: Callable[[str], Path], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, to = [], nn.Module.to

    def watched(self, *args, **options):
        allowed.append(told.allowed)
        return to(self, *args, **options)

    monkeypatch.setattr(nn.Module, "to", watched)
    with witnessed(told):
        model = rank_0_of_two(tiny_folder("olmo2"))
    assert allowed[-1] == 2 * model.num_bytes


def test_each_row_from_a_disk_is_a_piece(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "rows"
    path.write_bytes(torch.arange(12.0).numpy().tobytes())
    with witnessed(told):
        RowsOnDisk(path, 0, 3, torch.float32, torch.bfloat16)(torch.tensor([2, 1, 3]))
    assert told.pieces >= 3

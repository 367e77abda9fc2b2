"""Bytes and operations of a model's work, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.benchmarks.batch import Requests
from nanochat.benchmarks.cost import Ceilings, Cost, ModelCost, floor
from nanochat.benchmarks.known_shapes import SHAPES, write_shape
from nanochat.benchmarks.single import Decode
from nanochat.engine.models.config import ModelConfig
from nanochat.errors import UsageError

H100 = Ceilings(read=3131e9, matrix=700e12)


def cost_of(shape: str, folder: Path, itemsize: int = 2) -> ModelCost:
    return ModelCost(ModelConfig.from_folder(write_shape(shape, folder)), itemsize)


def test_a_decode_step_of_qwen3_reads_its_weights_and_its_cache(tmp_path: Path) -> None:
    cost = cost_of("qwen3-0.6b", tmp_path)
    layer = 1024 * 2048 * 2 + 1024 * 1024 * 2 + 3 * 1024 * 3072  # q and o, k and v, feed-forward
    norms = 57 * 1024 + 2 * 28 * 128
    assert cost.step_weights == 2 * (28 * layer + 151936 * 1024 + norms)
    assert cost.kv_bytes_per_token == 114_688
    assert cost.decode([640]).bytes == cost.step_weights + 640 * 114_688


def test_operations_of_a_decode_step_are_two_a_weight_and_four_a_head_value_and_position(
    tmp_path: Path,
) -> None:
    cost = cost_of("tiny", tmp_path)
    layer = 64 * (2 * 64 + 2 * 32) + 3 * 64 * 128
    matrices = 2 * layer + 12000 * 64
    assert cost.decode([10, 30]).operations == 2 * (2 * matrices) + 2 * 40 * 4 * 64


def test_a_prefill_sees_each_position_before_its_own_and_makes_one_row_of_logits(tmp_path: Path) -> None:
    cost = cost_of("tiny", tmp_path)
    layer = 64 * (2 * 64 + 2 * 32) + 3 * 64 * 128
    fresh = cost.prefill(3)
    assert fresh.operations == 2 * 3 * 2 * layer + 2 * 12000 * 64 + 2 * (1 + 2 + 3) * 4 * 64
    after = cost.prefill(2, cached=10)
    assert after.operations == 2 * 2 * 2 * layer + 2 * 12000 * 64 + 2 * (11 + 12) * 4 * 64
    assert after.bytes - fresh.bytes == 10 * cost.kv_bytes_per_token


def test_the_published_ceilings_come_out(tmp_path: Path) -> None:
    cost = cost_of("qwen3-0.6b", tmp_path)
    assert 1 / cost.decode([0]).seconds(H100) == pytest.approx(2626, abs=1)
    assert 1 / cost.decode([640]).seconds(H100) == pytest.approx(2474, abs=1)
    assert 1 / cost.decode([16000]).seconds(H100) == pytest.approx(1034, abs=1)
    assert 1 / cost_of("qwen3-8b", tmp_path).decode([0]).seconds(H100) == pytest.approx(206.8, abs=0.1)


def test_workload_b_is_the_published_one_and_so_is_its_floor(tmp_path: Path) -> None:
    asks = Requests().asks(0)
    assert sum(len(ask.prompt) for ask in asks) == 142_827
    assert sum(ask.output for ask in asks) == 133_966
    sizes = [(len(ask.prompt), ask.output) for ask in asks]
    least = floor(cost_of("qwen3-0.6b", tmp_path).generation(sizes), H100)
    assert least.seconds == pytest.approx(5.0, abs=0.02)
    assert least.bound == "bandwidth"


def test_requests_that_decode_together_read_the_weights_once_a_step(tmp_path: Path) -> None:
    cost = cost_of("tiny", tmp_path)
    (prefill, once), *steps = cost.generation([(10, 3), (20, 2)])
    assert once == 1 and prefill.operations == cost.prefill(10).operations + cost.prefill(20).operations
    assert sum(times for _, times in steps) == 2  # the first tokens come with the prefill
    moved = sum(each.bytes * times for each, times in steps)
    assert moved == cost.decode([11, 21]).bytes + cost.decode([12]).bytes


def test_what_is_slower_bounds() -> None:
    ceilings = Ceilings(read=100.0, matrix=1000.0)
    assert Cost(200.0, 500.0).seconds(ceilings) == 2.0 and Cost(200.0, 500.0).bound(ceilings) == "bandwidth"
    assert (
        Cost(200.0, 5000.0).seconds(ceilings) == 5.0 and Cost(200.0, 5000.0).bound(ceilings) == "arithmetic"
    )
    assert floor([(Cost(200.0, 0.0), 2), (Cost(0.0, 3000.0), 1)], ceilings).seconds == 7.0


def test_a_sliding_window_bounds_what_is_seen(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(write_shape("tiny", tmp_path))
    from dataclasses import replace

    windowed = replace(config, layers=(replace(config.layers[0], window=16), config.layers[1]))
    whole, cost = ModelCost(config, 2), ModelCost(windowed, 2)
    layer_kv = whole.kv_bytes_per_token // 2
    assert whole.decode([100]).bytes - cost.decode([100]).bytes == (100 - 16) * layer_kv
    assert whole.decode([16]).bytes == cost.decode([16]).bytes
    seen = sum(min(position, 16) for position in range(1, 41))
    assert whole.prefill(40).operations - cost.prefill(40).operations == (820 - seen) * 4 * 64


def test_the_ceiling_of_a_decode_case_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    cost = cost_of("qwen3-0.6b", tmp_path)
    limit = Decode(256, 512).limit(cost, H100)
    assert limit.value == pytest.approx(1 / cost.decode([512 + 128]).seconds(H100), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_known_shape_is_one_that_the_engine_runs_itself(shape: str, tmp_path: Path) -> None:
    assert ModelConfig.from_folder(write_shape(shape, tmp_path)).native


def test_an_unknown_shape_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it knows qwen3-0"):
        write_shape("gpt-5", tmp_path)

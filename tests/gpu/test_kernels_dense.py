"""Norms, gates and products on a GPU, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from attention_cases import relative_error
from dense_cases import gated, make_product

from nanochat.kernels.gemv_config import GemvConfig, GemvShape, candidate_configs
from nanochat.kernels.triton_activation import gate_mul
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_matmul import invariant_linear
from nanochat.kernels.triton_norm import add_rms_norm, rms_norm
from nanochat.kernels.tuning import TuningCache, tune_gemv

pytestmark = pytest.mark.gpu
POISONED = pytest.mark.usefixtures("poisoned_memory")
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 2e-3, torch.float32: 1e-5}
PDL = torch.cuda.get_device_capability() >= (9, 0)


@POISONED
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [64, 896, 1024, 5000])
def test_norms_agree_with_float64(width: int, dtype: torch.dtype) -> None:
    x, delta, weight = (torch.randn(n, width, device="cuda").to(dtype) for n in (37, 37, 1))
    expected = torch.nn.functional.rms_norm(x.double(), (width,), weight[0].double(), 1e-6)
    assert relative_error(rms_norm(x, weight[0], 1e-6), expected) <= TOLERANCE[dtype]
    out, total = add_rms_norm(delta, x, weight[0], 1e-6)
    assert relative_error(total, x.double() + delta.double()) <= TOLERANCE[dtype]
    expected = torch.nn.functional.rms_norm(total.double(), (width,), weight[0].double(), 1e-6)
    assert relative_error(out, expected) <= TOLERANCE[dtype]


@POISONED
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gates_agree_with_float64(dtype: torch.dtype, activation: str) -> None:
    x = torch.randn(33, 2 * 3000, device="cuda").to(dtype) * 3
    assert relative_error(gate_mul(x, activation), gated(x.double(), activation)) <= TOLERANCE[dtype]


KINDS = [
    {"norm": True, "bias": True},
    {"residual": True},
    {"norm": True, "activation": "silu"},
    {"norm": True, "activation": "gelu_tanh", "bias": True, "residual": True},
    {},
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1024, 2048), (1000, 896), (130, 576), (4096, 4096)])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_products_agree_with_float64(
    rows: int, n: int, k: int, kind: dict[str, object], dtype: torch.dtype
) -> None:
    product = make_product(rows, n, k, dtype=dtype, device="cuda", **kind)  # type: ignore[arg-type]
    out = gemv(
        product.x, product.weight, out=product.poisoned(), norm=product.norm, eps=product.eps, bias=product.bias,
        residual=product.residual, activation=product.activation, pdl=PDL,
    )  # fmt: skip
    assert relative_error(out, product.expected()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 4, 8])
@pytest.mark.parametrize("gated_", [False, True])
def test_every_candidate_computes_the_same_product(rows: int, gated_: bool) -> None:
    product = make_product(
        rows, 1024, 1024, activation="silu" if gated_ else "", norm=True, dtype=torch.bfloat16, device="cuda"
    )
    for config in candidate_configs(GemvShape(rows, 1024, 1024, gated_, True)):
        out = gemv(
            product.x, product.weight, out=product.poisoned(), norm=product.norm, eps=product.eps,
            activation=product.activation, config=config, pdl=PDL,
        )  # fmt: skip
        assert relative_error(out, product.expected()) <= 5e-3, config


def test_a_chain_of_dependent_launches_computes_what_separate_ones_do() -> None:
    weights = [torch.randn(1024, 1024, device="cuda").bfloat16() / 32 for _ in range(24)]
    start = torch.randn(1, 1024, device="cuda").bfloat16()

    def run(pdl: bool) -> torch.Tensor:
        x = start
        for i, weight in enumerate(weights):
            x = gemv(x, weight, residual=x, pdl=pdl, late=i % 2 == 0)
        return x

    separate = run(False)
    assert torch.equal(run(PDL), separate)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(PDL)
    for _ in range(20):
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, separate)


@POISONED
def test_a_row_of_an_invariant_product_does_not_depend_on_the_others() -> None:
    x = torch.randn(300, 1024, device="cuda").bfloat16()
    weight, bias = (
        torch.randn(500, 1024, device="cuda").bfloat16(),
        torch.randn(500, device="cuda").bfloat16(),
    )
    whole = invariant_linear(x, weight, bias)
    assert relative_error(whole, x.double() @ weight.double().T + bias.double()) <= 5e-3
    for rows in (slice(0, 1), slice(7, 8), slice(40, 140), slice(299, 300)):
        assert torch.equal(invariant_linear(x[rows], weight, bias), whole[rows])


def test_tuning_is_measured_once_and_read_back(tmp_path: Path) -> None:
    path, shape = tmp_path / "tuning.json", GemvShape(1, 512, 512, False, True)
    cache = TuningCache(path, "this device", torch.bfloat16)
    few = [GemvConfig(4, 256), GemvConfig(8, 256)]
    times = tune_gemv(
        shape, cache, dtype=torch.bfloat16, device=torch.device("cuda"), pdl=PDL, candidates=few
    )
    assert set(times) == set(few)
    cache.save()
    assert TuningCache(path, "this device", torch.bfloat16).get(shape) == min(
        times, key=lambda config: times[config]
    )
    assert TuningCache(path, "another device", torch.bfloat16).get(shape) is None

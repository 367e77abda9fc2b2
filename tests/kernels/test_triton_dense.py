"""Norms, gates and products in the interpreter, against float64."""

from __future__ import annotations

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from attention_cases import relative_error
from dense_cases import gated, make_product

from nanochat.kernels.gemv_config import GemvConfig, GemvShape, candidate_configs, default_config
from nanochat.kernels.triton_activation import gate_mul
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_matmul import invariant_linear
from nanochat.kernels.triton_norm import add_rms_norm, rms_norm

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SMALL = GemvConfig(block_n=4, block_k=64, warps=2, prefetch=2)
DOT = GemvConfig(block_n=16, block_k=64, warps=2, dot=True)


def test_norms_agree_with_float64() -> None:
    x, delta, weight = torch.randn(3, 100), torch.randn(3, 200)[:, ::2].contiguous(), torch.randn(100)
    out, total = add_rms_norm(delta, x, weight, 1e-6)
    assert torch.equal(total, x + delta)
    expected = torch.nn.functional.rms_norm((x + delta).double(), (100,), weight.double(), 1e-6)
    assert relative_error(out, expected) <= 1e-6
    assert relative_error(rms_norm((x + delta)[None], weight, 1e-6)[0], expected) <= 1e-6


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_gates_agree_with_float64_far_from_zero_too(activation: str) -> None:
    x = torch.randn(3, 100) * torch.tensor([[1.0], [10.0], [100.0]])
    assert relative_error(gate_mul(x, activation), gated(x.double(), activation)) <= 1e-6


@pytest.mark.parametrize("config", [SMALL, DOT], ids=["arithmetic units", "matrix units"])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(
    "kind",
    [{"norm": True, "bias": True}, {"residual": True}, {"norm": True, "activation": "silu"},
     {"norm": True, "activation": "gelu_tanh", "bias": True, "residual": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow")
def test_products_agree_with_float64(rows: int, kind: dict[str, object], config: GemvConfig) -> None:
    for n, k in ((10, 300), (16, 128)):
        product = make_product(rows, n, k, **kind)  # type: ignore[arg-type]
        out = gemv(
            product.x, product.weight, out=product.poisoned(), norm=product.norm, eps=product.eps, bias=product.bias,
            residual=product.residual, activation=product.activation, config=config,
        )  # fmt: skip
        assert relative_error(out, product.expected()) <= 1e-6


def test_a_product_may_be_added_to_the_residual_in_place() -> None:
    product = make_product(2, 12, 70, residual=True)
    expected = product.expected()
    assert product.residual is not None
    gemv(product.x, product.weight, out=product.residual, residual=product.residual, config=SMALL)
    assert relative_error(product.residual, expected) <= 1e-6


def test_three_rows_have_the_bits_that_they_have_among_four() -> None:
    product = make_product(4, 12, 300, norm=True)
    four = gemv(product.x, product.weight, norm=product.norm, eps=1e-5)
    assert torch.equal(gemv(product.x[:3], product.weight, norm=product.norm, eps=1e-5), four[:3])
    assert GemvShape.of(3, 12, 300, False, True) == GemvShape.of(4, 12, 300, False, True)


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize(("n", "k"), [(4096, 1024), (1024, 3072), (24576, 4096), (151936, 1024), (130, 576)])
def test_candidates_are_whole_and_begin_with_the_default(rows: int, n: int, k: int) -> None:
    for gate in (False, True):
        shape = GemvShape(rows, n, k, gate, True)
        configs = candidate_configs(shape)
        assert configs[0] == default_config(shape) and len(set(configs)) == len(configs)
        assert all(config.dot or config.block_n % config.warps == 0 for config in configs)


def test_a_row_of_an_invariant_product_does_not_depend_on_the_others() -> None:
    x, weight, bias = torch.randn(70, 40), torch.randn(50, 40), torch.randn(50)
    whole = invariant_linear(x, weight, bias)
    assert relative_error(whole, x.double() @ weight.double().T + bias.double()) <= 1e-6
    assert torch.equal(invariant_linear(x[33:34], weight, bias), whole[33:34])


def test_a_narrow_product_is_not_rounded() -> None:
    x, weight = torch.randn(37, 200).half(), torch.randn(9, 200).half()
    out = invariant_linear(x, weight, narrow=True)
    assert out.dtype == torch.float32
    assert relative_error(out, x.double() @ weight.double().T) <= 1e-6

"""Matrices that hold no more than 4 or 8 bits a number: found, read as such, and multiplied by as the definition says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.kernels import native

if not native.available():
    pytest.skip("no machine code on this machine", allow_module_level=True)

from grids import on_grid, unpacked

from nanochat.engine.models import ModelConfig, load_model
from nanochat.kernels.cpu import CpuKernels
from nanochat.kernels.native import NativeCode

CPU = torch.device("cpu")
MOST_ROWS = {("dots", 4): 16, ("dots", 8): 4, ("plain", 4): 8, ("plain", 8): 2}
SHAPES = [(576, 1536), (96, 32), (64, 96), (1600, 64)]


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    return NativeCode(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module", params=["dots", "plain"])
def kernels(request, code):
    made = code if request.param == "dots" else NativeCode(None, dots=False)
    found = CpuKernels(CPU, made)
    found.name = "dots" if made.dots else "plain"
    return found


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.floats(-4.0, 4.0), st.floats(1e-3, 1e3))
def test_what_was_quantized_is_found_again(kernels, bits, seed, middle, size):
    """Whatever the numbers lie around, they come back but for what bfloat16 took from them and from their grids' ends."""
    draw = torch.Generator().manual_seed(seed)
    exact = on_grid((torch.randn(32, 96, generator=draw) + middle) * size, bits)
    weight = exact.bfloat16()
    matrix = kernels.pack(weight)
    if bits == 4:
        assert matrix.planes == 1
    assert matrix.planes, "of 8 bits; a coarse grid of them may be one of 4"
    found = unpacked(matrix.quantized, 32, 96, matrix.planes)
    groups = exact.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, True).expand_as(groups).flatten(-2)
    assert ((found - exact).abs() <= largest * 2.3 / 256).all()
    if (
        bits == 4 and abs(middle) <= 1.0
    ):  # where a step is more than what bfloat16 takes: each number is on its own
        step = (groups.amax(-1, True) - groups.amin(-1, True)) / 15
        assert ((found - exact).unflatten(-1, (-1, 32)).abs() < step / 2).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_bfloat16_before_it_was_quantized_comes_back_exactly(kernels, bits):
    """So it is with the starter: rounded to bfloat16 on its way here, and none of its file's numbers is lost."""
    torch.manual_seed(0)
    exact = on_grid(torch.randn(576, 1536).bfloat16(), bits)
    weight = exact.bfloat16()
    assert not torch.equal(weight.float(), exact)
    matrix = kernels.pack(weight)
    assert torch.equal(unpacked(matrix.quantized, 576, 1536, matrix.planes), exact)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 11, 16, 17, 128, 131])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_product_is_what_the_definition_says(kernels, rows, shape, bits, biased, kept):
    torch.manual_seed(rows)
    exact = on_grid(torch.randn(shape), bits)
    x, bias = torch.randn(rows, shape[1]).bfloat16(), torch.randn(shape[0]).bfloat16() if biased else None
    matrix = kernels.pack(exact.bfloat16(), bias, kept=kept)
    assert matrix.planes == bits // 4 and (matrix.weight is not None) == kept
    assert matrix.read(rows)[1] == (0 if kept and rows > MOST_ROWS[kernels.name, bits] else bits // 4)
    assert kept or matrix.weight is None, "what is read in fewer bits takes no more memory than that"
    expected = F.linear(x.double(), exact.double(), None if bias is None else bias.double())
    assert relative_error(kernels.linear(x, matrix), expected) <= 5e-3
    if shape[0] % 32 == 0:
        gate, up = expected.chunk(2, dim=-1)
        assert relative_error(kernels.gated(x, matrix, "silu"), F.silu(gate) * up) <= 1e-2
    residual, norm = torch.randn(rows, shape[0]).bfloat16(), torch.rand(shape[0]).bfloat16()
    total = residual.double() + expected
    normed, stream = kernels.project_add_norm(x, matrix, residual.clone(), norm, 1e-3, None)
    assert relative_error(stream, total) <= 1e-2  # what is added is rounded first
    assert (
        relative_error(normed, total / (total.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.double())
        <= 1e-2
    )


def test_rows_may_lie_apart(kernels):
    x, exact = torch.randn(4, 200).bfloat16()[:, 40:136], on_grid(torch.randn(32, 96), 4)
    matrix = kernels.pack(exact.bfloat16())
    assert relative_error(kernels.linear(x, matrix), x.double() @ exact.double().T) <= 5e-3


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(kernels, bits, bad):
    x, matrix = torch.randn(2, 64).bfloat16(), kernels.pack(on_grid(torch.randn(64, 64), bits).bfloat16())
    x[1, 7] = bad
    assert torch.isfinite(kernels.linear(x, matrix).float()).all(dim=1).tolist() == [True, False]


def outlier(weight):
    weight[5, 40] = 1e3  # the other numbers of its grid would all be its least one
    return weight


def with_number(number):
    def put(weight):
        weight[-1, -1] = number
        return weight

    return put


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda weight: torch.randn_like(weight), outlier, with_number(float("nan")), with_number(float("inf")),
        lambda weight: weight + torch.rand_like(weight) / 5,
        lambda weight: 1e-6 * weight,  # the steps are too small for float16
        lambda weight: 1e7 * weight,
    ],
    ids=["random", "outlier", "nan", "inf", "noise", "small", "large"],
)  # fmt: skip
@pytest.mark.parametrize("bits", [4, 8])
def test_what_would_lose_something_stays_as_it_is(kernels, bits, spoiled):
    torch.manual_seed(0)
    weight = spoiled(on_grid(torch.randn(64, 96), bits)).bfloat16()
    matrix = kernels.pack(weight)
    assert not matrix.planes and matrix.quantized is None
    x = torch.randn(1, 96).bfloat16()
    if weight.isfinite().all():
        assert relative_error(kernels.linear(x, matrix), x.double() @ weight.double().T) <= 5e-3
    else:
        assert not kernels.linear(x, matrix).isfinite().all()


@pytest.mark.parametrize("number", [0.0, 1.0, -0.375])
def test_numbers_that_are_all_the_same_are_a_grid_too(kernels, number):
    matrix = kernels.pack(torch.full((32, 64), number).bfloat16())
    assert matrix.planes == 1
    x = torch.randn(2, 64).bfloat16()
    torch.testing.assert_close(
        kernels.linear(x, matrix).float(), (x.double().sum(1, True) * number).float().expand(2, 32), atol=2e-2, rtol=1e-2
    )  # fmt: skip


def test_reports_say_what_is_read(code):
    kernels = CpuKernels(CPU, code)
    plain = kernels.pack(torch.randn(64, 64).bfloat16())
    assert not plain.planes and kernels.weight_itemsize is None
    assert kernels.describe(torch.bfloat16).endswith("bfloat16 matrices")
    kernels.pack(on_grid(torch.randn(64, 64), 4).bfloat16())
    assert kernels.weight_itemsize == (2 + 0.625) / 2, "4 bits, and 32 for each 32 numbers' grid"
    kernels.pack(on_grid(torch.randn(64, 64), 8).bfloat16())
    assert kernels.weight_itemsize == (2 + 0.625 + 1.125) / 3
    assert kernels.describe(torch.bfloat16).endswith("kept in 4 and 8 bits where they hold no more")


def test_all_of_the_starter_is_kept_in_the_bits_that_it_holds(starter_model):
    config = ModelConfig.from_folder(starter_model)
    weights = load_model(starter_model, config, dtype=torch.bfloat16, device=CPU).weights
    for layer in weights.layers:
        matrices = (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
        assert all(matrix.planes == 1 and matrix.weight is None for matrix in matrices)
    assert weights.head.planes == 2 and weights.head.weight is weights.embed.table, "which is needed anyway"

"""Mixtures of experts on a GPU: against float64, alone and in company, and from a graph."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from attention_cases import relative_error
from expert_cases import Mixture, make_mixture

from nanochat.kernels.cuda_experts import CudaExperts
from nanochat.kernels.triton_experts import choose, few_rows
from nanochat.kernels.triton_grouped import library_takes, many_rows

pytestmark = pytest.mark.gpu
POISONED = pytest.mark.usefixtures("poisoned_memory")
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 2e-3, torch.float32: 1e-5}
MAJOR = torch.cuda.get_device_capability()[0]
SHAPES = {  # experts, per_token, width, inner
    "qwen3-30b-a3b": (128, 8, 2048, 768), "a rank's share": (128, 8, 2048, 96), "odd": (60, 4, 520, 200),
    "few": (8, 2, 1024, 1032), "one": (4, 1, 300, 36),
}  # fmt: skip
MODES = [False, True]


def make(shape: str, rows: int, dtype: torch.dtype, **fields) -> Mixture:
    experts, per_token, width, inner = SHAPES[shape]
    return make_mixture(
        rows, experts, per_token, width=width, inner=inner, dtype=dtype, device="cuda", **fields
    )


def run(mixture: Mixture, deterministic: bool, x: torch.Tensor | None = None) -> torch.Tensor:
    return CudaExperts(MAJOR, deterministic=deterministic)(
        mixture.x if x is None else x, mixture.router, mixture.gate_up, mixture.down, mixture.per_token,
        mixture.normalized, mixture.activation,
    )  # fmt: skip


@POISONED
@pytest.mark.parametrize("deterministic", MODES, ids=["usual", "deterministic"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 64, 200])
def test_experts_agree_with_float64(rows: int, shape: str, dtype: torch.dtype, deterministic: bool) -> None:
    fields = {"activation": "gelu_tanh", "normalized": False} if shape == "odd" else {}
    mixture = make(shape, rows, dtype, **fields)
    assert relative_error(run(mixture, deterministic), mixture.expected()) <= TOLERANCE[dtype]


@POISONED
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_rows_of_one_expert_agree_with_float64(dtype: torch.dtype) -> None:
    """One group is nearly all rows, and others are empty."""
    mixture = make("few", 500, dtype, favourite=True)
    for deterministic in MODES:
        assert relative_error(run(mixture, deterministic), mixture.expected()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_ours_are_the_librarys_products(dtype: torch.dtype) -> None:
    """Where the library takes none, ours run: both are there on every chip, and so agree."""
    mixture = make("odd", 77, dtype)
    weights, chosen = choose(mixture.logits.float(), mixture.per_token, True)
    ours, library = (
        many_rows(mixture.x, weights, chosen, mixture.gate_up, mixture.down, "silu", library=library)
        for library in (False, True)
    )
    assert relative_error(ours, library) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_few_rows_have_the_bits_that_they_have_alone(shape: str, dtype: torch.dtype) -> None:
    mixture = make(shape, 8, dtype, favourite=True)
    x = mixture.x.contiguous()
    weights, chosen = choose(mixture.logits.float(), mixture.per_token, True)
    whole = few_rows(x, weights, chosen, mixture.gate_up, mixture.down, "silu")
    for row in range(8):
        own = (tensor[row : row + 1].clone() for tensor in (x, weights, chosen))
        assert torch.equal(few_rows(*own, mixture.gate_up, mixture.down, "silu"), whole[row : row + 1])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_the_deterministic_mode_a_row_has_the_same_bits_among_any_number(
    shape: str, dtype: torch.dtype
) -> None:
    mixture = make(shape, 700, dtype, favourite=True)
    x = mixture.x.contiguous()
    whole = run(mixture, True, x)
    for row, company in ((0, 1), (17, 3), (100, 9), (101, 64), (699, 300), (699, 1)):
        among = run(mixture, True, x[row + 1 - company : row + 1].clone())
        assert torch.equal(among[-1], whole[row]), (row, company)


@pytest.mark.parametrize("deterministic", MODES, ids=["usual", "deterministic"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 8, 16, 300])
def test_a_graph_gives_the_bits_of_launches_each_time(
    rows: int, dtype: torch.dtype, deterministic: bool
) -> None:
    """That it can be captured says that it asks nothing of the host."""
    mixture = make("qwen3-30b-a3b", rows, dtype)
    x = mixture.x.contiguous()
    other = make("qwen3-30b-a3b", rows, dtype, seed=1).x.contiguous()
    expected, expected_of_other = (run(mixture, deterministic, each) for each in (x, other))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = run(mixture, deterministic, x)
    for _ in range(5):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)
    x.copy_(other)  # other experts
    graph.replay()
    assert torch.equal(out, expected_of_other)


def test_a_row_that_is_no_number_chooses_experts_that_exist() -> None:
    logits = torch.randn(4, 60, device="cuda")
    logits[1:3] = torch.tensor([[float("nan")], [float("inf")]], device="cuda")
    weights, chosen = choose(logits, 4, True)
    assert chosen[1:3].tolist() == [[0, 1, 2, 3]] * 2
    assert weights[1:3].isnan().all() and weights[::3].isfinite().all()


def test_what_is_no_number_stays_in_its_row() -> None:
    """Padding may hold anything; the other rows must not notice."""
    for rows in (4, 40):
        for deterministic in MODES:
            mixture = make("odd", rows, torch.bfloat16)
            sound = run(mixture, deterministic)
            mixture.x[1] = float("nan")
            found = run(mixture, deterministic)
            assert found[1].isnan().all()
            others = [row for row in range(rows) if row != 1]
            assert relative_error(found[others], sound[others]) <= 1e-3
            assert not deterministic or torch.equal(found[others], sound[others])


def test_the_library_is_asked_where_it_does_not_wait() -> None:
    mixture = make("qwen3-30b-a3b", 16, torch.bfloat16)
    assert library_takes(mixture.x, mixture.gate_up, MAJOR) == (MAJOR in (9, 10))

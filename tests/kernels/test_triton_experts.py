"""Mixtures of experts in the interpreter, against float64."""

from __future__ import annotations

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from attention_cases import relative_error
from expert_cases import Mixture, make_mixture
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from nanochat.kernels.cuda_experts import CudaExperts
from nanochat.kernels.triton_experts import choose, few_rows
from nanochat.kernels.triton_grouped import (
    library_takes,
    many_rows,
    sort_pairs,
    sum_places,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
USUAL, STEADY = (CudaExperts(8, deterministic=deterministic) for deterministic in (False, True))
CASES = [  # rows, experts, per_token, fields
    (1, 4, 1, {"normalized": False}), (3, 8, 2, {"activation": "gelu_tanh"}), (5, 20, 8, {"inner": 10, "width": 30}),
    (1, 4, 2, {"width": 260, "inner": 10}), (2, 3, 3, {"width": 20, "inner": 260}), (9, 8, 2, {}),
    (20, 60, 4, {"inner": 33, "width": 70}),
    (70, 4, 4, {"activation": "gelu_tanh", "normalized": False}), (45, 8, 1, {}), (45, 8, 2, {"favourite": True}),
]  # fmt: skip


def run(experts: CudaExperts, mixture: Mixture, x: torch.Tensor | None = None) -> torch.Tensor:
    return experts(
        mixture.x if x is None else x, mixture.router, mixture.gate_up, mixture.down, mixture.per_token,
        mixture.normalized, mixture.activation,
    )  # fmt: skip


@pytest.fixture
def products_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile's product adds up alike in every row, as matrix units do; the interpreter's own, by a library, does not."""

    def product(
        _: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *__: object
    ) -> TensorHandle:
        total = d.data
        for k in range(a.data.shape[1]):
            total = total + a.data[:, k : k + 1] * b.data[k : k + 1]
        return TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", product)


@pytest.mark.parametrize("experts", [USUAL, STEADY], ids=["usual", "deterministic"])
@pytest.mark.parametrize(("rows", "count", "per_token", "fields"), CASES)
def test_experts_agree_with_float64(
    rows: int, count: int, per_token: int, fields: dict, experts: CudaExperts
) -> None:
    mixture = make_mixture(rows, count, per_token, **fields)
    assert relative_error(run(experts, mixture), mixture.expected()) <= 1e-5


@pytest.mark.parametrize("rows", [3, 20])
def test_experts_agree_in_half_precision(rows: int) -> None:
    """Not bfloat16: the interpreter's products of it are wrong, and it does not round to it."""
    mixture = make_mixture(rows, 8, 4, dtype=torch.float16)
    for experts in (USUAL, STEADY):
        assert relative_error(run(experts, mixture), mixture.expected()) <= 5e-3


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("experts", "per_token"), [(4, 1), (8, 8), (60, 4), (128, 8)])
def test_the_likeliest_experts_are_chosen_in_order(experts: int, per_token: int, normalized: bool) -> None:
    logits = torch.randn(7, experts)
    weights, chosen = choose(logits, per_token, normalized)
    expected, places = torch.softmax(logits.double(), dim=-1).topk(per_token, dim=-1)
    assert torch.equal(chosen.long(), places)
    if normalized:
        expected = expected / expected.sum(dim=-1, keepdim=True)
    assert relative_error(weights, expected) <= 1e-6


def test_of_equal_experts_the_lower_number_is_chosen() -> None:
    _, chosen = choose(torch.tensor([[1.0, 3.0, 3.0, 2.0, 2.0], [0.0] * 5]), 4, True)
    assert chosen.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3]]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_logit_that_is_no_number_makes_no_weight_that_is_one() -> None:
    """An infinite logit comes of finite rows: unsound, and seen to be."""
    weights, chosen = choose(
        torch.tensor([[1.0, float("inf"), 2.0, 0.5, 0.1], [0.1, 2.0, 0.3, 0.0, 1.0]]), 2, False
    )
    assert weights[0].isnan().all() and not weights[1].isnan().any()
    assert chosen.tolist() == [[0, 1], [1, 4]]


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN slice")
@pytest.mark.parametrize("rows", [3, 12])
def test_what_is_no_number_stays_in_its_row(rows: int) -> None:
    """Padding may hold anything: its experts must exist, and the other rows must not notice."""
    mixture = make_mixture(rows, 8, 2)
    sound = run(USUAL, mixture)
    mixture.x[1] = float("nan")
    _, chosen = choose(mixture.x @ mixture.router.T, 2, True)
    assert ((chosen >= 0) & (chosen < 8)).all() and chosen[1].unique().numel() == 2
    found = run(USUAL, mixture)
    assert found[1].isnan().all()
    others = [row for row in range(rows) if row != 1]
    assert torch.equal(found[others], sound[others])


@pytest.mark.parametrize("rows", [2, 8])
def test_a_few_rows_have_the_bits_that_they_have_alone(rows: int) -> None:
    mixture = make_mixture(rows, 8, 4, width=40, inner=12, favourite=True)
    weights, chosen = choose(mixture.logits.float(), 4, True)
    matrices = mixture.gate_up, mixture.down, "silu"
    whole = few_rows(mixture.x, weights, chosen, *matrices)
    for row in range(rows):
        own = slice(row, row + 1)
        assert torch.equal(few_rows(mixture.x[own], weights[own], chosen[own], *matrices), whole[own])


@pytest.mark.usefixtures("products_by_hand")
def test_in_the_deterministic_mode_a_row_has_the_same_bits_among_any_number() -> None:
    mixture = make_mixture(150, 4, 2, width=70, favourite=True)
    whole = run(STEADY, mixture)
    assert relative_error(whole, mixture.expected()) <= 1e-5
    for row, company in ((0, 1), (33, 8), (100, 9), (149, 40)):
        assert torch.equal(run(STEADY, mixture, mixture.x[row + 1 - company : row + 1])[-1], whole[row])


@pytest.mark.parametrize(
    ("tokens", "experts", "per_token"), [(1, 4, 4), (9, 60, 8), (600, 5, 4), (300, 8, 1)]
)
def test_pairs_are_sorted_by_expert_and_keep_their_order(tokens: int, experts: int, per_token: int) -> None:
    chosen = torch.rand(tokens, experts).topk(per_token, dim=-1).indices.to(torch.int32)
    if experts == 8:
        chosen = torch.where(chosen == 3, 7, chosen)  # nobody's
    groups = sort_pairs(chosen, experts)
    flat = chosen.view(-1).long()
    assert torch.equal(groups.order.long(), flat.argsort(stable=True))
    assert torch.equal(groups.order[groups.place.long()].long(), torch.arange(tokens * per_token))
    assert groups.ends.tolist() == flat.bincount(minlength=experts).cumsum(0).tolist()


def test_torchs_grouped_products_take_what_ours_take() -> None:
    mixture = make_mixture(40, 8, 2, dtype=torch.float16)
    weights, chosen = choose(mixture.logits.float(), 2, True)
    library, ours = (
        many_rows(mixture.x, weights, chosen, mixture.gate_up, mixture.down, "silu", library=library)
        for library in (True, False)
    )
    assert relative_error(library, mixture.expected()) <= 5e-3
    assert relative_error(ours, library) <= 5e-3


def test_a_tokens_places_are_added_in_their_order() -> None:
    """By the experts' numbers, the one would be lost."""
    chosen = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    products, weights = torch.tensor([[-1e8], [1.0], [1e8]]), torch.ones(1, 3)
    assert sum_places(products, weights, sort_pairs(chosen, 3)).item() == 1.0


def test_only_what_asks_nothing_of_the_host_is_left_to_the_library() -> None:
    def takes(major: int, dtype: torch.dtype = torch.bfloat16, experts: int = 8, inner: int = 64) -> bool:
        shape = (experts, 2 * inner, 64)
        return library_takes(torch.empty(9, 64, dtype=dtype), torch.empty(shape, dtype=dtype), major)

    assert takes(9) and takes(10)
    assert not takes(8) and not takes(12)
    assert not takes(9, torch.float16) and not takes(9, torch.float32)
    assert not takes(9, experts=1024) and not takes(9, inner=36)


def test_no_rows_are_no_rows() -> None:
    mixture = make_mixture(1, 4, 2)
    assert run(USUAL, mixture, mixture.x[:0]).shape == (0, 96)

"""Products in float32 for a CPU that does not multiply 16 bits: the definition in float64, and who is computed so."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.kernels import native
from nanochat.kernels.invariant import InvariantKernels
from nanochat.kernels.packed import can_pack
from nanochat.kernels.reference import ReferenceKernels
from nanochat.kernels.widened import FEW, Widened, emulated

CPU = torch.device("cpu")
HALF = (torch.bfloat16, torch.float16)  # in one order: every test process must find the same tests
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


class Products(TorchDispatchMode):
    """Notes the dtypes that matrices are multiplied in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(name in str(func) for name in ("mm.", "linear", "matmul")):
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rows", [1, FEW - 1, FEW, 300])
@pytest.mark.parametrize("shape", [(48, 32), (1100, 1000), (3, 1), (2, 2**20 + 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_rounded_once(
    dtype: torch.dtype, rows: int, shape: tuple[int, int], biased: bool
) -> None:
    if rows * shape[1] > 2**24:
        rows = FEW
    x, weight = numbers(dtype, rows, shape[1]), numbers(dtype, *shape)
    bias = numbers(dtype, shape[0]) if biased else None
    found = Widened(HALF)(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype == dtype
    if rows >= FEW:
        summed = 1e-6 * shape[1] ** 0.5 * exact.abs().amax()  # what float32 loses while it adds up
        assert ((found.double() - exact).abs() <= ULP[dtype] * exact.abs() + summed).all()
    else:
        torch.testing.assert_close(found.double(), exact, atol=0.01 * shape[1] ** 0.5, rtol=0.01)


def test_the_room_for_a_part_of_a_matrix_serves_the_next_one() -> None:
    multiply = Widened(HALF)
    for shape in ((64, 32), (1100, 1000), (16, 8)):
        x, weight = numbers(torch.bfloat16, 9, shape[1]), numbers(torch.bfloat16, *shape)
        expected = (x.float() @ weight.float().T).bfloat16()
        torch.testing.assert_close(multiply(x, weight), expected, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(bad: float) -> None:
    x, weight = numbers(torch.bfloat16, 9, 32), numbers(torch.bfloat16, 48, 32)
    x[4, 7] = bad
    finite = torch.isfinite(Widened(HALF)(x, weight).float()).all(dim=1)
    assert finite.tolist() == [row != 4 for row in range(9)]


def bundles(widened: Collection[torch.dtype]) -> list[ReferenceKernels]:
    made: list[ReferenceKernels] = [
        ReferenceKernels(CPU, widened=widened),
        InvariantKernels(CPU, widened=widened),
    ]
    if native.available():
        from nanochat.kernels.cpu import CpuKernels
        from nanochat.kernels.native import NativeCode

        code = NativeCode(None, dots=False)
        made.append(CpuKernels(CPU, code, widened=widened))
    return made


def test_every_bundle_reads_a_prompt_in_float32_where_16_bits_are_slow() -> None:
    x, weight = numbers(torch.bfloat16, 64, 96), numbers(torch.bfloat16, 64, 96)
    residual, norm = numbers(torch.bfloat16, 64, 64), torch.ones(64).bfloat16()
    for kernels in bundles({torch.bfloat16}):
        matrix = kernels.pack(weight.clone(), numbers(torch.bfloat16, 64))
        with Products() as products:
            kernels.linear(x, matrix)
            kernels.gated(x, matrix, "silu")
            kernels.project_add_norm(x, matrix, residual.clone(), norm, 1e-5, None)
        assert products.dtypes == {torch.float32}, type(kernels)


def test_experts_read_a_prompt_in_float32_too() -> None:
    x, router = numbers(torch.bfloat16, 40, 32), numbers(torch.bfloat16, 2, 32)
    gate_up, down = numbers(torch.bfloat16, 2, 48, 32), numbers(torch.bfloat16, 2, 32, 24)
    slow, plain = (ReferenceKernels(CPU, widened=dtypes) for dtypes in ({torch.bfloat16}, ()))
    with Products() as products:
        found = slow.experts(x, router, gate_up, down, 2, True, "silu")
    assert products.dtypes == {torch.float32}
    expected = plain.experts(x, router, gate_up, down, 2, True, "silu")
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0.02)


def test_where_the_processor_multiplies_16_bits_nothing_is_widened() -> None:
    x, weight = numbers(torch.bfloat16, 64, 96), numbers(torch.bfloat16, 64, 96)
    for kernels in bundles(()):
        matrix = kernels.pack(weight.clone())
        with Products() as products:
            kernels.linear(x, matrix)
        assert products.dtypes == {torch.bfloat16}, type(kernels)


def test_what_is_emulated_is_not_packed_for_a_processor_that_would_not_multiply_it() -> None:
    for dtype in HALF:
        assert can_pack(torch.empty(1, 1, dtype=dtype)) != (dtype in emulated())
    assert torch.float32 not in emulated()


def test_reports_say_which_products_are_in_float32() -> None:
    slow, fast = bundles({torch.bfloat16}), bundles(())
    assert all("float32 from 8 rows on" in kernels.describe(torch.bfloat16) for kernels in slow[:2])
    assert all("torch in float32 above" in kernels.describe(torch.bfloat16) for kernels in slow[2:])
    assert not any("float32 from" in kernels.describe(torch.bfloat16) for kernels in fast)
    assert all("torch with oneDNN above" in kernels.describe(torch.bfloat16) for kernels in fast[2:])

"""The deterministic mode's operations on a CPU: each row's bits alone are its bits among others."""

from __future__ import annotations

import pytest
import torch
from attention_cases import make_batch, relative_error

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.invariant import InvariantKernels
from nanochat.kernels.layout import AttentionLayout

CPU = torch.device("cpu")


def rows(count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(width)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [64, 576, 40_000])
def test_a_norm_of_one_row_is_that_of_many(width: int, dtype: torch.dtype) -> None:
    kernels, x, weight = InvariantKernels(CPU), rows(17, width, dtype), rows(1, width, dtype)[0]
    whole = kernels.rms_norm(x, weight, 1e-6)
    assert torch.equal(torch.cat([kernels.rms_norm(x[i : i + 1], weight, 1e-6) for i in range(17)]), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "k"), [(960, 576), (130, 200)])
@pytest.mark.parametrize("widened", [(), (torch.bfloat16,)], ids=["own", "widened"])
def test_a_product_of_one_row_is_that_of_many(
    n: int, k: int, dtype: torch.dtype, widened: tuple[torch.dtype, ...]
) -> None:
    kernels, x = InvariantKernels(CPU, widened=widened), rows(45, k, dtype)
    packed = kernels.pack(rows(n, k, dtype), rows(1, n, dtype)[0])
    whole = kernels.linear(x, packed)
    assert (
        relative_error(whole, x.double() @ rows(n, k, dtype).double().T + rows(1, n, dtype).double()) <= 5e-3
    )
    for part in (slice(0, 1), slice(7, 8), slice(5, 31), slice(44, 45)):
        assert torch.equal(kernels.linear(x[part], packed), whole[part])


@pytest.mark.parametrize(("window", "soft_cap"), [(0, 0.0), (20, 0.0), (0, 30.0)])
def test_a_query_attends_alike_whatever_is_computed_with_it(window: int, soft_cap: float) -> None:
    lens, contexts = [1, 40, 1, 9], [70, 60, 17, 200]
    batch = make_batch(lens, contexts, heads=6, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    spec = AttentionSpec(
        num_heads=6, num_kv_heads=2, head_dim=64, scale=batch.scale, window=window, soft_cap=soft_cap
    )
    kernels, cache = InvariantKernels(CPU), (batch.k_cache, batch.v_cache)

    def attend(
        first: int, count: int, seqs: list[int], own_lens: list[int], own_contexts: list[int]
    ) -> torch.Tensor:
        tables = [batch.block_tables[seq].tolist() for seq in seqs]
        layout = AttentionLayout(
            slots=batch.slots[first : first + count], block_tables=batch.block_tables[seqs],
            query_start=torch.tensor([0, *own_lens]).cumsum(0).int(),
            context_lens=torch.tensor(own_contexts, dtype=torch.int32), query_lens=own_lens, contexts=own_contexts,
            tables=tables, max_context=max(own_contexts),
        )  # fmt: skip
        q = batch.q[first : first + count].view(count, 6, 64)
        return kernels.attend(q, spec, cache, kernels.plan(layout)).flatten(1)

    together = attend(0, 51, [0, 1, 2, 3], lens, contexts)
    expected = batch.expected(window=window or None, soft_cap=soft_cap or None)
    assert relative_error(together, expected) <= 5e-3
    start = 0
    for seq, (count, context) in enumerate(zip(lens, contexts, strict=True)):
        assert torch.equal(attend(start, count, [seq], [count], [context]), together[start : start + count])
        last = attend(start + count - 1, 1, [seq], [1], [context])  # the rest as if it were cached
        assert torch.equal(last, together[start + count - 1 : start + count])
        start += count

"""The plain torch kernels against the definitions, one number at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.kernels import native, pick
from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.layout import BLOCK_SIZE, AttentionLayout
from nanochat.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
NUM_BLOCKS = 24


@pytest.fixture
def kernels():
    return ReferenceKernels(CPU)


def layout_of(parts, tables, padding=0):
    """parts: (cached, new) of each sequence. `padding` rows without a slot follow."""
    slots = [
        table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
        for (cached, new), table in zip(parts, tables, strict=True)
        for p in range(cached, cached + new)
    ]
    news, contexts = [new for _, new in parts], [cached + new for cached, new in parts]
    width = max(len(table) for table in tables)
    return AttentionLayout(
        slots=torch.tensor(slots + [-1] * padding),
        block_tables=torch.tensor(
            [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32
        ),
        query_start=torch.tensor([0, *news]).cumsum(0).int(),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        query_lens=news,
        contexts=contexts,
        tables=tables,
        max_context=max(contexts),
    )


def expected_rows(q, k, v, cached, spec):
    """One sequence, query by query: q [new, heads, d], k and v [context, kv_heads, d]."""
    rows = []
    for r, query in enumerate(q):
        position = cached + r
        first = max(position - spec.window + 1, 0) if spec.window else 0
        for head, vector in enumerate(query):
            kv = head // (spec.num_heads // spec.num_kv_heads)
            scores = (k[first : position + 1, kv].double() @ vector.double()) * spec.scale
            if spec.soft_cap:
                scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
            rows.append(torch.softmax(scores, -1) @ v[first : position + 1, kv].double())
    return torch.stack(rows).view(q.shape).float()


PARTS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    PARTS,
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    st.sampled_from([0, 1, 5, 16, 37]),
    st.sampled_from([0.0, 3.0]),
    st.booleans(),
    st.integers(0, 2),
    st.integers(0, 2**16),
)
def test_attention_is_what_the_definition_says(parts, heads, window, soft_cap, in_a_run, padding, seed):
    random = torch.Generator().manual_seed(seed)
    num_heads, kv_heads = heads
    spec = AttentionSpec(
        num_heads=num_heads, num_kv_heads=kv_heads, head_dim=16, scale=0.3, window=window, soft_cap=soft_cap
    )
    blocks = list(range(NUM_BLOCKS)) if in_a_run else torch.randperm(NUM_BLOCKS, generator=random).tolist()
    tables = []
    for cached, new in parts:
        needed = -(-(cached + new) // BLOCK_SIZE)
        tables.append(blocks[:needed])
        blocks = blocks[needed:]
    layout = layout_of(parts, tables, padding)
    cache = tuple(torch.full((NUM_BLOCKS, BLOCK_SIZE, kv_heads, 16), float("nan")) for _ in range(2))
    histories = [torch.randn(2, cached + new, kv_heads, 16, generator=random) for cached, new in parts]
    for (cached, _), table, history in zip(parts, tables, histories, strict=True):
        for tensor, past in zip(cache, history, strict=True):
            for position in range(cached):
                tensor[table[position // BLOCK_SIZE], position % BLOCK_SIZE] = past[position]
    new_kv = torch.cat(
        [history[:, cached:] for (cached, _), history in zip(parts, histories, strict=True)], dim=1
    )
    new_kv = torch.cat([new_kv, torch.full((2, padding, kv_heads, 16), float("nan"))], dim=1)
    q = torch.randn(new_kv.shape[1], num_heads, 16, generator=random)

    kernels = ReferenceKernels(CPU)
    plan = kernels.plan(layout)
    kernels.write_kv(new_kv[0], new_kv[1], cache, plan)
    found = kernels.attend(q, spec, cache, plan)

    row = 0
    for (cached, new), (k, v) in zip(parts, histories, strict=True):
        expected = expected_rows(q[row : row + new], k, v, cached, spec)
        torch.testing.assert_close(found[row : row + new], expected, atol=2e-5, rtol=1e-5)
        row += new


def test_padding_writes_nothing(kernels):
    layout = layout_of([(0, 3)], [[1]], padding=2)
    cache = (torch.zeros(2, BLOCK_SIZE, 1, 4), torch.zeros(2, BLOCK_SIZE, 1, 4))
    kernels.write_kv(torch.ones(5, 1, 4), torch.ones(5, 1, 4), cache, kernels.plan(layout))
    for tensor in cache:
        assert tensor.view(-1, 4).sum(1).nonzero().flatten().tolist() == [16, 17, 18]


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
def test_a_norm_divides_by_the_root_of_the_mean_square(kernels, rows, dtype, wide):
    x = (torch.randn(rows, 96) * 3).to(dtype)
    weight = torch.rand(96) if wide else torch.rand(96).to(dtype)
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    found = kernels.rms_norm(x, weight, 1e-3)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(),
        expected,
        atol=1e-6 if dtype == torch.float32 else 2e-2,
        rtol=1e-2 if dtype != torch.float32 else 1e-5,
    )
    residual = torch.randn(rows, 96).to(dtype)
    normed, total = kernels.add_rms_norm(x, residual.clone(), weight, 1e-3)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, kernels.rms_norm(residual + x, weight, 1e-3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_keeps_what_is_not_finite_visible(kernels, bad):
    x = torch.ones(1, 8)
    x[0, 3] = bad
    assert not torch.isfinite(kernels.rms_norm(x, torch.ones(8), 1e-6)).all()


@pytest.mark.parametrize("rows", [1, 5, 50])
@pytest.mark.parametrize("rotated", [16, 12, 4])
def test_a_rotation_turns_pairs_by_their_angles(kernels, rows, rotated):
    angles = torch.rand(rows, rotated // 2) * 6
    x = torch.randn(rows, 3, 16)
    found = kernels.rotation(angles.cos() * 1.5, angles.sin() * 1.5, x)(x)
    half = rotated // 2
    pairs = (
        torch.complex(x[..., :half], x[..., half:rotated])
        * torch.polar(torch.full_like(angles, 1.5), angles)[:, None]
    )
    expected = torch.cat([pairs.real, pairs.imag, x[..., rotated:]], dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_relative_positions_are_all_that_a_rotation_shows(kernels):
    frequencies = 1.0 / 100 ** (torch.arange(8) / 8)
    x, y = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def turned(vector, position):
        angles = position * frequencies[None]
        return kernels.rotation(angles.cos(), angles.sin(), vector)(vector).flatten()

    assert float(turned(x, 3) @ turned(y, 11)) == pytest.approx(
        float(turned(x, 40) @ turned(y, 48)), abs=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_matrix_multiplies_like_the_plain_one(kernels, dtype, rows, biased):
    weight, x = torch.randn(48, 32).to(dtype), torch.randn(rows, 32).to(dtype)
    bias = torch.randn(48).to(dtype) if biased else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = kernels.linear(x, kernels.pack(weight.clone(), bias))
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=1e-2
    )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_is_activated_before_it_multiplies(kernels, activation):
    x, weight = torch.randn(4, 8), torch.randn(12, 8)
    gate, up = x @ weight[:6].T, x @ weight[6:].T
    gate = gate * torch.sigmoid(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    torch.testing.assert_close(
        kernels.gated(x, kernels.pack(weight), activation), gate * up, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_experts_are_summed_by_their_weights(kernels, normalized):
    x, router = torch.randn(9, 16), torch.randn(5, 16)
    gate_up, down = torch.randn(5, 12, 16), torch.randn(5, 16, 6)
    found = kernels.experts(x, router, gate_up, down, 2, normalized, "silu")
    for token, row in enumerate(x):
        probabilities = torch.softmax(router @ row, -1)
        chosen = probabilities.argsort(descending=True)[:2]
        total = probabilities[chosen].sum() if normalized else 1.0
        expected = torch.zeros(16)
        for expert in chosen:
            gate, up = (gate_up[expert] @ row).chunk(2)
            expected += probabilities[expert] / total * (down[expert] @ (F.silu(gate) * up))
        torch.testing.assert_close(found[token], expected, atol=1e-4, rtol=1e-5)  # of sums of some 40


def test_without_machine_code_a_cpu_gets_the_plain_kernels(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    assert type(pick(CPU)) is ReferenceKernels

"""The CPU's machine code against the definitions in float64, and the threads that run it."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.kernels import native, pick
from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.layout import BLOCK_SIZE

if not native.available():
    pytest.skip("no machine code on this machine", allow_module_level=True)

from paged_step import make_step

from nanochat.kernels import cpu
from nanochat.kernels.cpu import CpuKernels
from nanochat.kernels.cpu_matrix import Matrix
from nanochat.kernels.native import NativeCode, Team
from nanochat.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    return NativeCode(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module", params=["dots", "plain"])
def kernels(request, code):
    made = code if request.param == "dots" else NativeCode(None, dots=False)
    return CpuKernels(CPU, made, prompts=True)


def bf16(*shape):
    return torch.randn(*shape).bfloat16()


def close(found, expected, relative=0.01):
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=relative, rtol=relative)


ROWS = [1, 2, 3, 4, 6, 11, 16]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [(576, 1536), (96, 32), (64, 96), (1600, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_what_the_definition_says(kernels, rows, shape, biased):
    weight, x, bias = bf16(*shape), bf16(rows, shape[1]), bf16(shape[0]) if biased else None
    matrix = kernels.pack(weight, bias)
    assert isinstance(matrix, Matrix)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    close(kernels.linear(x, matrix), exact)
    if shape[0] % 32 == 0:
        gate, up = exact.chunk(2, dim=-1)
        close(kernels.gated(x, matrix, "silu"), F.silu(gate) * up, 0.02)
        close(kernels.gated(x, matrix, "gelu_tanh"), F.gelu(gate, approximate="tanh") * up, 0.02)
    residual, norm = bf16(rows, shape[0]), torch.rand(shape[0]).bfloat16()
    total = residual.double() + exact
    normed, stream = kernels.project_add_norm(x, matrix, residual.clone(), norm, 1e-3, None)
    close(stream, total, 0.05)  # what is added is rounded first
    close(normed, total / (total.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.double(), 0.05)


def test_rows_may_lie_apart(kernels):
    x, weight = bf16(5, 200)[:, 40:136], bf16(32, 96)
    close(kernels.linear(x, kernels.pack(weight)), x.double() @ weight.double().T)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(kernels, bad):
    x, weight, norm = bf16(3, 64), bf16(64, 64), torch.ones(64).bfloat16()
    x[1, 7] = bad
    matrix = kernels.pack(weight)
    residual = bf16(3, 64)
    for found in (
        kernels.linear(x, matrix),
        kernels.gated(x, matrix, "silu"),
        kernels.rms_norm(x, norm, 1e-5),
        kernels.project_add_norm(x, matrix, residual.clone(), norm, 1e-5, None)[0],
    ):
        assert torch.isfinite(found.float()).all(dim=1).tolist() == [True, False, True]


PARTS = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 4)), min_size=1, max_size=4)


PROMPTS = st.lists(
    st.tuples(st.integers(0, 40), st.one_of(st.just(1), st.integers(2, 40))), min_size=1, max_size=4
).filter(lambda parts: sum(new for _, new in parts) > 16)


@pytest.mark.parametrize("window", [0, 1, 5, 16, 37])
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 32), (6, 1, 96), (8, 2, 128)])
@settings(max_examples=4)
@given(PARTS, st.integers(0, 2**16))
def test_attention_is_what_the_definition_says(kernels, window, heads, parts, seed):
    expect_attention(kernels, window, heads, parts, seed)


@pytest.mark.parametrize("window", [0, 5, 37, 100])
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 32), (6, 1, 96), (8, 2, 128)])
@pytest.mark.parametrize("parts", [[(300, 1)], [(16, 1), (17, 1), (200, 1)], [(100, 3), (33, 1)]])
@pytest.mark.parametrize("loud", [1, 64])  # scores of several hundred: e^88 is all that float32 holds
def test_contexts_that_are_cut_are_put_together_again(code, window, heads, parts, loud, monkeypatch):
    monkeypatch.setattr(cpu, "_PART", BLOCK_SIZE)
    kernels = CpuKernels(CPU, code, threads=10)
    assert kernels.plan(make_step(parts, *heads, seed=3).layout).parts(10) > 2
    expect_attention(kernels, window, heads, parts, seed=3, loud=loud)


@pytest.mark.parametrize("window", [0, 1, 5, 16, 37])
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 32), (6, 1, 96), (8, 2, 128)])
@settings(max_examples=4)
@given(PROMPTS, st.integers(0, 2**16))
def test_prompts_attend_as_the_definition_says(kernels, window, heads, parts, seed):
    expect_attention(kernels, window, heads, parts, seed)


def expect_attention(kernels, window, heads, parts, seed, loud=1):
    num_heads, kv_heads, width = heads
    step = make_step(parts, num_heads, kv_heads, width, seed)
    step.qkv[:, : num_heads * width] *= loud
    spec = AttentionSpec(num_heads=num_heads, num_kv_heads=kv_heads, head_dim=width, scale=0.2, window=window)
    found = kernels.attention(step.qkv.clone(), spec, None, step.cache, kernels.plan(step.layout))
    row = 0
    for (cached, new), (k, v) in zip(step.parts, step.histories, strict=True):
        for r in range(new):
            position = cached + r
            first = max(position - window + 1, 0) if window else 0
            for head in range(num_heads):
                kv = head // (num_heads // kv_heads)
                query = step.qkv[row, head * width : (head + 1) * width].double()
                weights = torch.softmax(k[first : position + 1, kv].double() @ query * 0.2, -1)
                expected = weights @ v[first : position + 1, kv].double()
                close(found[row, head * width : (head + 1) * width], expected)
            row += 1


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rotated", [32, 64])
@pytest.mark.parametrize("parts", [[(3, 2), (40, 1)], [(3, 22), (40, 1), (0, 37)]], ids=["few", "many"])
def test_heads_are_normed_and_rotated_as_in_plain_torch(kernels, normed, rotated, parts):
    torch.manual_seed(1)
    step = make_step(parts, 4, 2, 64, seed=1)
    norms = [torch.rand(64).bfloat16() if normed else None for _ in range(2)]
    spec = AttentionSpec(
        num_heads=4, num_kv_heads=2, head_dim=64, scale=0.2, q_norm=norms[0], k_norm=norms[1]
    )
    plain = ReferenceKernels(CPU)
    angles = torch.rand(len(step.qkv), rotated // 2) * 6
    rotation = plain.rotation(angles.cos(), angles.sin(), step.qkv)
    other = tuple(tensor.clone() for tensor in step.cache)
    found = kernels.attention(step.qkv.clone(), spec, rotation, step.cache, kernels.plan(step.layout))
    expected = plain.attention(step.qkv.clone(), spec, rotation, other, plain.plan(step.layout))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    for mine, theirs in zip(step.cache, other, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0.02, equal_nan=True)


def test_compiled_code_is_kept_and_a_damaged_cache_is_of_no_consequence(tmp_path, monkeypatch):
    NativeCode(tmp_path)
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(NativeCode, "_compile", lambda self: pytest.fail("compiled again"))
    NativeCode(tmp_path)
    monkeypatch.undo()
    kept.write_bytes(b"cut short")
    again = CpuKernels(CPU, NativeCode(tmp_path))
    assert torch.isfinite(again.rms_norm(bf16(1, 32), torch.ones(32).bfloat16(), 1e-5)).all()


def test_every_ticket_is_taken_once_also_by_many_threads(code):
    kernels = CpuKernels(CPU, code, threads=5)
    x, weight = bf16(1, 32), bf16(4096, 32)
    matrix, expected = kernels.pack(weight), None
    for _ in range(300):
        found = kernels.linear(x, matrix)
        expected = found if expected is None else expected
        assert torch.equal(found, expected)


def test_helpers_end_with_their_team(code):
    before = set(threading.enumerate())
    team = Team(code, 3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del team
    assert not any(helper.is_alive() for helper in helpers)


def test_a_cpu_gets_machine_code_where_there_is_any(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert type(pick(CPU)) is CpuKernels


def test_reports_name_what_computes(kernels):
    assert kernels.describe(torch.bfloat16).startswith("machine code by LLVM up to 16 rows")
    assert kernels.describe(torch.float32).startswith("torch on the CPU, float32")

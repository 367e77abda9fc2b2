"""Each kernel of one device once in its smallest shape, for compute-sanitizer: minutes of memcheck and racecheck have all of
them (those between ranks are in `test_exchanges_small`).

What is expected is computed on the CPU, so that next to nothing but our own kernels runs under the tool. Where there is no GPU
they run in Triton's interpreter, so that what a GPU session begins with is known to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from attention_cases import Batch, angles, expect_written, make_batch, project, relative_error, rotated
from chip import DEVICE, DTYPE, MARKS, PDL, THERE, TOLERANCE
from dense_cases import gated, make_product
from expert_cases import make_mixture
from sampling_cases import Rows, make_rows

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.decode_plan import decode_plan
from nanochat.kernels.gemv_config import GemvConfig
from nanochat.kernels.triton_activation import gate_mul
from nanochat.kernels.triton_decode import decode_attention
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_matmul import invariant_linear
from nanochat.kernels.triton_norm import add_rms_norm, rms_norm
from nanochat.kernels.triton_rope import Rope, rope_and_write, write_kv
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows
from nanochat.kernels.triton_step import DecodeRows, Told, advance, embed

pytestmark = MARKS
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64


@pytest.fixture(autouse=True, scope="module")
def chip() -> Iterator[None]:
    """Where there is no GPU, the facts of one."""
    facts = SimpleNamespace(
        multi_processor_count=4, shared_memory_per_block_optin=100_000, major=8, minor=0, name="a chip"
    )
    with pytest.MonkeyPatch.context() as patch:
        if not THERE:
            patch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
        yield


def moved(what):
    """A dataclass of tensors, on the device."""
    values = {each.name: getattr(what, each.name) for each in fields(what)}
    return type(what)(
        **{name: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for name, v in values.items()}
    )


def make(lens: list[int], contexts: list[int], **options) -> Batch:
    return make_batch(
        lens, contexts, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=DTYPE, **options
    )  # fmt: skip


SPEC = AttentionSpec(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5)


@pytest.mark.parametrize(
    ("lens", "contexts"),
    [([1, 1, 1], [17, 0, 600]), ([3, 1, 8], [3, 33, 40]), ([20, 9], [300, 9]), ([1, 40], [70, 40])],
    ids=["decode", "queries", "prefill", "both"],
)
@pytest.mark.parametrize("deterministic", [False, True], ids=["usual", "tiled"])
def test_attention(lens: list[int], contexts: list[int], deterministic: bool) -> None:
    batch = make(lens, contexts)
    kernels, there = CudaKernels(DEVICE, deterministic=deterministic), moved(batch)
    q, cache = there.q.view(-1, HEADS, HEAD_DIM), (there.k_cache, there.v_cache)
    out = kernels.attend(q, SPEC, cache, kernels.plan(there.layout))
    assert relative_error(out.flatten(1).cpu(), batch.expected()) <= TOLERANCE
    assert not kernels.counters.any()


@pytest.mark.parametrize("contexts", [[33], [1], [17, 0, 300]], ids=["one row", "a first token", "rows"])
@pytest.mark.parametrize("way", ["fused", "early", "apart"])
def test_norm_rotation_and_write_come_with_attention(contexts: list[int], way: str) -> None:
    """ "early" reads cached keys before a dependent launch's wait, as decode steps do."""
    count = len(contexts)
    batch = make([1] * count, contexts, new_keys=False)
    qkv, (cos, sin), weight = project(batch), angles(count, HEAD_DIM), (torch.rand(HEAD_DIM) + 0.5).to(DTYPE)
    split = qkv.view(count, -1, HEAD_DIM)
    turned = rotated(split[:, : HEADS + KV_HEADS], cos, sin, weight)
    kernels, there = CudaKernels(DEVICE), moved(batch)
    cache, plan, rows = (there.k_cache, there.v_cache), kernels.plan(there.layout), qkv.to(DEVICE)
    rope = Rope(cos.to(DEVICE), sin.to(DEVICE), HEAD_DIM, weight.to(DEVICE), weight.to(DEVICE))
    if way == "apart":
        q = rope_and_write(rows, HEADS, rope, *cache, there.slots)
        out = kernels.attend(q.view(-1, HEADS, HEAD_DIM), SPEC, cache, plan).flatten(1)
    elif way == "fused":
        spec = AttentionSpec(
            num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=SPEC.scale, q_norm=rope.q_weight,
            k_norm=rope.k_weight,
        )  # fmt: skip
        out = kernels.attention(rows, spec, rope, cache, plan)
    else:
        out = attend_early(rows, there, rope, kernels)
    before = batch.k_cache, batch.v_cache
    back = replace(batch, k_cache=there.k_cache.cpu(), v_cache=there.v_cache.cpu())
    expect_written(back, before, turned[:, HEADS:], split[:, HEADS + KV_HEADS :].float(), TOLERANCE)
    assert relative_error(out.cpu(), back.expected(q=turned[:, :HEADS].flatten(1))) <= TOLERANCE


def attend_early(rows: torch.Tensor, there: Batch, rope: Rope, kernels: CudaKernels) -> torch.Tensor:
    out = torch.full((rows.shape[0], HEADS * HEAD_DIM), float("nan"), dtype=DTYPE, device=DEVICE)
    plan = decode_plan(
        seqs=rows.shape[0], queries=1, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, element=2,
        multiprocessors=kernels.multiprocessors, fused=True, early=kernels.pdl,
    )  # fmt: skip
    decode_attention(
        rows, there.k_cache, there.v_cache, out, block_tables=there.block_tables, query_start=there.query_start,
        context_lens=there.context_lens, counters=kernels.counters, plan=plan, num_heads=HEADS, scale=SPEC.scale,
        rope=rope, slots=there.slots, pdl=PDL, early=PDL,
    )  # fmt: skip
    return out


def test_padding_writes_no_keys() -> None:
    batch = make([1, 1], [0, 17], new_keys=False)
    there, new = moved(batch), torch.randn(2, KV_HEADS, HEAD_DIM).to(DTYPE)
    write_kv(new.to(DEVICE), new.to(DEVICE), there.k_cache, there.v_cache, there.slots)
    back = replace(batch, k_cache=there.k_cache.cpu(), v_cache=there.v_cache.cpu())
    expect_written(back, (batch.k_cache, batch.v_cache), new, new, 0.0)


def test_norms() -> None:
    x, delta, weight = (torch.randn(n, 200).to(DTYPE) for n in (3, 3, 1))
    x_there, delta_there, weight_there = (tensor.to(DEVICE) for tensor in (x, delta, weight[0]))
    norm = torch.nn.functional.rms_norm
    expected = norm(x.double(), (200,), weight[0].double(), 1e-6)
    assert relative_error(rms_norm(x_there, weight_there, 1e-6).cpu(), expected) <= TOLERANCE
    out, total = (tensor.cpu() for tensor in add_rms_norm(delta_there, x_there, weight_there, 1e-6))
    assert relative_error(total, x.double() + delta.double()) <= TOLERANCE
    expected = norm(total.double(), (200,), weight[0].double(), 1e-6)
    assert relative_error(out, expected) <= TOLERANCE


def test_gates() -> None:
    x = torch.randn(3, 2 * 1100).to(DTYPE)
    assert relative_error(gate_mul(x.to(DEVICE), "silu").cpu(), gated(x.double(), "silu")) <= TOLERANCE


def test_invariant_products() -> None:
    x, weight, bias = (
        torch.randn(70, 96).to(DTYPE),
        torch.randn(130, 96).to(DTYPE),
        torch.randn(130).to(DTYPE),
    )
    out = invariant_linear(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE)).cpu()
    assert relative_error(out, x.double() @ weight.double().T + bias.double()) <= TOLERANCE


@pytest.mark.parametrize(
    ("rows", "config", "kind"),
    [
        (1, None, {"norm": True, "bias": True}), (1, None, {"residual": True}),
        (3, GemvConfig(4, 256, prefetch=2), {"norm": True, "activation": "silu"}),
        (5, GemvConfig(16, 128, 1, dot=True), {"norm": True, "activation": "silu"}),
        (8, GemvConfig(16, 128, 1, dot=True), {"residual": True}),
    ],
    ids=["norm", "residual", "gated", "dot gated", "dot residual"],
)  # fmt: skip
def test_products(rows: int, config: GemvConfig | None, kind: dict) -> None:
    product = make_product(rows, 130, 640, dtype=DTYPE, **kind)
    there = moved(product)
    out = gemv(
        there.x, there.weight, out=there.poisoned(), config=config, norm=there.norm, eps=there.eps, bias=there.bias,
        residual=there.residual, activation=there.activation, pdl=PDL,
    )  # fmt: skip
    assert relative_error(out.cpu(), product.expected()) <= TOLERANCE


@pytest.mark.parametrize(("rows", "deterministic"), [(3, False), (12, False), (12, True)])
def test_experts(rows: int, deterministic: bool) -> None:
    """Of odd columns: torch's grouped products take none of them, so that all kernels here are ours."""
    mixture = make_mixture(rows, 5, 2, width=70, inner=12, dtype=DTYPE)
    there = moved(mixture)
    out = CudaKernels(DEVICE, deterministic=deterministic).experts(
        there.x, there.router, there.gate_up, there.down, 2, there.normalized, there.activation
    )
    assert relative_error(out.cpu(), mixture.expected()) <= TOLERANCE


def test_a_chain_of_dependent_launches() -> None:
    weights = [(torch.randn(128, 128) / 16).to(DTYPE).to(DEVICE) for _ in range(3)]
    start = torch.randn(1, 128).to(DTYPE).to(DEVICE)

    def run(pdl: bool) -> torch.Tensor:
        x = start
        for i, weight in enumerate(weights):
            x = gemv(x, weight, residual=x, pdl=pdl, late=i % 2 == 0)
        return x

    assert torch.equal(run(PDL), run(False))


@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_sampling(vocabulary: int) -> None:
    rows: Rows = make_rows(6, vocabulary, seed=vocabulary)
    ids, finite = sample_rows(rows.logits.to(DEVICE), sampling_of(rows), pdl=PDL)
    assert finite.all()
    assert all(rows.accepts(row, token, 1e-5) for row, token in enumerate(ids.tolist()))


def sampling_of(rows: Rows) -> SamplingRows:
    return moved(
        SamplingRows(
            torch.tensor(rows.temperature), torch.tensor(rows.top_k, dtype=torch.int32), torch.tensor(rows.top_p),
            torch.tensor(rows.min_p), torch.tensor(rows.seed), torch.tensor(rows.counter),
        )
    )  # fmt: skip


def test_the_two_ends_of_a_step() -> None:
    """Ids to hidden states and angles; drawn ids to the next step's rows and to the host."""
    table, positions = torch.randn(40, 200).to(DTYPE), torch.tensor([15, 0, 3])
    rows = DecodeRows(
        ids=torch.tensor([7, 0, 39]), positions=positions, context_lens=torch.tensor([16, 0, 4], dtype=torch.int32),
        slots=torch.tensor([31, -1, 19]), block_tables=torch.tensor([[1, 3], [0, 0], [2, 4]], dtype=torch.int32),
        counter=torch.zeros(3, dtype=torch.int64), stop_ids=torch.tensor([[-1], [-1], [9]], dtype=torch.int32),
    )  # fmt: skip
    there, frequencies = moved(rows), torch.rand(1, 16)
    x, cos, sin = embed(there.ids, there.positions, table.to(DEVICE), frequencies.to(DEVICE), pdl=PDL)
    assert torch.equal(x.cpu(), table[rows.ids])
    angle = positions[:, None].float() * frequencies
    assert (
        relative_error(cos[0].cpu(), angle.cos()) < 1e-5 and relative_error(sin[0].cpu(), angle.sin()) < 1e-5
    )
    told = Told(
        torch.zeros(4, 4, dtype=torch.int64, pin_memory=THERE),
        torch.zeros(1, dtype=torch.int64, device=DEVICE),
    )
    drawn, finite = torch.tensor([5, 0, 9], device=DEVICE), torch.tensor([True, True, True], device=DEVICE)
    advance(there, drawn, finite, told, pdl=PDL)
    assert there.slots.tolist() == [48, -1, -1], "the next block; empty; over"
    assert there.context_lens.tolist() == [17, 0, 0]
    assert there.ids.tolist()[0] == 5 and there.positions.tolist()[0] == 16
    assert told.turn.tolist() == [1]

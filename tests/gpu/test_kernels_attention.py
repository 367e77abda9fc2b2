"""Attention kernels on a GPU, against dense attention in float64 over the same cache."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from attention_cases import Batch, angles, expect_written, make_batch, project, relative_error, rotated

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.triton_prefill import _prefill
from nanochat.kernels.triton_rope import Rope, write_kv

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]
DEVICE = torch.device("cuda")
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}
LENGTHS = [1, 15, 16, 17, 32, 4097]
SHAPES = [  # heads, kv_heads, head_dim
    (16, 8, 128), (8, 8, 64), (6, 2, 80), (8, 2, 96), (5, 1, 128), (6, 1, 64), (7, 1, 128), (8, 1, 256), (32, 8, 128),
]  # fmt: skip


def spec_of(batch: Batch, **fields: object) -> AttentionSpec:
    _, _, kv_heads, head_dim = batch.k_cache.shape
    return AttentionSpec(
        num_heads=batch.num_heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=batch.scale, **fields
    )  # type: ignore[arg-type]


def attend(batch: Batch, kernels: CudaKernels, **fields: object) -> torch.Tensor:
    q = batch.q.view(batch.q.shape[0], batch.num_heads, -1)
    plan = kernels.plan(batch.layout)
    return kernels.attend(q, spec_of(batch, **fields), (batch.k_cache, batch.v_cache), plan).flatten(1)


def make(
    lens: list[int], contexts: list[int], shape: tuple[int, int, int], dtype: torch.dtype, **kw: object
) -> Batch:
    heads, kv_heads, head_dim = shape
    return make_batch(
        lens, contexts, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, device="cuda", **kw
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_agrees_with_dense_attention_at_every_length(
    shape: tuple[int, int, int], dtype: torch.dtype, kernels: CudaKernels
) -> None:
    for contexts in (LENGTHS, [4097], [640]):
        batch = make([1] * len(contexts), contexts, shape, dtype)
        assert relative_error(attend(batch, kernels), batch.expected()) <= TOLERANCE[dtype]
    assert int(kernels.counters.sum()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("queries", [2, 5, 8])
@pytest.mark.parametrize("shape", [(16, 8, 128), (8, 1, 64), (7, 1, 128)], ids=str)
def test_decode_of_several_queries_is_causal(
    shape: tuple[int, int, int], queries: int, dtype: torch.dtype, kernels: CudaKernels
) -> None:
    batch = make([queries, 1, queries - 1, queries], [queries, 33, 300, 4097], shape, dtype)
    assert relative_error(attend(batch, kernels), batch.expected()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("lens", [[1] * 5, [3, 700, 40, 17, 1], [64, 50, 130, 17, 1]], ids=str)
@pytest.mark.parametrize("window", [0, 1, 16, 100])
@pytest.mark.parametrize("soft_cap", [0.0, 30.0])
def test_windows_and_soft_caps(lens: list[int], window: int, soft_cap: float, kernels: CudaKernels) -> None:
    batch = make(lens, [700, 700, 150, 4097, 90], (8, 4, 128), torch.bfloat16)
    expected = batch.expected(window=window or None, soft_cap=soft_cap or None)
    assert relative_error(attend(batch, kernels, window=window, soft_cap=soft_cap), expected) <= 5e-3


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prefill_agrees_with_dense_attention_over_prefix_and_chunk(
    shape: tuple[int, int, int], dtype: torch.dtype, kernels: CudaKernels
) -> None:
    for lens, contexts in (([9, 15, 16, 17, 32, 300], [9, 300, 16, 4097, 32, 301]), ([50], [4097])):
        batch = make(lens, contexts, shape, dtype)
        assert relative_error(attend(batch, kernels), batch.expected()) <= TOLERANCE[dtype]
    assert int(kernels.counters.sum()) == 0


def test_decoding_sequences_go_in_front_of_prefilling_ones_in_one_step(kernels: CudaKernels) -> None:
    batch = make([1, 3, 1, 1, 1000, 20, 64], [17, 3, 4097, 640, 1000, 500, 64], (16, 8, 128), torch.bfloat16)
    assert relative_error(attend(batch, kernels), batch.expected()) <= 5e-3


def test_prompts_behind_any_number_of_decoding_sequences_share_a_kernel(kernels: CudaKernels) -> None:
    """Else a step in mid-reply waits a second for the compiler."""

    def compiled() -> int:
        return sum(len(kinds) for kinds, *_ in _prefill.device_caches.values())

    def step(decoding: int) -> None:
        lens = [1] * decoding + [40, 60]
        attend(make(lens, [100 * n for n in lens], (16, 8, 128), torch.bfloat16), kernels)

    step(1)
    before = compiled()
    for decoding in range(2, 10):
        step(decoding)
    assert compiled() == before


def test_padded_sequences_attend_to_nothing_and_come_out_as_zeros(kernels: CudaKernels) -> None:
    batch = make([1, 1, 1, 1], [40, 0, 4097, 0], (16, 8, 128), torch.bfloat16)
    out = attend(batch, kernels)
    assert relative_error(out, batch.expected()) <= 5e-3
    assert not out[[1, 3]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(
    ("shape", "rotary"),
    [((16, 8, 128), 128), ((8, 2, 96), 96), ((6, 2, 80), 32), ((4, 1, 64), 64), ((4, 4, 128), 64), ((8, 4, 256), 0)],
)  # fmt: skip
@pytest.mark.parametrize("lens", [[1, 1, 1, 1], [2, 8, 1, 1], [300, 1, 1, 17]], ids=str)
def test_norm_rotation_and_write_come_with_attention(
    shape: tuple[int, int, int], rotary: int, norm: bool, lens: list[int], dtype: torch.dtype,
    kernels: CudaKernels,
) -> None:  # fmt: skip
    heads, kv_heads, head_dim = shape
    batch = make(lens, [300, 1025, 0, 17], shape, dtype, new_keys=False)
    qkv = project(batch)
    cos, sin = angles(qkv.shape[0], rotary, "cuda") if rotary else (None, None)
    weight = torch.rand(head_dim, device="cuda").to(dtype) + 0.5 if norm else None
    spec = spec_of(batch, q_norm=weight, k_norm=weight)
    rotation = Rope(cos, sin, rotary) if cos is not None and sin is not None else None
    split = qkv.view(qkv.shape[0], -1, head_dim)
    if cos is None or sin is None:
        cos, sin = torch.ones(qkv.shape[0], 1, device="cuda"), torch.zeros(qkv.shape[0], 1, device="cuda")
    turned = rotated(split[:, : heads + kv_heads], cos, sin, weight)
    before = batch.k_cache.clone(), batch.v_cache.clone()
    plan = kernels.plan(batch.layout)
    out = kernels.attention(qkv, spec, rotation, (batch.k_cache, batch.v_cache), plan)
    v = split[:, heads + kv_heads :]
    expect_written(batch, before, turned[:, heads:], v.float(), TOLERANCE[dtype])
    expected = batch.expected(q=turned[:, :heads].flatten(1))
    assert relative_error(out, expected) <= TOLERANCE[dtype]


def test_padding_writes_no_keys(kernels: CudaKernels) -> None:
    batch = make([1, 1], [0, 0], (4, 2, 64), torch.bfloat16, new_keys=False)
    before = batch.k_cache.clone(), batch.v_cache.clone()
    qkv = project(batch)
    cos, sin = angles(2, 64, "cuda")
    kernels.attention(
        qkv,
        spec_of(batch),
        Rope(cos, sin, 64),
        (batch.k_cache, batch.v_cache),
        kernels.plan(batch.layout),
    )
    write_kv(
        qkv.view(2, -1, 64)[:, :2], qkv.view(2, -1, 64)[:, :2], batch.k_cache, batch.v_cache, batch.slots
    )
    assert torch.equal(batch.k_cache.nan_to_num(7.0), before[0].nan_to_num(7.0))
    assert torch.equal(batch.v_cache.nan_to_num(7.0), before[1].nan_to_num(7.0))


def test_in_the_deterministic_mode_a_row_has_the_same_bits_alone_and_among_others() -> None:
    kernels = CudaKernels(DEVICE, deterministic=True)
    lens, contexts = [1, 40, 1, 1, 700, 8, 1], [640, 1100, 17, 4097, 1300, 3000, 2049]
    batch = make(lens, contexts, (16, 8, 128), torch.bfloat16)
    together = attend(batch, kernels)
    assert relative_error(together, batch.expected()) <= 5e-3
    start = 0
    for seq, count in enumerate(lens):
        alone = Batch(
            batch.q[start : start + count], batch.k_cache, batch.v_cache, batch.block_tables[seq : seq + 1],
            torch.tensor([0, count], dtype=torch.int32, device="cuda"), batch.context_lens[seq : seq + 1],
            batch.slots[start : start + count], batch.positions[start : start + count], [count], [contexts[seq]], 16,
        )  # fmt: skip
        assert torch.equal(attend(alone, kernels), together[start : start + count])
        # The last row alone, as if all before it were cached.
        last = Batch(
            alone.q[-1:], batch.k_cache, batch.v_cache, alone.block_tables,
            torch.tensor([0, 1], dtype=torch.int32, device="cuda"), alone.context_lens, alone.slots[-1:],
            alone.positions[-1:], [1], [contexts[seq]], 16,
        )  # fmt: skip
        assert torch.equal(attend(last, kernels), together[start + count - 1 : start + count])
        start += count


def test_without_the_deterministic_mode_the_batch_may_change_bits(kernels: CudaKernels) -> None:
    batch = make([1] * 64, [4097] + [640] * 63, (16, 8, 128), torch.bfloat16)
    alone = Batch(
        batch.q[:1], batch.k_cache, batch.v_cache, batch.block_tables[:1], batch.query_start[:2],
        batch.context_lens[:1], batch.slots[:1], batch.positions[:1], [1], [4097], 16,
    )  # fmt: skip
    assert not torch.equal(attend(alone, kernels), attend(batch, kernels)[:1])

"""A whole decode step in fused kernels: against dense float32, in a graph, and with padded rows."""

# ruff: noqa: E731

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from attention_cases import Batch, make_batch, relative_error, rotated
from dense_cases import gated
from dense_layer import Layer, Mlp

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import CudaKernels, Weight
from nanochat.kernels.fused_decoder import DenseModel, FusedDecoder
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows
from nanochat.kernels.triton_step import DecodeRows, Told, advance

pytestmark = pytest.mark.gpu
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, VOCAB, LAYERS = 8, 4, 64, 512, 768, 3000, 3


def make_model(dtype: torch.dtype, head_dim: int = HEAD_DIM, plain: bool = False) -> DenseModel:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).cuda()

    def norm(n: int) -> torch.Tensor:
        return (torch.rand(n, generator=generator) + 0.5).to(dtype).cuda()

    def weight(n: int, k: int, bias: bool = False) -> Weight:
        return Weight(random(n, k, scale=k**-0.5), random(n) if bias else None)

    layers = [
        Layer(
            0, AttentionSpec(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=head_dim, scale=head_dim**-0.5,
                             q_norm=None if plain else norm(head_dim), k_norm=None if plain else norm(head_dim)),
            weight((HEADS + 2 * KV_HEADS) * head_dim, HIDDEN, bias=not plain), weight(HIDDEN, HEADS * head_dim),
            Mlp(weight(2 * INNER, HIDDEN), weight(HIDDEN, INNER)), norm(HIDDEN), norm(HIDDEN),
        )
        for _ in range(LAYERS)
    ]  # fmt: skip
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim).cuda()[None]
    return DenseModel(
        embedding=random(VOCAB, HIDDEN), layers=layers, final_norm=norm(HIDDEN), head=weight(VOCAB, HIDDEN),
        frequencies=frequencies, eps=1e-6, activation="silu",
    )  # fmt: skip


def caches(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch.k_cache.clone(), batch.v_cache.clone()) for _ in range(LAYERS)]


def rows_of(batch: Batch) -> DecodeRows:
    count = batch.q.shape[0]
    return DecodeRows(
        ids=torch.arange(5, 5 + count, device="cuda"), positions=batch.positions.clone(),
        context_lens=batch.context_lens.clone(), slots=batch.slots.clone(), block_tables=batch.block_tables,
        counter=torch.zeros(count, dtype=torch.int64, device="cuda"),
        stop_ids=torch.full((len(batch.contexts), 2), -1, dtype=torch.int32, device="cuda"),
    )  # fmt: skip


def expected_logits(model: DenseModel, batch: Batch, rows: DecodeRows) -> torch.Tensor:
    """The same step in float32, each layer with the batch's own cached keys."""
    x = model.embedding[rows.ids].float()
    angle = rows.positions.float()[:, None] * model.frequencies[0]
    norm = lambda t, w: F.rms_norm(t, (HIDDEN,), w.float(), 1e-6)
    for layer in model.layers:
        qkv = norm(x, layer.input_norm) @ layer.qkv.weight.float().T
        if layer.qkv.bias is not None:
            qkv = qkv + layer.qkv.bias.float()
        split = qkv.view(x.shape[0], -1, layer.spec.head_dim)
        q = rotated(split[:, :HEADS], angle.cos(), angle.sin(), layer.spec.q_norm)
        k = rotated(split[:, HEADS : HEADS + KV_HEADS], angle.cos(), angle.sin(), layer.spec.k_norm)
        own = make_copy(batch)
        alive = batch.slots >= 0
        own.k_cache.flatten(0, 1)[batch.slots[alive]] = k[alive]
        own.v_cache.flatten(0, 1)[batch.slots[alive]] = split[:, HEADS + KV_HEADS :][alive]
        x = x + own.expected(q=q.flatten(1)) @ layer.output.weight.float().T
        inner = gated(norm(x, layer.mlp_norm) @ layer.mlp.gate_up.weight.float().T, "silu")
        x = x + inner @ layer.mlp.down.weight.float().T
    return norm(x, model.final_norm) @ model.head.weight.float().T


def make_copy(batch: Batch) -> Batch:
    return Batch(
        batch.q, batch.k_cache.float(), batch.v_cache.float(), batch.block_tables, batch.query_start,
        batch.context_lens, batch.slots, batch.positions, batch.query_lens, batch.contexts, batch.num_heads,
    )  # fmt: skip


def make(lens: list[int], contexts: list[int], dtype: torch.dtype, head_dim: int = HEAD_DIM) -> Batch:
    return make_batch(
        lens,
        contexts,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        dtype=dtype,
        device="cuda",
        new_keys=False,
    )


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("lens", "contexts"), [([1], [1]), ([1], [700]), ([1, 1, 1], [17, 0, 300]), ([1] * 8, list(range(1, 900, 120)))],
)  # fmt: skip
def test_a_step_agrees_with_dense_float32(
    lens: list[int], contexts: list[int], dtype: torch.dtype, kernels: CudaKernels
) -> None:
    model, batch = make_model(dtype), make(lens, contexts, dtype)
    rows = rows_of(batch)
    decoder = FusedDecoder(model, kernels)
    logits = decoder.logits(rows, batch.query_start, caches(batch))
    assert logits.dtype == torch.float32
    assert relative_error(logits, expected_logits(model, batch, rows)) <= (
        2e-2 if dtype == torch.bfloat16 else 2e-5
    )
    assert int(kernels.counters.sum()) == 0


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("plain", [False, True], ids=["qk-norm and bias", "plain"])
def test_a_row_agrees_at_every_length(head_dim: int, plain: bool, kernels: CudaKernels) -> None:
    model = make_model(torch.bfloat16, head_dim, plain)
    decoder = FusedDecoder(model, kernels)
    for context in (1, 2, 17, 64, 700, 4097, 9000):
        batch = make([1], [context], torch.bfloat16, head_dim)
        rows = rows_of(batch)
        logits = decoder.logits(rows, batch.query_start, caches(batch))
        assert relative_error(logits, expected_logits(model, batch, rows)) <= 2e-2, context


def test_a_step_gives_the_same_bits_every_time(kernels: CudaKernels) -> None:
    decoder, batch = FusedDecoder(make_model(torch.bfloat16), kernels), make([1], [700], torch.bfloat16)
    rows, kv = rows_of(batch), caches(batch)
    first = decoder.logits(rows, batch.query_start, kv)
    for _ in range(50):
        assert torch.equal(decoder.logits(rows, batch.query_start, kv), first)


@pytest.mark.parametrize("contexts", [[33], [17, 0, 300]], ids=str)
def test_a_step_reads_nothing_that_it_did_not_write(
    contexts: list[int], kernels: CudaKernels, request: pytest.FixtureRequest
) -> None:
    decoder = FusedDecoder(make_model(torch.bfloat16), kernels)
    batch = make([1] * len(contexts), contexts, torch.bfloat16)
    logits = decoder.logits(rows_of(batch), batch.query_start, caches(batch))
    assert logits.isfinite().all()
    request.getfixturevalue("poisoned_memory")
    assert torch.equal(decoder.logits(rows_of(batch), batch.query_start, caches(batch)), logits)


@pytest.mark.parametrize("count", [1, 4])
def test_replayed_steps_draw_what_eager_steps_draw(count: int, kernels: CudaKernels) -> None:
    model = make_model(torch.bfloat16)
    decoder = FusedDecoder(model, kernels)
    batch = make([1] * count, [100, 0, 60, 16][:count], torch.bfloat16)
    wide = batch.block_tables.new_zeros(count, 32)
    free = torch.arange(batch.k_cache.shape[0], batch.k_cache.shape[0] + 128, device="cuda").view(4, 32)[
        :count
    ]
    for seq, context in enumerate(batch.contexts):
        used = -(-context // 16)
        wide[seq, :used] = batch.block_tables[seq, :used]
        wide[seq, used:] = free[seq, used:]
    batch.block_tables = wide
    batch.k_cache = torch.cat(
        (batch.k_cache, torch.full_like(batch.k_cache[:1].repeat(128, 1, 1, 1), float("nan")))
    )
    batch.v_cache = batch.k_cache.clone()
    for cache in (batch.k_cache, batch.v_cache):
        for seq, context in enumerate(batch.contexts):
            for position in range(context):
                cache[wide[seq, position // 16].long(), position % 16] = torch.randn(
                    KV_HEADS, HEAD_DIM, device="cuda"
                )

    told = Told(
        torch.zeros(64, 1 + count, dtype=torch.int64, pin_memory=True),
        torch.zeros(1, dtype=torch.int64, device="cuda"),
    )

    stops = [-1] * count

    def start() -> tuple[DecodeRows, SamplingRows, list[tuple[torch.Tensor, torch.Tensor]]]:
        rows = rows_of(batch)
        rows.stop_ids[:, 0] = torch.tensor(stops)
        full = lambda value, dtype: torch.full((count,), value, dtype=dtype, device="cuda")
        sampling = SamplingRows(
            full(0.8, torch.float32), full(50, torch.int32), full(0.95, torch.float32), full(0.0, torch.float32),
            torch.arange(count, device="cuda"), rows.counter,
        )  # fmt: skip
        return rows, sampling, caches(batch)

    def step(
        rows: DecodeRows, sampling: SamplingRows, kv: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        logits = decoder.logits(rows, batch.query_start, kv)
        ids, finite = sample_rows(logits, sampling, pdl=kernels.pdl)
        advance(rows, ids, finite, told, pdl=kernels.pdl)
        return ids

    rows, sampling, kv = start()
    endless = [step(rows, sampling, kv).tolist() for _ in range(24)]
    if count == 4:
        stops[2:] = endless[10][2], endless[23][3]  # two rows end on the way, each at its own step
    rows, sampling, kv = start()
    eager = [torch.where(rows.context_lens > 0, step(rows, sampling, kv), -1).tolist() for _ in range(40)]
    rows_eager = rows
    rows, sampling, kv = start()
    step(*start())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = step(rows, sampling, kv)
    drawn = []
    for _ in range(40):
        alive = rows.context_lens > 0
        graph.replay()
        drawn.append(torch.where(alive, ids, -1).tolist())
    assert drawn == eager
    for name in ("ids", "positions", "context_lens", "slots", "counter"):
        assert torch.equal(getattr(rows, name), getattr(rows_eager, name)), name
    assert rows.context_lens.tolist() == [140, 0, 0, 0][:count]
    assert rows.slots.tolist()[1:] == [-1, -1, -1][: count - 1]

"""Times of every kernel on the GPU that is there, against its measured read bandwidth.

    python tests/gpu/bench_kernels.py [section ...]     sections: tune attention prefill dense experts sampling step

Layer shapes are Qwen3-0.6B's and Qwen3-8B's. Times are of launches in a captured graph over data that no cache holds.
"""

# ruff: noqa: E731

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2]))

from dense_layer import Layer, Mlp

from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import CudaKernels, Weight
from nanochat.kernels.decode_plan import DecodePlan, decode_plan
from nanochat.kernels.fused_decoder import DenseModel, FusedDecoder
from nanochat.kernels.gemv_config import GemvShape, candidate_configs
from nanochat.kernels.triton_activation import gate_mul
from nanochat.kernels.triton_decode import decode_attention
from nanochat.kernels.triton_experts import choose, few_rows
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_grouped import library_takes, many_rows
from nanochat.kernels.triton_norm import add_rms_norm
from nanochat.kernels.triton_prefill import prefill_attention, prefill_plan
from nanochat.kernels.triton_rope import Rope, rope_and_write
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows
from nanochat.kernels.triton_step import DecodeRows, Told, advance
from nanochat.kernels.tuning import time_of_launches, tune_gemv

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    layers: int
    vocab: int = 151936
    head_dim: int = 128

    def products(self, rows: int) -> dict[str, GemvShape]:
        width = self.heads * self.head_dim
        return {
            "qkv": GemvShape(rows, width + 2 * self.kv_heads * self.head_dim, self.hidden, False, True),
            "out": GemvShape(rows, self.hidden, width, False, False),
            "gate_up": GemvShape(rows, self.inner, self.hidden, True, True),
            "down": GemvShape(rows, self.hidden, self.inner, False, False),
            "head": GemvShape(rows, self.vocab, self.hidden, False, True),
        }


SMALL = Shape("Qwen3-0.6B", 1024, 16, 8, 3072, 28)
LARGE = Shape("Qwen3-8B", 4096, 32, 8, 12288, 36)


@triton.jit
def _read(x_ptr, out_ptr, n, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    total = tl.zeros([BLOCK], tl.int32)
    base = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    for i in tl.static_range(STEPS):
        total += tl.load(x_ptr + base + i * BLOCK + tl.arange(0, BLOCK))
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, 0))


def read_bandwidth() -> float:
    """Bytes a second that a plain reading kernel gets from device memory."""
    x = torch.randint(0, 2**31 - 1, (1 << 30,), dtype=torch.int32, device=DEVICE)
    best = 0.0
    for block, steps in ((1024, 8), (2048, 8), (2048, 4)):
        programs = x.numel() // (block * steps)
        out = torch.empty(programs, dtype=torch.int32, device=DEVICE)
        seconds = time_of_launches(
            [lambda b=block, s=steps, p=programs, o=out: _read[(p,)](x, o, 0, BLOCK=b, STEPS=s)]
        )
        best = max(best, x.numel() * 4 / seconds)
    return best


def line(name: str, seconds: float, moved: float, peak: float, extra: str = "") -> None:
    rate = moved / seconds
    print(f"{name:44s} {seconds * 1e6:9.2f} us {rate / 1e9:7.0f} GB/s {rate / peak:6.1%} {extra}", flush=True)


def tune(kernels: CudaKernels, peak: float) -> None:
    for shape, rows in itertools.product((SMALL, LARGE), (1, 2, 4, 8)):
        for name, product in shape.products(rows).items():
            times = tune_gemv(product, kernels.tuning, dtype=DTYPE, device=DEVICE, pdl=kernels.pdl)
            best = min(times, key=lambda c: times[c])
            count = product.n * (2 if product.gated else 1)
            weight = [
                torch.randn(count, product.k, device=DEVICE).to(DTYPE)
                for _ in range(max(4, min(32, -(-(256 << 20) // (2 * count * product.k)))))
            ]
            x = torch.randn(rows, product.k, device=DEVICE).to(DTYPE)
            library = time_of_launches([lambda w=w: torch.nn.functional.linear(x, w) for w in weight])
            mode = (
                f"dot n{best.block_n} k{best.block_k} w{best.warps}"
                if best.dot
                else f"fma n{best.block_n} w{best.warps}"
            )
            first = next(iter(times.values()))
            line(f"{shape.name} {name} x{rows}", times[best], count * product.k * 2, peak,
                 f"{mode:18s} default {first * 1e6:.2f} library {library * 1e6:.2f}")  # fmt: skip
            del weight
    kernels.tuning.save()


def paged(
    batch: int, context: int, shape: Shape, copies: int, spare: int = 0
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    blocks = -(-context // 16) + spare
    pool = [
        tuple(
            torch.randn(batch * blocks, 16, shape.kv_heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
            for _ in range(2)
        )
        for _ in range(copies)
    ]
    return pool, torch.randperm(batch * blocks, device=DEVICE).to(torch.int32).view(batch, blocks)  # type: ignore[return-value]


def decode_launch(
    shape: Shape, batch: int, context: int, pool: list[tuple[torch.Tensor, torch.Tensor]], tables: torch.Tensor, plan: DecodePlan,
    counters: torch.Tensor, contexts: torch.Tensor | None = None,
) -> list[Callable[[], object]]:  # fmt: skip
    q = torch.randn(batch, shape.heads * shape.head_dim, device=DEVICE, dtype=DTYPE)
    out = torch.empty_like(q)
    start = torch.arange(batch + 1, dtype=torch.int32, device=DEVICE)
    lens = torch.full((batch,), context, dtype=torch.int32, device=DEVICE) if contexts is None else contexts
    return [
        lambda k=k, v=v: decode_attention(
            q,
            k,
            v,
            out,
            block_tables=tables,
            query_start=start,
            context_lens=lens,
            counters=counters,
            plan=plan,
            num_heads=shape.heads,
            scale=shape.head_dim**-0.5,
        )
        for k, v in pool
    ]


def attention(kernels: CudaKernels, peak: float) -> None:
    torch.manual_seed(0)
    for batch, context in itertools.product((1, 8, 64, 256), (640, 4096, 16384)):
        size = batch * context * SMALL.kv_heads * SMALL.head_dim * 4
        pool, tables = paged(batch, context, SMALL, max(1, min(28, (1 << 30) // size)))
        base = decode_plan(
            seqs=batch,
            queries=1,
            heads=16,
            kv_heads=8,
            head_dim=128,
            element=2,
            multiprocessors=kernels.multiprocessors,
            fused=False,
        )
        variants = {base}
        for splits in (8, 16, 32) if batch == 1 else (1, 2, 4):
            variants |= {
                replace(base, splits=splits),
                replace(base, splits=splits, block_n=128, min_split=max(128, base.min_split)),
            }
        variants |= {replace(base, splits=4, min_split=256), replace(base, warps=8)}
        times = {
            p: time_of_launches(
                decode_launch(SMALL, batch, context, pool, tables, p, kernels.counters), rounds=5
            )
            for p in variants
        }
        best = min(times, key=lambda p: times[p])
        line(f"decode b{batch} c{context}", times[base], size, peak, f"s{base.splits} m{base.min_split}")
        show = sorted(times, key=lambda p: times[p])[:3]
        print(
            "      best:",
            "; ".join(
                f"{times[p] * 1e6:.2f} s{p.splits} m{p.min_split} n{p.block_n} st{p.stages} w{p.warps}"
                for p in show
            ),
        )
        del pool, best
    lens = torch.randint(100, 2048, (256,), dtype=torch.int32, device=DEVICE)
    pool, tables = paged(256, 2048, SMALL, 2)
    base = decode_plan(
        seqs=256,
        queries=1,
        heads=16,
        kv_heads=8,
        head_dim=128,
        element=2,
        multiprocessors=kernels.multiprocessors,
        fused=False,
    )
    size = int(lens.sum()) * SMALL.kv_heads * SMALL.head_dim * 4
    for plan in (
        base,
        replace(base, splits=1),
        replace(base, splits=2),
        replace(base, splits=4, min_split=256),
        replace(base, splits=4),
        replace(base, splits=8),
    ):
        seconds = time_of_launches(
            decode_launch(SMALL, 256, 2048, pool, tables, plan, kernels.counters, lens), rounds=5
        )
        line(
            "decode b256 ragged 100-2048",
            seconds,
            size,
            peak,
            f"s{plan.splits} m{plan.min_split} fixed {plan.split_size} n{plan.block_n} st{plan.stages}",
        )


def prefill(kernels: CudaKernels, peak: float) -> None:
    for tokens, context in (
        (512, 512),
        (4096, 4096),
        (16384, 16384),
        (50, 8050),
        (512, 32768),
        (2048, 32768),
    ):
        pool, tables = paged(1, context, SMALL, 2)
        q = torch.randn(tokens, 2048, device=DEVICE, dtype=DTYPE)
        out = torch.empty_like(q)
        start = torch.tensor([0, tokens], dtype=torch.int32, device=DEVICE)
        lens = torch.tensor([context], dtype=torch.int32, device=DEVICE)
        base = prefill_plan(tokens=tokens, seqs=1, heads=16, kv_heads=8, head_dim=128, element=2, max_context=context,
                            multiprocessors=kernels.multiprocessors, shared_memory=kernels.shared_memory)  # fmt: skip
        variants = [
            base,
            replace(base, stages=2),
            replace(base, block_n=128, stages=2),
            replace(base, block_q=32, warps=4),
            replace(base, block_q=64, warps=8),
            replace(base, block_q=32, warps=4, stages=2),
        ]
        if tokens <= 512:
            variants += [replace(base, splits=s) for s in (1, 2, 4, 8, 16)]
        flops = 4 * 2048 * (tokens * (context - tokens) + tokens * (tokens + 1) / 2)
        times = {}
        for plan in dict.fromkeys(variants):
            times[plan] = time_of_launches([lambda k=k, v=v, p=plan: prefill_attention(
                q, k, v, out, block_tables=tables, query_start=start, context_lens=lens, counters=kernels.counters, plan=p,
                num_heads=16, scale=128**-0.5) for k, v in pool], rounds=4)  # fmt: skip
        name = lambda p: f"q{p.block_q} n{p.block_n} s{p.splits} w{p.warps} st{p.stages}"
        print(
            f"prefill {tokens} of {context}: {times[base] * 1e6:.1f} us {flops / times[base] / 1e12:.0f} TFLOP/s ({name(base)}); "
            + "; ".join(f"{times[p] * 1e6:.1f} {name(p)}" for p in sorted(times, key=lambda p: times[p])[:4]),
            flush=True,
        )
        if tokens == context:
            heads = [torch.randn(1, h, tokens, 128, device=DEVICE, dtype=DTYPE) for h in (16, 8, 8)]
            seconds = time_of_launches(
                [
                    lambda: torch.nn.functional.scaled_dot_product_attention(
                        *heads, is_causal=True, enable_gqa=True
                    )
                ]
                * 2,
                rounds=4,
            )
            print(
                f"      torch sdpa, contiguous: {seconds * 1e6:.1f} us {flops / seconds / 1e12:.0f} TFLOP/s"
            )


def dense(kernels: CudaKernels, peak: float) -> None:
    for tokens in (1, 64, 8192):
        copies = 8 if tokens == 8192 else 28
        xs = [torch.randn(tokens, 1024, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
        weight = torch.ones(1024, device=DEVICE, dtype=DTYPE)
        line(
            f"add_rms_norm {tokens}",
            time_of_launches([lambda x=x: add_rms_norm(xs[0], x, weight, 1e-6) for x in xs]),
            tokens * 1024 * 8,
            peak,
        )
        gates = [torch.randn(tokens, 6144, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
        line(
            f"silu_mul {tokens}",
            time_of_launches([lambda g=g: gate_mul(g, "silu") for g in gates]),
            tokens * 9216 * 2,
            peak,
        )
        pool, _ = paged(1, max(tokens, 16), SMALL, copies)
        qkv = [torch.randn(tokens, 4096, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
        cos = torch.randn(tokens, 64, device=DEVICE)
        rope = Rope(cos, cos, 128, weight[:128], weight[:128])
        slots = torch.arange(tokens, device=DEVICE)
        line(
            f"norm_rope_write {tokens}",
            time_of_launches(
                [
                    lambda a=a, kv=kv: rope_and_write(a, 16, rope, *kv, slots)
                    for a, kv in zip(qkv, pool, strict=True)
                ]
            ),
            tokens * 8192 * 2,
            peak,
        )


def experts(kernels: CudaKernels, peak: float) -> None:
    """One layer of Qwen3-30B-A3B; bytes are those of the experts that evenly routed rows meet."""
    count, per_token, hidden, inner = 128, 8, 2048, 768
    weights = [
        (torch.randn(count, 2 * inner, hidden, device=DEVICE, dtype=DTYPE) / 32,
         torch.randn(count, hidden, inner, device=DEVICE, dtype=DTYPE) / 32)
        for _ in range(4)
    ]  # fmt: skip
    router = torch.randn(count, hidden, device=DEVICE, dtype=DTYPE) / 32
    for rows in (1, 2, 4, 8, 16, 32, 64, 256, 1024):
        x = torch.randn(rows, hidden, device=DEVICE, dtype=DTYPE)
        chosen_weights, chosen = choose(torch.randn(rows, count, device=DEVICE), per_token, True)
        met = count * (1 - (1 - per_token / count) ** rows)
        size = int(met * 3 * inner * hidden * DTYPE.itemsize)
        ways: dict[str, Callable[..., torch.Tensor]] = {
            "matrix-vector": few_rows,
            "our groups": many_rows,
            "our groups, steady": lambda *a: many_rows(*a, steady=True),
        }
        if library_takes(x, weights[0][0], torch.cuda.get_device_capability()[0]):
            ways["torch's groups"] = lambda *a: many_rows(*a, library=True)
        for name, way in ways.items():
            if way is few_rows and rows > 32:
                continue
            launches = [lambda w=w: way(x, chosen_weights, chosen, *w, "silu") for w in weights]
            line(f"experts b{rows} {name}", time_of_launches(launches), size, peak)
        whole = [lambda w=w: kernels.experts(x, router, *w, per_token, True, "silu") for w in weights]
        line(f"experts b{rows} with the router, as the engine runs them", time_of_launches(whole), size, peak)


def sampling(kernels: CudaKernels, peak: float) -> None:
    for batch in (1, 8, 64, 256):
        logits = [torch.randn(batch, 151936, device=DEVICE) * 3 for _ in range(max(1, min(16, 256 // batch)))]
        full = lambda value, dtype: torch.full((batch,), value, dtype=dtype, device=DEVICE)
        for name, k, p in (
            ("none of the filters", 0, 1.0),
            ("k20 p.95", 20, 0.95),
            ("k200 p.95", 200, 0.95),
            ("p.9", 0, 0.9),
        ):
            rows = SamplingRows(full(0.6, torch.float32), full(k, torch.int32), full(p, torch.float32), full(0.0, torch.float32),
                                torch.arange(batch, device=DEVICE), torch.arange(batch, device=DEVICE))  # fmt: skip
            seconds = time_of_launches([lambda x=x: sample_rows(x, rows, pdl=kernels.pdl) for x in logits])
            line(f"sampling b{batch} {name}", seconds, batch * 151936 * 4, peak)


def make_model(shape: Shape) -> DenseModel:
    torch.manual_seed(0)

    def weight(n: int, k: int) -> Weight:
        return Weight((torch.randn(n, k, device=DEVICE) * k**-0.5).to(DTYPE), None)

    ones = torch.ones(shape.hidden, device=DEVICE, dtype=DTYPE)
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    spec = AttentionSpec(
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=shape.head_dim**-0.5,
        q_norm=ones[:128],
        k_norm=ones[:128],
    )
    layers = [
        Layer(0, spec, weight(width + 2 * kv, shape.hidden), weight(shape.hidden, width),
              Mlp(weight(2 * shape.inner, shape.hidden), weight(shape.hidden, shape.inner)), ones, ones)
        for _ in range(shape.layers)
    ]  # fmt: skip
    head = weight(shape.vocab, shape.hidden)
    frequencies = 1e6 ** (-torch.arange(0, 128, 2, device=DEVICE).float() / 128)[None]
    return DenseModel(
        embedding=head.weight,
        layers=layers,
        final_norm=ones,
        head=head,
        frequencies=frequencies,
        eps=1e-6,
        activation="silu",
    )


def step(kernels: CudaKernels, peak: float) -> None:
    for shape, batch, context in (
        (SMALL, 1, 640),
        (SMALL, 1, 16384),
        (SMALL, 2, 640),
        (SMALL, 4, 640),
        (SMALL, 8, 640),
        (LARGE, 1, 640),
    ):
        model = make_model(shape)
        pool, tables = paged(batch, context, shape, shape.layers, spare=80)
        decoder = FusedDecoder(model, kernels)
        weights = (
            sum(w.weight.numel() for m in model.layers for w in (m.qkv, m.output, m.mlp.gate_up, m.mlp.down))
            + model.head.weight.numel()
        )
        moved = 2 * weights + batch * context * shape.layers * shape.kv_heads * shape.head_dim * 4
        full = lambda value, dtype: torch.full((batch,), value, dtype=dtype, device=DEVICE)
        start = torch.arange(batch + 1, dtype=torch.int32, device=DEVICE)
        for name, pdl in (("dependent launches", True), ("plain launches", False)):
            kernels.pdl = pdl
            rows = DecodeRows(full(5, torch.int64), full(context - 1, torch.int64), full(context, torch.int32),
                              (tables[:, (context - 1) // 16].long() * 16 + (context - 1) % 16), tables, full(0, torch.int64),
                              torch.full((batch, 2), -1, dtype=torch.int32, device=DEVICE))  # fmt: skip
            params = SamplingRows(
                full(0.6, torch.float32),
                full(0, torch.int32),
                full(1.0, torch.float32),
                full(0.0, torch.float32),
                full(1, torch.int64),
                rows.counter,
            )

            ring = torch.zeros(64, 1 + batch, dtype=torch.int64, pin_memory=True)
            told = Told(ring, torch.zeros(1, dtype=torch.int64, device=DEVICE))

            def run(
                rows: DecodeRows = rows,
                params: SamplingRows = params,
                told: Told = told,
                pdl: bool = pdl,
            ) -> None:
                ids, finite = sample_rows(decoder.logits(rows, start, pool), params, pdl=pdl)
                advance(rows, ids, finite, told, pdl=pdl)

            seconds = time_of_launches([run] * 8, rounds=8)
            line(
                f"step {shape.name} b{batch} c{context} {name}",
                seconds,
                moved,
                peak,
                f"{batch / seconds:.0f} tok/s",
            )
            logits_only = time_of_launches([lambda: decoder.logits(rows, start, pool)] * 4, rounds=6)
            print(
                f"      logits alone {logits_only * 1e6:.1f} us; alive {int((rows.context_lens > 0).sum())}",
                flush=True,
            )
        kernels.pdl = True
        del model, pool, decoder


def compile_ahead(part: int, parts: int) -> None:
    """Compile this process's share of the products that `tune` will time, so that many processes share the work."""
    jobs = [
        (product, config)
        for shape, rows in itertools.product((SMALL, LARGE), (1, 2, 4, 8))
        for product in shape.products(rows).values()
        for config in candidate_configs(product)
    ]
    pdl = torch.cuda.get_device_capability() >= (9, 0)
    for product, config in jobs[part::parts]:
        weight = torch.empty(product.n * (2 if product.gated else 1), product.k, device=DEVICE, dtype=DTYPE)
        x = torch.empty(product.rows, product.k, device=DEVICE, dtype=DTYPE)
        norm = weight[0] if product.norm else None
        gemv(x, weight, config=config, norm=norm, activation="silu" if product.gated else "", pdl=pdl)
    torch.cuda.synchronize()


def main() -> None:
    if sys.argv[1:2] == ["--compile"]:
        compile_ahead(int(sys.argv[2]), int(sys.argv[3]))
        return
    sections = {
        "tune": tune,
        "attention": attention,
        "prefill": prefill,
        "dense": dense,
        "experts": experts,
        "sampling": sampling,
        "step": step,
    }
    wanted = sys.argv[1:] or list(sections)
    if "tune" in wanted:
        parts = max(1, (os.cpu_count() or 2) - 2)
        for worker in [
            subprocess.Popen([sys.executable, __file__, "--compile", str(i), str(parts)])
            for i in range(parts)
        ]:
            worker.wait()
    kernels = CudaKernels(DEVICE, tuning=Path(os.environ.get("TUNING", "tuning.json")))
    peak = read_bandwidth()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}: reads {peak / 1e9:.0f} GB/s",
        flush=True,
    )
    for name in wanted:
        try:
            with torch.inference_mode():
                sections[name](kernels, peak)
        except Exception:  # the other sections still tell something
            print(f"--- {name} failed\n{traceback.format_exc(limit=-6)}", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

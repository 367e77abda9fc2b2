"""Where the time of the single-launch step goes: clocks at the ends of its phases, per block."""

# ruff: noqa: E731, E501

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import bench_kernels as bench

from nanochat.kernels import persistent
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.fused_decoder import FusedDecoder
from nanochat.kernels.triton_step import DecodeRows

MARKS = ["qkv", "attended", "output", "gate_up", "down"]


def traced(source: str) -> str:
    source = source.replace(
        "  float scale, eps, qk_eps, rope_factor;",
        "  float scale, eps, qk_eps, rope_factor;\n  float padding; long long *trace;",
    )
    mark = "\n    if (threadIdx.x == 0) step.trace[(blockIdx.x * LAYERS + l) * 8 + %d] = clock64();\n"
    anchors = [
        "    if (blockIdx.x < KV_HEADS * SPLITS) attend(shared, step, layer, words, tag, warp, lane);",
        "    to_hidden<WIDTH>(ring, shared, hidden, words + AT_ATTENDED, words + AT_MIDDLE, tag, step);",
        "    from_hidden<2 * INNER_ROWS, true>(",
        "    to_hidden<INNER>(ring, shared, hidden, words + AT_INNER, words + AT_HIDDEN, tag, step);",
    ]
    for index, anchor in enumerate(anchors):
        assert anchor in source, anchor
        source = source.replace(anchor, mark % index + anchor)
    source = source.replace(
        "  // The head: the same vector",
        "  if (threadIdx.x == 0) step.trace[BLOCKS * LAYERS * 8 + blockIdx.x] = clock64();\n  // The head: the same vector",
    )
    return source.replace(anchors[3], anchors[3] + mark % 4).replace(
        "  if (blockIdx.x == 0 && threadIdx.x == 0) *(volatile",
        "  if (threadIdx.x == 0) step.trace[BLOCKS * LAYERS * 8 + BLOCKS + blockIdx.x] = clock64();\n  if (blockIdx.x == 0 && threadIdx.x == 0) *(volatile",
    )


def make_rows(context: int, tables: torch.Tensor) -> DecodeRows:
    full = lambda value, dtype: torch.full((1,), value, dtype=dtype, device="cuda")
    return DecodeRows(full(5, torch.int64), full(context - 1, torch.int64), full(context, torch.int32), full(3, torch.int64), tables,
                      full(0, torch.int64), torch.full((1, 2), -1, dtype=torch.int32, device="cuda"), full(99999, torch.int64))  # fmt: skip


def main() -> None:
    device = torch.device("cuda")
    kernels = CudaKernels(device)
    trace = torch.zeros(132 * 64 * 8, dtype=torch.int64, device=device)
    read = Path.read_text
    Path.read_text = lambda self, *a, **k: (
        traced(read(self, *a, **k)) if self.name == "persistent.cu" else read(self, *a, **k)
    )  # type: ignore[method-assign]
    fields = persistent._STEP_FIELDS
    persistent._STEP_FIELDS = (*fields, ("padding", persistent.c_float), ("trace", persistent.c_void_p))
    parameters = persistent.PersistentStep._parameters

    def with_trace(self, *arguments):  # type: ignore[no-untyped-def]
        step = parameters(self, *arguments)
        step.trace = trace.data_ptr()
        return step

    persistent.PersistentStep._parameters = with_trace  # type: ignore[method-assign]
    model = bench.make_model(bench.SMALL)
    macros = persistent.sizes(model, kernels.multiprocessors, kernels.shared_memory)
    assert macros is not None
    for change in ({}, {"BLOCKS": 128}, {"UNITS": 8}, {"UNITS": 5}):
        step = persistent.PersistentStep(model, kernels, {**macros, **change}, None)
        for context in (640, 16384):
            pool, tables = bench.paged(1, context, bench.SMALL, bench.SMALL.layers)
            rows = make_rows(context, tables)
            seconds = bench.time_of_launches([lambda: step.logits(rows, pool)] * 4, rounds=6)
            print(f"{change} c{context}: {seconds * 1e6:.1f} us, state {step.state.tolist()}", flush=True)
    decoder = FusedDecoder(model, kernels, persistent=True)
    assert decoder.persistent is not None, decoder.without
    for context in (640, 16384):
        pool, tables = bench.paged(1, context, bench.SMALL, bench.SMALL.layers)
        rows = make_rows(context, tables)
        start = torch.arange(2, dtype=torch.int32, device=device)
        for _ in range(4):
            decoder.logits(rows, start, pool)
        torch.cuda.synchronize()
        print("state", decoder.persistent.state.tolist())
        blocks, layers = decoder.persistent.macros["BLOCKS"], 28
        marks = trace[: blocks * layers * 8].view(blocks, layers, 8)[:, :, :5].cpu()
        ends = trace[blocks * layers * 8 : blocks * layers * 8 + 2 * blocks].view(2, blocks).cpu()
        steps = torch.diff(marks.flatten(1), dim=1).double()
        names = ["attend", "output", "gate_up", "down", "qkv"]
        for index, name in enumerate(names):
            part = steps[:, index + 5 :: 5]
            print(
                f"c{context} {name:8s} cycles: mean {part.mean():7.0f} fastest block {part.mean(1).min():7.0f} slowest {part.mean(1).max():7.0f} max {part.max():.0f}"
            )
        layer = torch.diff(marks[:, :, 0], dim=1).double()
        print(f"c{context} layer {layer.mean():.0f} cycles, head {(ends[1] - ends[0]).double().mean():.0f}")


main()

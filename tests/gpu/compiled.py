"""What `torch.compile` gives for one decode step, against the step that is written by hand.

    python tests/gpu/compiled.py [--context 640]

Qwen3-0.6B's layers in plain torch, compiled with CUDA graphs as gpt-fast does it, at batch 1: the time of a layer from the
difference of two depths. Ours is that of the engine's own captured step, from the same difference. Prints a table, each row
as soon as it is measured, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from nanochat.benchmarks.known_shapes import write_shape
from nanochat.engine.llm import LLM
from nanochat.engine.sampling_params import SamplingParams

HIDDEN, HEADS, KV_HEADS, HEAD, MIDDLE, LONGEST = 1024, 16, 8, 128, 3072, 1024
DEPTHS = (2, 8)
STEPS = 200


class Layer:
    """Random weights, bfloat16, and a KV cache of one sequence."""

    def __init__(self) -> None:
        def made(*shape: int) -> Tensor:
            return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02

        self.qkv, self.out = made((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN), made(HIDDEN, HEADS * HEAD)
        self.gate_up, self.down = made(2 * MIDDLE, HIDDEN), made(HIDDEN, MIDDLE)
        self.norms = [made(HIDDEN), made(HIDDEN), made(HEAD), made(HEAD)]
        self.keys, self.values = made(1, KV_HEADS, LONGEST, HEAD), made(1, KV_HEADS, LONGEST, HEAD)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def forward(layers: list[Layer], x: Tensor, at: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One token, [1, HIDDEN], at position `at` [1]."""
    seen = (torch.arange(LONGEST, device=x.device) <= at)[None, None, None]
    for layer in layers:
        heads = F.linear(norm(x, layer.norms[0]), layer.qkv).view(1, 1, -1, HEAD).transpose(1, 2)
        q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        q, k = (turned(norm(h, w), cos, sin) for h, w in ((q, layer.norms[2]), (k, layer.norms[3])))
        layer.keys.index_copy_(2, at, k)
        layer.values.index_copy_(2, at, v)
        mixed = F.scaled_dot_product_attention(q, layer.keys, layer.values, attn_mask=seen, enable_gqa=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(1, -1), layer.out)
        gate, up = F.linear(norm(x, layer.norms[1]), layer.gate_up).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, layer.down)
    return x


def microseconds(run: Callable[[], object]) -> float:
    for _ in range(10):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        run()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - began) / STEPS


@torch.inference_mode()
def compiled(depth: int, context: int) -> float:
    """Microseconds of a step of `depth` layers."""
    layers = [Layer() for _ in range(depth)]
    x = torch.randn(1, HIDDEN, device="cuda", dtype=torch.bfloat16)
    cos, sin = (torch.randn(HEAD, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    at = torch.tensor([context], device="cuda")
    step = torch.compile(lambda x, at: forward(layers, x, at, cos, sin), mode="max-autotune-no-cudagraphs")
    step(x, at)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x, at)
    return microseconds(graph.replay)


def written(depth: int, context: int) -> float:
    """Microseconds of a token of the engine with `depth` layers."""
    with tempfile.TemporaryDirectory() as made:
        folder = write_shape("qwen3-0.6b", Path(made))
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": depth}))
        llm = LLM(folder, dtype="bfloat16", device="cuda", skip_tokenizer=True, random_weights=True, max_num_seqs=1,
                  max_model_len=LONGEST)  # fmt: skip
        params = SamplingParams(temperature=0.0, max_tokens=STEPS, ignore_eos=True)
        ids = list(range(context - STEPS // 2))
        for _ in range(2):
            metrics = llm.generate([ids], params, use_tqdm=False)[0].metrics
        llm.close()
    return 1e6 * metrics.decode_time / (metrics.output_tokens - 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--context", type=int, default=640)
    context = parser.parse_args().context
    result: dict[str, Any] = {"part": "compiled", "ok": True, "context": context}
    print("\n".join(head(context)), flush=True)
    for name, measure in (("torch.compile", compiled), ("by hand", written)):
        result[name] = figures([measure(depth, context) for depth in DEPTHS])
        print(row(name, result[name]), flush=True)
    print("\n" + json.dumps(result))
    return 0


def figures(us: list[float]) -> dict[str, Any]:
    """Of a step's microseconds at each of DEPTHS."""
    return {
        "us a layer": round((us[1] - us[0]) / (DEPTHS[1] - DEPTHS[0]), 2),
        "us": [round(each, 1) for each in us],
    }


def head(context: int) -> list[str]:
    few, many = DEPTHS
    return [
        f"| a decode step, batch 1, {context} tokens of context | us a layer | us, {few} layers | us, {many} layers |",
        "|---|---|---|---|",
    ]


def row(name: str, found: dict[str, Any]) -> str:
    few, many = found["us"]
    return f"| {name} | {found['us a layer']:.2f} | {few:.1f} | {many:.1f} |"


if __name__ == "__main__":
    sys.exit(main())

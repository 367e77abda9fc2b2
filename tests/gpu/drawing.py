"""What the application on screen costs a reply on a GPU: prose, and a program of 2,000 lines in place of the words.

    python tests/gpu/drawing.py [--shape qwen3-0.6b] [--device cuda] [--tokens 4000] [--repeats 5]

Decode must keep 97 % of its speed. As `nanochat bench --preset screen`, which draws prose only. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "ui"))

from measured_app import FenceReader

from nanochat.benchmarks.case import Ask
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.ui import drawn_parts
from nanochat.ui.drawing_cost import DrawingCost

LEAST_KEPT = 0.97
PLAIN = drawn_parts.PlainReader


def rate(target: Any, ask: Ask) -> float:
    (reply,) = target.run([ask])
    return (reply.tokens - 1) / reply.decoding


def measure(cost: DrawingCost, ask: Ask, repeats: int) -> dict[str, Any]:
    """Alone and drawn in turns, so that a drift of the machine falls on both alike; the first turn warms up."""
    alone, drawn = cost.targets
    found: dict[str, Any] = {"part": "drawing", "ok": True, "tokens": ask.output}
    for name, reader in (("prose", PLAIN), ("fence", FenceReader)):
        drawn_parts.PlainReader = reader  # type: ignore[misc, assignment]
        turns = [(rate(alone, ask), rate(drawn, ask)) for _ in range(repeats + 1)][1:]
        kept = statistics.median(after / before for before, after in turns)
        found[name] = {
            "alone tok/s": round(statistics.median(before for before, _ in turns), 1),
            "drawn tok/s": round(statistics.median(after for _, after in turns), 1),
            "kept": round(kept, 4), "each": [round(after / before, 4) for before, after in turns],
        }  # fmt: skip
        found["ok"] = found["ok"] and kept >= LEAST_KEPT
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        cost = DrawingCost(
            write_shape(options.shape, Path(made)), options.shape,
            {"device": options.device, "dtype": "bfloat16", "random_weights": True, "max_num_seqs": 4,
             "max_model_len": options.tokens + 128, "enable_prefix_caching": False},
            lambda: False, lambda _: None,
        )  # fmt: skip
        result = measure(cost, Ask(tuple(range(100, 164)), options.tokens), options.repeats)
    print(json.dumps(result), flush=True)
    os._exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()

"""What each GPU holds of a model over several, beside what was estimated before the load.

    python tests/gpu/held.py [--shape qwen3-8b] [--device cuda] [RANKS ...]

With random weights, which take what real ones do. Prints a line for each number of ranks as it comes, and one line of JSON;
bytes and tokens. `held` is weights and KV cache
as the ranks count them, `driver` what the driver says that this program and its workers took on each GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from nanochat.benchmarks.known_shapes import write_shape
from nanochat.engine.llm import LLM
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.sampling_params import SamplingParams
from nanochat.modelhub.device_memory import free_memory
from nanochat.modelhub.fit import Limits, fit
from nanochat.modelhub.shape import Shape

PROMPTS = [[1, 2, 3], [*range(400)]]


def free(device: str, ranks: int) -> list[int]:
    """Bytes that are free on each GPU; on CPUs there is nobody to ask."""
    return [torch.cuda.mem_get_info(rank)[0] for rank in range(ranks)] if device == "cuda" else []


def one(folder: Path, device: str, ranks: int) -> dict[str, Any]:
    estimate = fit(
        Shape.of(ModelConfig.from_folder(folder)), free_memory(device), limits=Limits(devices=ranks)
    )
    before = free(device, ranks)
    llm = LLM(
        folder, tensor_parallel_size=ranks, device=device, random_weights=True, skip_tokenizer=True,
        **({} if device == "cuda" else {"kv_cache_bytes": 1 << 26}),
    )  # fmt: skip
    llm.generate(PROMPTS, SamplingParams(max_tokens=16, ignore_eos=True), use_tqdm=False)
    group = getattr(llm.core._runner, "group", None)
    memory = [] if group is None else group.memory
    found = {
        "estimated": {
            "weights": estimate.weights, "kv a token": estimate.kv_bytes_per_token, "reserve": estimate.reserve,
            "context": estimate.context,
        },
        "held": [{"weights": each.weights, "kv": each.kv_cache, "read": each.read} for each in memory],
        "measured reserve": llm.core.memory.reserve,
        "context": llm.core.memory.max_model_len,
        "driver": [was - now for was, now in zip(before, free(device, ranks), strict=True)],
        "engine": llm.core.describe(),
    }  # fmt: skip
    llm.close()
    left = [was - now for was, now in zip(before, free(device, ranks), strict=True)]
    return found | {"left after closing": left}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ranks", nargs="*", type=int)
    parser.add_argument("--shape", default="qwen3-8b")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    there = torch.cuda.device_count() if options.device == "cuda" else 2
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(options.shape, Path(folder))
        ranks = options.ranks or [count for count in (2, 4, 8) if count <= there]
        found: dict[str, Any] = {}
        for count in ranks:
            found[str(count)] = one(model, options.device, count)
            print(f"so far: {count} ranks {json.dumps(found[str(count)])}", flush=True)
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

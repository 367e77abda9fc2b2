"""How far the engine's bfloat16 is from Transformers' float32, and how far Transformers' own bfloat16 is.

    python tests/gpu/divergence.py --model FOLDER [--positions 50000] [--device cuda]

Teacher-forced over real English text (the language reference that comes with Python), in windows of 1,024 tokens: the
engine once as prefill, in chunks over a cached prefix, and once as decode, eight sequences at a time. FOLDER is a model,
or holds the pieces of a GGUF file of the starter model (`split -b 45M FILE.gguf FILE.gguf.`). Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.loading import Loaded, load
from nanochat.engine.runner import lay_out, to_device
from nanochat.engine.tokenizer import Tokenizer

WINDOW, ROWS, CHUNK = 1024, 8, 300
MOST_KL, MOST_POINTS = (
    1.25,
    0.2,
)  # times Transformers' own divergence; points of equal top tokens below its own


@dataclass
class Tally:
    """Sums over positions."""

    positions: int = 0
    divergence: Tensor | float = 0.0  # sums stay where they are made: nothing waits for the device
    agreed: Tensor | int = 0

    def add(self, reference: Tensor, logits: Tensor) -> None:
        """Rows of logits [n, vocab], the reference's and somebody's."""
        p, q = (torch.log_softmax(rows.double(), dim=-1) for rows in (reference, logits))
        self.divergence = self.divergence + (p.exp() * (p - q)).sum()
        self.agreed = self.agreed + (reference.argmax(-1) == logits.argmax(-1)).sum()
        self.positions += reference.shape[0]

    def figures(self) -> dict[str, float]:
        return {
            "mean KL": float(self.divergence) / self.positions,
            "same top token %": 100 * int(self.agreed) / self.positions,
        }


def passes(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    near = ours["mean KL"] <= MOST_KL * theirs["mean KL"]
    return near and ours["same top token %"] >= theirs["same top token %"] - MOST_POINTS


def model_folder(given: Path, into: Path) -> Path:
    """A model's folder as it is; the pieces of a GGUF are joined and converted."""
    if (given / "config.json").is_file():
        return given
    from nanochat.modelhub.starter_conversion import convert

    pieces = sorted(given.glob("*.gguf.*"))
    if not pieces:
        raise SystemExit(f"{given} holds neither a config.json nor pieces of a GGUF (NAME.gguf.aa and so on)")
    with (into / "whole.gguf").open("wb") as whole:
        for piece in pieces:
            shutil.copyfileobj(piece.open("rb"), whole)
    convert(into / "whole.gguf", into, lambda done, total: None)
    return into


def windows(folder: Path, positions: int, length: int) -> Iterator[Tensor]:
    """Batches of up to ROWS windows of real text, int64 [rows, length]."""
    text = "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    ids = Tokenizer.from_folder(folder).encode(text[: positions * 8], special=False)
    count = -(-positions // length)
    if len(ids) < count * length:
        raise SystemExit(f"the text has {len(ids):,} tokens, and {count * length:,} are wanted")
    yield from torch.tensor(ids[: count * length]).view(count, length).split(ROWS)


class Forced:
    """The engine's model, fed with given tokens."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.device = loaded, loaded.device
        self.fused = None
        if self.device.type == "cuda":
            from nanochat.engine.fused_step import fused_decoder

            self.fused = fused_decoder(loaded.model)
            if self.fused is not None:
                self.fused.tune(ROWS)

    def _step(self, ids: Tensor, start: int) -> Tensor:
        """ids [rows, n] at positions from `start` on -> logits [rows, n, vocab]."""
        rows, count = ids.shape
        layout, positions = lay_out(
            cast(Any, [self._chunk(row, start, count) for row in range(rows)]), self.device
        )
        model = self.loaded.model
        hidden = model.forward(
            to_device(ids.reshape(-1), self.device), positions, layout, self.loaded.runner.kv_cache
        )
        return model.logits(hidden).view(rows, count, -1)

    @staticmethod
    def _chunk(row: int, start: int, count: int) -> SimpleNamespace:
        width = WINDOW // BLOCK_SIZE
        blocks = list(range(row * width, (row + 1) * width))
        return SimpleNamespace(sequence=SimpleNamespace(blocks=blocks), start=start, count=count)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> Tensor:
        """In chunks over what is cached: logits [rows, length, vocab]."""
        parts = [self._step(ids[:, at : at + CHUNK], at) for at in range(0, ids.shape[1], CHUNK)]
        return torch.cat(parts, dim=1)

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Iterator[Tensor]:
        """One token of each row at a time, as captured steps do it: logits [rows, vocab], good until the next."""
        if self.fused is not None:
            yield from self._replayed(self.fused, ids)
            return
        for at in range(ids.shape[1]):
            yield self._step(ids[:, at : at + 1], at)[:, 0]

    def _replayed(self, fused: Any, ids: Tensor) -> Iterator[Tensor]:
        """One captured step for all positions: the state is written between its replays."""
        from nanochat.kernels.triton_step import DecodeRows

        rows, length = ids.shape
        whole = [self._chunk(row, 0, length) for row in range(rows)]
        layout, _ = lay_out(cast(Any, whole), self.device)
        slots, given = layout.slots.view(rows, length), to_device(ids.contiguous(), self.device)
        nothing = torch.zeros(rows, dtype=torch.int64, device=self.device)
        step = DecodeRows(
            nothing.clone(), nothing.clone(), torch.ones_like(nothing).int(), nothing - 1, layout.block_tables, nothing,
            nothing[:, None].int(), nothing,
        )  # fmt: skip
        query_start = torch.arange(rows + 1, dtype=torch.int32, device=self.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled before; a row without a slot writes nothing
            fused.logits(step, query_start, self.loaded.runner.kv_cache)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = fused.logits(step, query_start, self.loaded.runner.kv_cache)
        for at in range(length):
            step.ids.copy_(given[:, at])
            step.slots.copy_(slots[:, at])
            step.positions.fill_(at)
            step.context_lens.fill_(at + 1)
            graph.replay()
            yield logits


def measure(folder: Path, device: str, positions: int, length: int = WINDOW) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    began = time.perf_counter()
    exact, theirs = (
        cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype=dtype).to(device).eval()
        for dtype in (torch.float32, torch.bfloat16)
    )
    config = EngineConfig(
        model=folder, dtype="bfloat16", device=device, max_model_len=WINDOW, skip_tokenizer=True,
        num_blocks=ROWS * WINDOW // BLOCK_SIZE,
    )  # fmt: skip
    loaded = load(config)
    forced = Forced(loaded)
    tallies = {"transformers": Tally(), "prefill": Tally(), "decode": Tally()}
    for batch in windows(folder, positions, length):
        with torch.inference_mode():
            reference = exact(batch.to(device)).logits.float()
            peer = theirs(batch.to(device)).logits.float()
        prefilled = forced.prefill(batch)
        for row in range(batch.shape[0]):  # row by row: the sums are in float64
            tallies["transformers"].add(reference[row], peer[row])
            tallies["prefill"].add(reference[row], prefilled[row])
        del peer, prefilled
        for at, logits in enumerate(forced.decode(batch)):
            tallies["decode"].add(reference[:, at], logits)
    figures = {name: tally.figures() for name, tally in tallies.items()}
    ours = [figures[name] for name in ("prefill", "decode")]
    return {
        "part": "divergence", "positions": tallies["decode"].positions, **figures,
        "KL ratio": [each["mean KL"] / figures["transformers"]["mean KL"] for each in ours],
        "ok": all(passes(each, figures["transformers"]) for each in ours),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=50_000)
    parser.add_argument("--length", type=int, default=WINDOW, help="of a window, at most 1,024")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = model_folder(options.model, Path(made))
        result = measure(folder, options.device, options.positions, min(options.length, WINDOW))
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

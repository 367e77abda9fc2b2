"""How far the engine's bfloat16 is from Transformers' float32, and how far Transformers' own bfloat16 is.

    python tests/gpu/divergence.py --model FOLDER [--positions 50000] [--device cuda] [--ranks 1]

Teacher-forced over real English text (the language reference that comes with Python), in windows of 1,024 tokens, eight
beside each other: the engine's own steps, once as prefill in chunks over a cached prefix, once as decode, on a GPU in graphs.
With `--ranks` over several devices; prefill is then looked at in the last token of each chunk, and compared with Transformers'
there. FOLDER is a model, or holds the
pieces of a GGUF file of the starter model (`split -b 45M FILE.gguf FILE.gguf.`). Prints one line of JSON.
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
from typing import Any, cast

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.loading import Loaded, load
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.engine.sequence import Sequence, Status
from nanochat.engine.tokenizer import Tokenizer

WINDOW, ROWS, CHUNK = 1024, 8, 300
DRAWN = SamplingParams(temperature=1.0, top_k=2).resolved({})  # filtered: whole logits, on several ranks too
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


def passes(ours: Tally, theirs: Tally) -> bool:
    """At the same positions. Where a single one is more than the points that are allowed, one may differ."""
    mine, peer = ours.figures(), theirs.figures()
    points = max(MOST_POINTS, 100 / ours.positions)
    near = mine["mean KL"] <= MOST_KL * peer["mean KL"]
    return near and mine["same top token %"] >= peer["same top token %"] - points


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
    """Batches of ROWS windows of real text, int64 [rows, length]."""
    text = "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    count = -(-positions // (ROWS * length)) * ROWS
    ids = Tokenizer.from_folder(folder).encode(text[: count * length * 8], special=False)
    if len(ids) < count * length:
        raise SystemExit(f"the text has {len(ids):,} tokens, and {count * length:,} are wanted")
    yield from torch.tensor(ids[: count * length]).view(count, length).split(ROWS)


class Forced:
    """An engine's own steps, over one rank or several, fed with given tokens."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._model = cast(Any, loaded.model)
        self._logits = torch.zeros(ROWS, self._model.config.vocab_size, device=loaded.device)
        self._hidden = self._logits[:0]
        self._whole, self._forward = self._model.whole_logits, self._model.forward
        self._model.whole_logits = self._seen  # where steps, captured ones too, put their logits together
        self._model.forward = self._passed

    def _seen(self, share: Tensor) -> Tensor:
        logits = self._whole(share)
        self._logits[: logits.shape[0]].copy_(logits)
        return logits

    def _passed(self, *inputs: Any) -> Tensor:
        self._hidden = self._forward(*inputs)
        return self._hidden

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """In chunks over what is cached: (positions, logits [rows, positions, vocab]), over several ranks of a chunk's last."""
        (rows, length), given = ids.shape, ids.tolist()
        for at in range(0, length, CHUNK):
            last = min(at + CHUNK, length)
            fed = [self._sequence(given[row][:last], row, last) for row in range(rows)]
            self._run([Chunk(sequence, at, last - at, samples=True) for sequence in fed])
            if self.loaded.group is None:
                yield (
                    slice(at, last),
                    self._model.share_of_logits(self._hidden).view(rows, last - at, -1),
                )
            else:
                yield slice(last - 1, last), self._logits[:rows, None]

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Iterator[Tensor]:
        """One token of each row at a time: logits [rows, vocab], good until the next."""
        rows, length = ids.shape
        given = ids.tolist()
        for at in range(length):
            fed = [self._sequence(given[row][: at + 1], row, at) for row in range(rows)]
            self._run([Chunk(sequence, at, 1, samples=True) for sequence in fed])
            yield self._logits[:rows]

    def _sequence(self, tokens: list[int], row: int, prompt: int) -> Sequence:
        """A new one each time: its token is then taken from here, not from what was drawn before."""
        width = WINDOW // BLOCK_SIZE + 1
        sequence = Sequence(
            request_id="", index=0, prompt=tuple(tokens[:prompt]), params=DRAWN, seed=0, priority=0, arrival=0,
            submitted=0.0, max_tokens=2 * WINDOW, root=b"", eos_ids=frozenset(), seat=row, pending=1,
            blocks=list(range(row * width, (row + 1) * width)),
        )  # fmt: skip
        sequence.tokens = tokens
        return sequence

    def _run(self, chunks: list[Chunk]) -> None:
        self.loaded.runner.dispatch(chunks).read()
        for chunk in chunks:
            chunk.sequence.status = Status.FINISHED


def engine(folder: Path, device: str, ranks: int) -> Loaded:
    return load(
        EngineConfig(
            model=folder, dtype="bfloat16", device=device, max_model_len=WINDOW + BLOCK_SIZE, skip_tokenizer=True,
            num_blocks=ROWS * (WINDOW // BLOCK_SIZE + 1), max_num_seqs=ROWS, tensor_parallel_size=ranks,
        )
    )  # fmt: skip


def measure(
    folder: Path, device: str, positions: int, length: int = WINDOW, ranks: int = 1
) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    began = time.perf_counter()
    exact, theirs = (
        cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype=dtype).to(device).eval()
        for dtype in (torch.float32, torch.bfloat16)
    )
    loaded = engine(folder, device, ranks)
    forced = Forced(loaded)
    tallies = {
        name: Tally() for name in ("transformers", "transformers where prefill is", "prefill", "decode")
    }
    for batch in windows(folder, positions, length):
        with torch.inference_mode():
            reference = exact(batch.to(device)).logits.float()
            peer = theirs(batch.to(device)).logits.float()
        for row in range(batch.shape[0]):  # row by row: the sums are in float64
            tallies["transformers"].add(reference[row], peer[row])
        for places, logits in forced.prefill(batch):
            for row in range(batch.shape[0]):
                tallies["prefill"].add(reference[row, places], logits[row])
                tallies["transformers where prefill is"].add(reference[row, places], peer[row, places])
        del peer
        for at, logits in enumerate(forced.decode(batch)):
            tallies["decode"].add(reference[:, at], logits)
    figures = {name: tally.figures() for name, tally in tallies.items()}
    about = loaded.runner.describe(loaded.dtype)
    loaded.runner.close()
    against = {"prefill": "transformers where prefill is", "decode": "transformers"}
    ratios = {name: figures[name]["mean KL"] / figures[peer]["mean KL"] for name, peer in against.items()}
    return {
        "part": "divergence", "ranks": ranks, "positions": tallies["decode"].positions, **figures, "KL ratio": ratios,
        "ok": all(passes(tallies[name], tallies[peer]) for name, peer in against.items()),
        "engine": about, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=50_000)
    parser.add_argument("--length", type=int, default=WINDOW, help="of a window, at most 1,024")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ranks", type=int, default=1, help="devices that the model is split over")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = model_folder(options.model, Path(made))
        result = measure(
            folder, options.device, options.positions, min(options.length, WINDOW), options.ranks
        )
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Rows of logits with parameters of all kinds, and the tokens that must be drawn, found by sorting in float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.engine.sampler import gumbel_noise, noise_word


@dataclass
class Rows:
    """Logits [rows, vocab] and each row's parameters."""

    logits: Tensor
    temperature: list[float]
    top_k: list[int]
    top_p: list[float]
    min_p: list[float]
    seed: list[int]
    counter: list[int]

    def scores(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """(token ids in the filters' order, whether each is kept, logit / temperature plus noise)."""
        logits = self.logits[row].float().cpu()
        order = torch.argsort(logits, descending=True, stable=True)
        scaled = logits[order] / self.temperature[row]
        n = order.numel()
        k, p, floor = self.top_k[row], self.top_p[row], self.min_p[row]
        kept = torch.arange(n) < (k if 0 < k < n else n)
        mass = torch.where(kept, (scaled.double() - scaled[0].double()).exp(), 0.0)
        mass /= mass.sum()
        if p < 1:
            kept &= mass.cumsum(0) - mass < p
        if floor:
            kept &= scaled >= scaled[0] + torch.tensor(math.log(floor), dtype=torch.float32)
        word = noise_word(self.seed[row], self.counter[row])
        halves = torch.tensor([[word & 0xFFFFFFFF, word >> 32]])
        words = torch.where(halves >= 2**31, halves - 2**32, halves).to(torch.int32)
        return order, kept, scaled + gumbel_noise(words, order[None].to(torch.int32))[0]

    def accepts(self, row: int, token: int, tolerance: float = 0.0) -> bool:
        """Whether a token is the one to draw; with a tolerance, also if it ties with it, or a cut is too close to call."""
        if self.temperature[row] == 0:
            return token == int(self.logits[row].float().argmax())
        order, kept, scores = self.scores(row)
        best = torch.where(kept, scores, -math.inf)
        if token == int(order[best.argmax()]):
            return True
        if not tolerance:
            return False
        loose = Rows(self.logits, self.temperature, self.top_k, [p * (1 + tolerance) for p in self.top_p],
                     [m * (1 - tolerance) for m in self.min_p], self.seed, self.counter)  # fmt: skip
        tight = Rows(self.logits, self.temperature, self.top_k, [p * (1 - tolerance) for p in self.top_p],
                     [m * (1 + tolerance) for m in self.min_p], self.seed, self.counter)  # fmt: skip
        place = int((order == token).nonzero())
        if not bool(loose.scores(row)[1][place]):
            return False
        certain = torch.where(tight.scores(row)[1], scores, -math.inf).max()
        return float(scores[place]) >= float(certain) - tolerance


def make_rows(
    count: int, vocab: int, *, seed: int = 0, spread: float = 3.0, steps: float = 0.0, device: str = "cpu"
) -> Rows:
    """Random rows; with `steps`, logits are rounded to multiples of 1 / steps, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, vocab, generator=generator) * spread
    if steps:
        logits = (logits * steps).round() / steps
    rng = random.Random(seed)
    return Rows(
        logits=logits.to(device),
        temperature=[rng.choice([0.0, 0.6, 1.0, 1.7]) for _ in range(count)],
        top_k=[rng.choice([0, 0, 1, 5, 20, 40, 300]) for _ in range(count)],
        top_p=[rng.choice([1.0, 1.0, 0.95, 0.5, 0.05]) for _ in range(count)],
        min_p=[rng.choice([0.0, 0.0, 0.05, 0.5]) for _ in range(count)],
        seed=[rng.getrandbits(63) for _ in range(count)],
        counter=[rng.randrange(5000) for _ in range(count)],
    )

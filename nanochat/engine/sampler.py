"""Logits to token ids, on the device, each row with its own parameters and its own randomness.

The order is Transformers': logit bias, penalties, temperature, top-k, top-p, min-p. A token is drawn
by the Gumbel-max trick: argmax(logit / temperature + gumbel). The noise is a function of (seed,
counter, token id) alone, where the counter is the number of tokens in the reply: so a reply does not
depend on what else is in the batch, and survives preemption and a restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.engine.adjustment import adjust
from nanochat.engine.device_copies import send, to_host
from nanochat.engine.sequence import Sequence
from nanochat.kernels.headway import in_its_time, made

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SORTING = 64  # what sorting costs a number, in multiplications
_NUCLEUS = 256  # how many of the likeliest tokens are looked at before the whole vocabulary is sorted


def splitmix64(x: int) -> int:
    """The finaliser of SplitMix64 (Steele et al., 2014) on a 64-bit word."""
    x = (x + _GOLDEN) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def reply_seed(seed: int, index: int) -> int:
    """The seed of the reply `index` of n; the first one's is the request's own."""
    return seed & _MASK64 if index == 0 else splitmix64((seed + index * 0xD1342543DE82EF95) & _MASK64)


def noise_word(seed: int, counter: int) -> int:
    """The 64-bit word that the noise of one token comes from."""
    return splitmix64((seed + counter * _GOLDEN) & _MASK64)


def _fmix32(h: Tensor) -> Tensor:
    """murmur3's finaliser on int32 words, wrapping."""
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * -2048144789  # 0x85EBCA6B
    h = h ^ ((h >> 13) & 0x7FFFF)
    h = h * -1028477387  # 0xC2B2AE35
    return h ^ ((h >> 16) & 0xFFFF)


def gumbel_noise(words: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise for token ids.

    Args:
        words: int32 [rows, 2], the low and high half of each row's `noise_word`.
        tokens: int32 [rows, n] or [1, n], token ids.

    Returns:
        float32 [rows, n].
    """
    h = _fmix32(tokens ^ words[:, :1])
    h = _fmix32(h + words[:, 1:])
    return -torch.log(-torch.log(uniform(h)))


def uniform(h: Tensor) -> Tensor:
    """int32 words to float32 numbers strictly between 0 and 1.

    23 bits, so that adding a half is exact: with 24 the largest would round to 1, and its noise to infinity.
    """
    return (((h >> 9) & 0x7FFFFF).to(torch.float32) + 0.5) * 2.0**-23


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of a step's rows, under the raw logits; a row whose request asked for none says nothing."""

    chosen: Tensor  # float32 [rows], the drawn token's
    rank: Tensor  # int64 [rows], the drawn token's among all; 1 is the likeliest
    top: Tensor  # float32 [rows, n], descending
    top_ids: Tensor  # int64 [rows, n]

    @classmethod
    def zeros(cls, rows: int, width: int, device: torch.device) -> Logprobs:
        """To be filled."""
        rank, top_ids = (
            torch.zeros(shape, dtype=torch.int64, device=device) for shape in (rows, (rows, width))
        )
        return cls(torch.zeros(rows, device=device), rank, torch.zeros(rows, width, device=device), top_ids)

    def put(self, rows: Tensor | slice, part: Logprobs) -> None:
        """Those of some rows, of which as many or fewer likeliest tokens are told."""
        width = part.top.shape[1]
        self.chosen[rows], self.rank[rows] = part.chosen, part.rank
        self.top[rows, :width], self.top_ids[rows, :width] = part.top, part.top_ids

    def on_host(self) -> Logprobs:
        """Complete once the device has come so far."""
        return Logprobs(to_host(self.chosen), to_host(self.rank), to_host(self.top), to_host(self.top_ids))


@dataclass(frozen=True, slots=True)
class Sampled:
    """A step's tokens, on the device. `finite` is false for rows with NaN or Inf logits."""

    ids: Tensor  # int64 [rows]
    finite: Tensor  # bool [rows]
    logprobs: Logprobs | None = None

    def on_host(self) -> Sampled:
        """Complete once the device has come so far."""
        logprobs = None if self.logprobs is None else self.logprobs.on_host()
        return Sampled(to_host(self.ids), to_host(self.finite), logprobs)


def sample(logits: Tensor, sequences: list[Sequence]) -> Sampled:
    """Draw one token for each row.

    Args:
        logits: float32 [rows, vocab]; changed in place.
        sequences: whose row is whose.
    """
    finite = torch.isfinite(logits.sum(dim=-1))
    wanted = max((s.params.logprobs for s in sequences if s.params.logprobs is not None), default=None)
    raw = torch.log_softmax(logits, dim=-1) if wanted is not None else None
    adjust(logits, sequences)
    ids = _draw(logits, sequences)
    if raw is None or wanted is None:
        return Sampled(ids, finite)
    return Sampled(ids, finite, look_up(raw, ids, wanted))


def look_up(raw: Tensor, ids: Tensor, wanted: int) -> Logprobs:
    """What is told of `raw` log-probabilities [rows, vocab]: of the drawn `ids`, and of the `wanted` likeliest."""
    chosen = raw.gather(1, ids[:, None])
    rank = (raw > chosen).sum(dim=-1) + 1
    top = raw.topk(min(wanted, raw.shape[1]), dim=-1)
    return Logprobs(chosen[:, 0], rank, top.values, top.indices)


def _draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    drawn = [row for row, sequence in enumerate(sequences) if not sequence.params.greedy]
    if not drawn:
        return logits.argmax(dim=-1)
    if len(drawn) == len(sequences):
        return _draw_rows(logits, sequences)
    ids = logits.argmax(dim=-1)
    at = torch.tensor(drawn, dtype=torch.int64, device=logits.device)
    ids[at] = _draw_rows(logits[at], [sequences[row] for row in drawn])
    return ids


def scores_of(logits: Tensor, sequences: list[Sequence], first: int) -> Tensor:
    """Scores whose largest is the row's token, where no filter and nothing else bends it: float32 [rows, n].

    Args:
        logits: float32 [rows, n], of the tokens from id `first` on.
    """
    at = [row for row, sequence in enumerate(sequences) if not sequence.params.greedy]
    if not at:
        return logits
    drawn = torch.tensor(at, dtype=torch.int64, device=logits.device)
    temperature, words = _temperature_and_words([sequences[row] for row in at], logits)
    tokens = torch.arange(first, first + logits.shape[1], dtype=torch.int32, device=logits.device)
    noisy = logits[drawn] / temperature + gumbel_noise(words, tokens[None])
    return noisy if len(at) == len(sequences) else logits.index_copy(0, drawn, noisy)


def _temperature_and_words(sequences: list[Sequence], like: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's temperature, like `like` [rows, 1], and the words of its noise, int32 [rows, 2]."""
    temperature = [[s.params.temperature or 1.0] for s in sequences]
    words = [_halves(noise_word(s.seed, s.counter)) for s in sequences]
    return send(temperature, like.dtype, like.device), send(words, torch.int32, like.device)


def _draw_rows(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Temperature, filters and noise for rows that all draw."""
    device = logits.device
    params = [s.params for s in sequences]
    temperature, words = _temperature_and_words(sequences, logits)
    scores = logits / temperature
    candidates: Tensor | None = None
    if any(p.filtered for p in params):
        scores, candidates = keep(
            scores,
            top_k=[p.top_k or 0 for p in params],
            top_p=[1.0 if p.top_p is None else p.top_p for p in params],
            min_p=[p.min_p or 0.0 for p in params],
        )
    tokens = candidates if candidates is not None else torch.arange(scores.shape[1], device=device)[None]
    best = (scores + gumbel_noise(words, tokens.to(torch.int32))).argmax(dim=-1, keepdim=True)
    return (best if candidates is None else candidates.gather(1, best))[:, 0]


def _halves(word: int) -> tuple[int, int]:
    low, high = word & 0xFFFFFFFF, word >> 32
    return (low - 2**32 if low >= 2**31 else low, high - 2**32 if high >= 2**31 else high)


def keep(scores: Tensor, top_k: list[int], top_p: list[float], min_p: list[float]) -> tuple[Tensor, Tensor]:
    """Filter each row by top-k, then top-p among what is left, then min-p.

    Args:
        scores: float32 [rows, vocab], logits over temperature.

    Returns:
        (scores, token ids), both [rows, n] in descending order of score; what is dropped has score -inf.
        n is the vocabulary only when a nucleus is wider than the 256 likeliest tokens, or a top-k is.
    """
    vocab = scores.shape[1]
    k = torch.tensor([[x if 0 < x < vocab else vocab] for x in top_k], device=scores.device)
    width = min(vocab, max(_NUCLEUS, *(x for x in top_k if 0 < x < vocab), 0))
    total = torch.logsumexp(scores, dim=-1, keepdim=True)
    values, ids = scores.topk(width, dim=-1)
    made()
    if width < vocab and not _covers(values, total, top_k, top_p, min_p):
        values, ids = in_its_time(
            _SORTING * scores.numel(), lambda: scores.sort(dim=-1, descending=True, stable=True)
        )
        width = vocab
    rank = torch.arange(width, device=scores.device)[None]
    values = values.masked_fill(rank >= k, -math.inf)
    limited = (k < vocab).expand_as(total)
    total = torch.where(limited, torch.logsumexp(values, dim=-1, keepdim=True), total)
    p = torch.tensor([[x] for x in top_p], dtype=values.dtype, device=values.device)
    probability = (values - total).exp()
    before = probability.cumsum(dim=-1) - probability
    values = values.masked_fill((before >= p) & (rank > 0) & (p < 1.0), -math.inf)
    floor = torch.tensor(
        [[math.log(x) if x > 0 else -math.inf] for x in min_p], dtype=values.dtype, device=values.device
    )
    return values.masked_fill(values < values[:, :1] + floor, -math.inf), ids


def _covers(values: Tensor, total: Tensor, top_k: list[int], top_p: list[float], min_p: list[float]) -> bool:
    """Whether every row's kept set surely lies within the likeliest tokens `values`."""
    mass = (values - total).exp().sum(dim=-1).tolist()
    ratio = (values[:, -1] - values[:, 0]).tolist()
    return all(
        0 < k <= values.shape[1] or mass[row] > p + 1e-4 or (m > 0 and ratio[row] < math.log(m))
        for row, (k, p, m) in enumerate(zip(top_k, top_p, min_p, strict=True))
    )

"""Drawing tokens from logits that stay divided: each rank offers the best of its part of the vocabulary.

Exact where a token is a largest value: the likeliest one, or one drawn with a temperature and nothing else, because the
noise of a token is a function of its request and its id. Filters, log-probabilities, penalties and biases want all
logits; a step with one such row gathers them for all rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.engine.models.decoder import Decoder
from nanochat.engine.parallel.shares import vocabulary_share
from nanochat.engine.sampler import Sampled, scores_of

if TYPE_CHECKING:
    from nanochat.engine.models import Model
    from nanochat.engine.parallel.collectives import Collectives
    from nanochat.engine.sequence import Sequence
    from nanochat.kernels.triton_sampling import SamplingRows


class DividedSampler:
    """One rank's part in the drawing of tokens."""

    def __init__(self, model: Decoder, collectives: Collectives) -> None:
        self._model = model
        self._collectives = collectives
        share = vocabulary_share(model.config.vocab_size, collectives.rank, collectives.ranks)
        self._first = share.start

    def takes(self, sequences: list[Sequence]) -> bool:
        """Whether these can be drawn so; every rank says the same."""
        return all(sequence.plain and not sequence.params.filtered for sequence in sequences)

    def share_of(self, hidden: Tensor) -> Tensor:
        """This rank's logits of hidden states [rows, hidden_size]."""
        return self._model.share_of_logits(hidden)

    def draw(self, share: Tensor, sequences: list[Sequence]) -> Sampled | None:
        """A token for each row of this rank's logits; None on a rank that does not get to know it."""
        offers = self._collectives.exchange(offer(share, sequences, self._first))
        return None if offers is None else choose(offers)

    def draw_rows(self, share: Tensor, rows: SamplingRows, *, pdl: bool = False) -> tuple[Tensor, Tensor]:
        """As `draw`, of rows whose parameters are on the device; asks nothing of the host. See `sample_rows`."""
        from nanochat.kernels.triton_divided import choose_rows, offer_rows

        offers = self._collectives.exchange(offer_rows(share, rows, self._first, pdl=pdl))
        assert offers is not None
        return choose_rows(offers, pdl=pdl)


def divided_sampler(
    model: Model, collectives: Collectives | None, *, deterministic: bool
) -> DividedSampler | None:
    """Of a model of our own decoder on several ranks; None where logits are always whole."""
    if collectives is None or deterministic or not isinstance(model, Decoder):
        return None
    return DividedSampler(model, collectives)


def offer(share: Tensor, sequences: list[Sequence], first: int) -> Tensor:
    """What a rank tells of its logits, float64 [rows, 3]: best score, its token id, the sum of the logits.

    Args:
        share: float32 [rows, n], of the tokens from id `first` on; n may be 0.
    """
    if share.shape[1] == 0:
        return torch.tensor([[-math.inf, 0.0, 0.0]], dtype=torch.float64, device=share.device).repeat(
            share.shape[0], 1
        )
    scores = scores_of(share, sequences, first)
    best = scores.argmax(dim=-1, keepdim=True)
    told = (scores.gather(1, best)[:, 0], best[:, 0] + first, share.sum(dim=-1))
    return torch.stack([column.double() for column in told], dim=1)


def choose(offers: Tensor) -> Sampled:
    """The best of all ranks' offers, [ranks, rows, 3]; of equal ones the lowest id's, as from whole logits."""
    scores, ids, sums = offers.unbind(2)
    best = scores.argmax(dim=0, keepdim=True)  # the first of equal ones: ranks hold the vocabulary in order
    return Sampled(ids.gather(0, best)[0].long(), torch.isfinite(sums.sum(dim=0)))

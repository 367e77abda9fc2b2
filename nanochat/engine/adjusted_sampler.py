"""Drawing the tokens of a decode step some of whose requests want more than their seats' parameters say, and first tokens.

Their logits are bent first (`adjust`), log-probabilities are of the logits as they were. The tokens are drawn by the kernels
of captured steps, so a request that wants nothing gets the token that it would get in any other company. Nothing waits
for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.engine.adjustment import adjust
from nanochat.engine.device_copies import send
from nanochat.engine.device_state import shares, signed
from nanochat.engine.sampler import Logprobs, Sampled, look_up
from nanochat.engine.sequence import Sequence
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows


def sample_adjusted(
    logits: Tensor, rows: SamplingRows, sequences: list[Sequence], *, steady: bool, pdl: bool = False
) -> Sampled:
    """Draw one token for each row.

    Args:
        logits: float32 [rows, vocab]; changed in place. The first rows are those of `sequences`, the others are nobody's.
        rows: their parameters on the device.
        steady: log-probabilities are computed row by row, so that their bits do not depend on other rows.
    """
    asking = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    groups = [[row] for row in asking] if steady else [asking] if asking else []
    places = [send(group, torch.int64, logits.device) for group in groups]
    raw = [torch.log_softmax(logits[at], dim=-1) for at in places]
    adjust(logits, sequences)
    ids, finite = sample_rows(logits, rows, pdl=pdl)
    if not groups:
        return Sampled(ids, finite)
    wanted = [max(sequences[row].params.logprobs or 0 for row in group) for group in groups]
    found = Logprobs.zeros(len(sequences), min(max(wanted), logits.shape[1]), logits.device)
    for at, table, most in zip(places, raw, wanted, strict=True):
        found.put(at, look_up(table, ids[at], most))
    return Sampled(ids, finite, found)


def sample_newcomers(
    logits: Tensor, sequences: list[Sequence], *, steady: bool, pdl: bool = False
) -> Sampled:
    """As `sample_adjusted`, for sequences that have no rows on the device yet."""
    return sample_adjusted(
        logits, rows_of_newcomers(sequences, logits.device), sequences, steady=steady, pdl=pdl
    )


def rows_of_newcomers(sequences: list[Sequence], device: torch.device) -> SamplingRows:
    """The parameters of sequences that have no rows on the device yet: they go there with the step."""
    numbers = [(s.params.top_k or 0, signed(s.seed), s.counter) for s in sequences]
    whole = send(numbers, torch.int64, device)
    real = send([shares(s.params) for s in sequences], torch.float32, device)
    top_k, seed, counter = (column.contiguous() for column in whole.unbind(1))
    temperature, top_p, min_p = (column.contiguous() for column in real.unbind(1))
    return SamplingRows(temperature, top_k.int(), top_p, min_p, seed, counter)

"""Sampling in the deterministic mode: each row is drawn as if it were alone, by the same code in every kind of step.

`sampler.sample` looks at a batch as a whole (how many candidates it sorts, say). Where steps are captured this is not asked:
there every token is drawn by the kernels of captured steps, in which a row knows nothing of the others. Those agree with this
but for the last bit of a logarithm, which is enough to draw another token now and then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.engine.sampler import Logprobs, Sampled, sample
from nanochat.engine.sequence import Sequence


def sample_steadily(logits: Tensor, sequences: list[Sequence]) -> Sampled:
    """Draw one token for each row; see `sampler.sample`."""
    return _joined([sample(logits[i : i + 1], [s]) for i, s in enumerate(sequences)], logits.device)


def _joined(rows: list[Sampled], device: torch.device) -> Sampled:
    """One `Sampled` of single rows."""
    ids, finite = torch.cat([row.ids for row in rows]), torch.cat([row.finite for row in rows])
    width = max((row.logprobs.top.shape[1] for row in rows if row.logprobs is not None), default=None)
    if width is None:
        return Sampled(ids, finite)
    found = Logprobs.zeros(len(rows), width, device)
    for i, row in enumerate(rows):
        if row.logprobs is not None:
            found.put(slice(i, i + 1), row.logprobs)
    return Sampled(ids, finite, found)

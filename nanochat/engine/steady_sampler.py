"""Sampling in the deterministic mode: each row is drawn as if it were alone, by the same code in every kind of step.

`sampler.sample` looks at a batch as a whole (how many candidates it sorts, say), and a captured step draws with
Triton's kernels. Both agree but for the last bit of a logarithm, which is enough to draw another token now and then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.engine.device_copies import send
from nanochat.engine.sampler import Logprobs, Sampled, sample
from nanochat.engine.sequence import Sequence


def sample_steadily(logits: Tensor, sequences: list[Sequence]) -> Sampled:
    """Draw one token for each row; see `sampler.sample`. On CUDA with the kernels of captured steps."""
    if logits.device.type == "cuda":
        return _on_device(logits, sequences)
    return _joined([sample(logits[i : i + 1], [s]) for i, s in enumerate(sequences)], logits.device)


def _on_device(logits: Tensor, sequences: list[Sequence]) -> Sampled:
    """With kernels in which a row knows nothing of the others."""
    from nanochat.engine.adjusted_sampler import sample_adjusted
    from nanochat.engine.device_state import signed
    from nanochat.kernels.triton_sampling import SamplingRows

    params = [sequence.params for sequence in sequences]
    whole = send(
        [[p.top_k or 0, signed(s.seed), s.counter] for p, s in zip(params, sequences, strict=True)],
        torch.int64,
        logits.device,
    )
    real = send(
        [[p.temperature or 0.0, 1.0 if p.top_p is None else p.top_p, p.min_p or 0.0] for p in params],
        torch.float32,
        logits.device,
    )
    top_k, seed, counter = (column.contiguous() for column in whole.unbind(1))
    temperature, top_p, min_p = (column.contiguous() for column in real.unbind(1))
    rows = SamplingRows(temperature, top_k.int(), top_p, min_p, seed, counter)
    return sample_adjusted(logits, rows, sequences, steady=True)


def _joined(rows: list[Sampled], device: torch.device) -> Sampled:
    """One `Sampled` of single rows."""
    ids, finite = torch.cat([row.ids for row in rows]), torch.cat([row.finite for row in rows])
    width = max((row.logprobs.top.shape[1] for row in rows if row.logprobs is not None), default=None)
    if width is None:
        return Sampled(ids, finite)
    found = Logprobs.zeros(len(rows), width, device)
    for i, row in enumerate(rows):
        if row.logprobs is not None:
            own, count = row.logprobs, row.logprobs.top.shape[1]
            found.chosen[i], found.rank[i] = own.chosen[0], own.rank[0]
            found.top[i, :count], found.top_ids[i, :count] = own.top[0], own.top_ids[0]
    return Sampled(ids, finite, found)

"""Sampling in the deterministic mode: each row is drawn as if it were alone, by the same code in every kind of step.

`sampler.sample` looks at a batch as a whole (how many candidates it sorts, say), and a captured step draws with
Triton's kernels. Both agree but for the last bit of a logarithm, which is enough to draw another token now and then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.engine.sampler import Sampled, sample
from nanochat.engine.sequence import Sequence


def sample_steadily(logits: Tensor, sequences: list[Sequence]) -> Sampled:
    """Draw one token for each row; see `sampler.sample`. On CUDA what a captured step could draw, its kernels draw."""
    if logits.device.type == "cuda" and all(sequence.plain for sequence in sequences):
        return _on_device(logits, sequences)
    return _joined([_alone(logits[i : i + 1], s) for i, s in enumerate(sequences)], logits.device)


def _alone(logits: Tensor, sequence: Sequence) -> Sampled:
    if logits.device.type == "cuda" and sequence.plain:
        return _on_device(logits, [sequence])
    return sample(logits, [sequence])


def _on_device(logits: Tensor, sequences: list[Sequence]) -> Sampled:
    """With the kernels of captured steps, in which a row knows nothing of the others."""
    from nanochat.engine.device_state import send, signed
    from nanochat.kernels.triton_sampling import SamplingRows, sample_rows

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
    return Sampled(*sample_rows(logits, SamplingRows(temperature, top_k.int(), top_p, min_p, seed, counter)))


def _joined(rows: list[Sampled], device: torch.device) -> Sampled:
    """One `Sampled` of single rows; where only some have log-probabilities, the others' are zeros that nobody reads."""
    ids, finite = torch.cat([row.ids for row in rows]), torch.cat([row.finite for row in rows])
    width = max((row.top_ids.shape[1] for row in rows if row.top_ids is not None), default=None)
    if width is None:
        return Sampled(ids, finite)
    logprob, rank = torch.zeros(len(rows), device=device), torch.zeros_like(ids)
    top_logprobs = torch.zeros(len(rows), width, device=device)
    top_ids = torch.zeros(len(rows), width, dtype=torch.int64, device=device)
    for i, row in enumerate(rows):
        if row.logprob is None or row.rank is None or row.top_logprobs is None or row.top_ids is None:
            continue
        logprob[i], rank[i] = row.logprob[0], row.rank[0]
        top_logprobs[i, : row.top_ids.shape[1]] = row.top_logprobs[0]
        top_ids[i, : row.top_ids.shape[1]] = row.top_ids[0]
    return Sampled(ids, finite, logprob, rank, top_logprobs, top_ids)

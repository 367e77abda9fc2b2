"""Drawing tokens on the device from logits that stay divided over the ranks of a tensor-parallel model.

Each rank offers the best token of its part of the vocabulary, in three words a row; the best of all offers is the token
that whole logits would have given. That is exact where a token is a largest value: the likeliest one, or one drawn with a
temperature and no filter. Score, noise and the order of equal tokens are those of `triton_sampling`, bit for bit.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2
from nanochat.kernels.triton_noise import NO_TOKEN, best_of, gumbel, noise_word
from nanochat.kernels.triton_sampling import ANYWHERE, SamplingRows

_CHUNK = 1024


@triton.jit(do_not_specialize_on_alignment=ANYWHERE)
def _offer_chunk(
    share_ptr, temperature_ptr, seed_ptr, counter_ptr, partial_ptr, stride, first, size, num_chunks,
    CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One chunk of one row of the share: partial[row, chunk] = (bits of the best score, its token, bad)."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    valid = at < size
    x = tl.load(share_ptr + row * stride + at, mask=valid, other=float("-inf")).to(tl.float32)
    bad = tl.max((valid & ~(tl.abs(x) < float("inf"))).to(tl.int32), 0)
    temperature = tl.load(temperature_ptr + row)
    greedy = temperature <= 0.0
    x = tl.div_rn(x, tl.where(greedy, 1.0, temperature))
    token = first + at
    if greedy == 0:
        low, high = noise_word(tl.load(seed_ptr + row), tl.load(counter_ptr + row))
        x += gumbel(token, low, high)
    best, best_token = best_of(x, token)
    to = partial_ptr + (row * num_chunks + chunk) * 3
    tl.store(to, best.to(tl.int32, bitcast=True))
    tl.store(to + 1, best_token)
    tl.store(to + 2, bad)


@triton.jit
def _best_offer(first_ptr, count, stride, OFFERS: tl.constexpr):
    """(score, token, bad) of the best of `count` offers, `stride` words apart; of equal ones the lowest token."""
    offer = tl.arange(0, OFFERS)
    there = offer < count
    source = first_ptr + offer.to(tl.int64) * stride
    scores = tl.load(source, mask=there, other=0).to(tl.float32, bitcast=True)
    tokens = tl.load(source + 1, mask=there, other=0)
    bad = tl.max(tl.load(source + 2, mask=there, other=0), 0)
    score, token = best_of(tl.where(there, scores, float("-inf")), tl.where(there, tokens, NO_TOKEN))
    return score, token, bad


@triton.jit
def _offer(partial_ptr, offer_ptr, num_chunks, CHUNKS: tl.constexpr, PDL: tl.constexpr):
    """A row's offer: the best of its chunks."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    score, token, bad = _best_offer(partial_ptr + row * num_chunks * 3, num_chunks, 3, CHUNKS)
    tl.store(offer_ptr + row * 3, score.to(tl.int32, bitcast=True))
    tl.store(offer_ptr + row * 3 + 1, token)
    tl.store(offer_ptr + row * 3 + 2, bad)


@triton.jit
def _choose_offer(
    offers_ptr, ids_ptr, finite_ptr, ranks, rank_stride, RANKS: tl.constexpr, PDL: tl.constexpr
):
    """A row's token: the best of the ranks' offers; 0 where a logit of any rank is not finite."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    _, token, bad = _best_offer(offers_ptr + row * 3, ranks, rank_stride, RANKS)
    tl.store(ids_ptr + row, tl.where(bad > 0, 0, token).to(tl.int64))
    tl.store(finite_ptr + row, bad == 0)


def offer_rows(share: Tensor, rows: SamplingRows, first: int, *, pdl: bool = False) -> Tensor:
    """What a rank tells of its logits, int32 [rows, 3]: the bits of the best score, its token, whether any is not finite.

    Args:
        share: [num_rows, n], of the tokens from id `first` on; n may be 0.
        rows: without top-k, top-p and min-p.
        pdl: programmatic dependent launches (sm_90 and later).
    """
    num_rows, size = share.shape
    chunks = max(triton.cdiv(size, _CHUNK), 1)
    partial = torch.empty(num_rows, chunks, 3, dtype=torch.int32, device=share.device)
    offers = torch.empty(num_rows, 3, dtype=torch.int32, device=share.device)
    dependent = {"launch_pdl": True} if pdl else {}
    _offer_chunk[(chunks, num_rows)](
        share, rows.temperature, rows.seed, rows.counter, partial, share.stride(0), first, size, chunks,
        CHUNK=_CHUNK, PDL=pdl, num_warps=4, **dependent,
    )  # fmt: skip
    _offer[(num_rows,)](
        partial, offers, chunks, CHUNKS=next_power_of_2(chunks), PDL=pdl, num_warps=1, **dependent,
    )  # fmt: skip
    return offers


def choose_rows(offers: Tensor, *, pdl: bool = False) -> tuple[Tensor, Tensor]:
    """The ranks' offers, int32 [ranks, rows, 3] -> (ids int64 [rows], finite bool [rows]); see `sample_rows`."""
    ranks, num_rows, _ = offers.shape
    ids = torch.empty(num_rows, dtype=torch.int64, device=offers.device)
    finite = torch.empty(num_rows, dtype=torch.bool, device=offers.device)
    _choose_offer[(num_rows,)](
        offers, ids, finite, ranks, offers.stride(0), RANKS=next_power_of_2(ranks), PDL=pdl,
        num_warps=1, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
    return ids, finite

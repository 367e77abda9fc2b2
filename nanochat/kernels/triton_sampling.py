"""Drawing tokens on the device: temperature, top-k, top-p, min-p and greedy, row by row, without sorting.

The noise is that of `nanochat.engine.sampler`: Gumbel noise from a hash of (seed, counter, token id), so a token is
argmax(logit / temperature + noise) over what the filters keep. Filters keep a prefix of the vocabulary in the order
of (logit, descending; id, ascending).

`_scan` reads the logits once, in parallel, and leaves for each chunk its best noisy token, its softmax sum, and the
largest logit of every 32. `_choose` ends each row:
- unfiltered: the best of the chunks;
- top-k up to 256: only the k groups of 32 with the largest maxima can hold the k largest logits. Up to 64, their
  elements are narrowed down to a few that are compared pair by pair; above, or where very many tie, the cuts of
  top-k and top-p are found bit by bit;
- otherwise: the best noisy token of all is right if the filters keep it. If not, everything ordered at or after it
  falls too, so the best of what comes before it is tried next. Groups without such a token are not read.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2
from nanochat.kernels.triton_filters import choose_by_trying, choose_of_few, choose_of_top_k
from nanochat.kernels.triton_noise import GROUP, NO_TOKEN, best_of, gumbel, noise_word

# What one newcomer brings lies in one message, and each of it anywhere there: no reason for a kernel of its own.
ANYWHERE = ["temperature_ptr", "seed_ptr", "counter_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr"]


@triton.jit(do_not_specialize_on_alignment=ANYWHERE)
def _scan(
    logits_ptr, temperature_ptr, seed_ptr, counter_ptr, partial_ptr, maxima_ptr, stride, vocab, num_chunks, num_groups,
    CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One chunk of one row: partial[row, chunk] = (max, sum of exp, best score, its token's bits, bad), and group maxima."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    valid = token < vocab
    x = tl.load(logits_ptr + row * stride + token, mask=valid, other=float("-inf")).to(tl.float32)
    bad = tl.max((valid & ~(tl.abs(x) < float("inf"))).to(tl.int32), 0)
    group = chunk * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
    maxima = tl.max(tl.reshape(x, (CHUNK // GROUP, GROUP)), 1)
    tl.store(maxima_ptr + row * num_groups + group, maxima, mask=group < num_groups)

    temperature = tl.load(temperature_ptr + row)
    greedy = temperature <= 0.0
    x = tl.div_rn(x, tl.where(greedy, 1.0, temperature))
    top = tl.max(x, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(tl.exp(x - base), 0)
    if greedy == 0:
        low, high = noise_word(tl.load(seed_ptr + row), tl.load(counter_ptr + row))
        x += gumbel(token, low, high)
    best, best_token = best_of(x, token)
    to = partial_ptr + (row * num_chunks + chunk) * 5
    tl.store(to, top)
    tl.store(to + 1, mass)
    tl.store(to + 2, best)
    tl.store(to + 3, best_token.to(tl.float32, bitcast=True))
    tl.store(to + 4, bad.to(tl.float32))


@triton.jit(do_not_specialize=["word"], do_not_specialize_on_alignment=ANYWHERE)
def _choose(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, counter_ptr,
    partial_ptr, maxima_ptr, groups_ptr, ids_ptr, finite_ptr, stride, vocab, num_chunks, num_groups, word,
    CHUNKS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The end of one row: its token and whether all its logits are finite.

    `word` is 32, the bits to search. It is an argument so that no compiler unrolls the searches.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    own = chunk < num_chunks
    source = partial_ptr + (row * num_chunks + chunk) * 5
    tops = tl.load(source, mask=own, other=float("-inf"))
    masses = tl.load(source + 1, mask=own, other=0.0)
    scores = tl.load(source + 2, mask=own, other=float("-inf"))
    tokens = tl.load(source + 3, mask=own, other=0.0).to(tl.int32, bitcast=True)
    bad = tl.max(tl.load(source + 4, mask=own, other=0.0), 0) > 0.0
    top = tl.max(tops, 0)
    _, token = best_of(tl.where(own, scores, float("-inf")), tl.where(own, tokens, NO_TOKEN))
    temperature = tl.load(temperature_ptr + row)
    k = tl.load(top_k_ptr + row)
    k = tl.where(k >= vocab, 0, k)
    p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    filtered = (temperature > 0.0) & ((k > 0) | (p < 1.0) | (min_p > 0.0))
    if filtered & (not bad):
        total = tl.sum(masses * tl.exp(tops - top), 0)
        floor = tl.where(min_p > 0.0, top + tl.log(tl.where(min_p > 0.0, min_p, 1.0)), float("-inf"))
        low, high = noise_word(tl.load(seed_ptr + row), tl.load(counter_ptr + row))
        logits = logits_ptr + row * stride
        maxima = maxima_ptr + row * num_groups
        groups = groups_ptr + row * 256
        found = tl.full([], NO_TOKEN, tl.int32)
        if (k > 0) & (k <= 64):
            found = choose_of_few(
                logits,
                maxima,
                groups,
                low,
                high,
                temperature,
                k,
                p,
                floor,
                top,
                vocab,
                num_groups,
                GROUPS,
                128,
            )
        if found != NO_TOKEN:
            token = found
        elif (k > 0) & (k <= 256):
            token = choose_of_top_k(
                logits, maxima, groups, low, high, temperature, k, p, floor, top, vocab, num_groups, word, GROUPS, 256
            )  # fmt: skip
        else:
            token = choose_by_trying(
                logits, maxima, low, high, temperature, k, p, floor, top, total, token, vocab, num_groups, word, TILE
            )  # fmt: skip
    token = tl.where(bad, 0, token)
    tl.store(ids_ptr + row, token.to(tl.int64))
    tl.store(finite_ptr + row, bad == 0)


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Each row's parameters, on the device.

    Attributes:
        temperature: float32 [rows]; 0 is greedy, and then nothing else counts.
        top_k: int32 [rows]; 0 keeps all.
        top_p, min_p: float32 [rows]; 1 and 0 keep all.
        seed, counter: int64 [rows]; the token's noise is a function of both.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    counter: Tensor


def sample_rows(logits: Tensor, rows: SamplingRows, *, pdl: bool = False) -> tuple[Tensor, Tensor]:
    """Draw one token for each row; nothing waits for the host.

    Args:
        logits: [num_rows, vocab], float32 (or a half type); left as they are.

    Returns:
        (ids, finite), int64 and bool [num_rows]. A row with NaN or an infinity among its logits is not finite, and its id is 0.
    """
    num_rows, vocab = logits.shape
    device = logits.device
    chunk = 1024
    chunks, groups = triton.cdiv(vocab, chunk), triton.cdiv(vocab, 32)
    partial = torch.empty(num_rows, chunks, 5, dtype=torch.float32, device=device)
    maxima = torch.empty(num_rows, groups, dtype=torch.float32, device=device)
    picked = torch.empty(num_rows, 256, dtype=torch.int32, device=device)
    ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    finite = torch.empty(num_rows, dtype=torch.bool, device=device)
    dependent = {"launch_pdl": True} if pdl else {}
    _scan[(chunks, num_rows)](
        logits, rows.temperature, rows.seed, rows.counter, partial, maxima, logits.stride(0), vocab, chunks, groups,
        CHUNK=chunk, PDL=pdl, num_warps=4, **dependent,
    )  # fmt: skip
    _choose[(num_rows,)](
        logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.counter,
        partial, maxima, picked, ids, finite, logits.stride(0), vocab, chunks, groups, 32,
        CHUNKS=next_power_of_2(chunks), GROUPS=next_power_of_2(groups), TILE=min(4096, next_power_of_2(max(vocab, 32))),
        PDL=pdl, num_warps=16, **dependent,
    )  # fmt: skip
    return ids, finite

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

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2

GROUP = tl.constexpr(32)
NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def _fmix32(h):
    """murmur3's finaliser on uint32."""
    h = h ^ (h >> 16)
    h = h * 0x85EBCA6B
    h = h ^ (h >> 13)
    h = h * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def noise_word(seed, counter):
    """(low, high) halves, uint32, of splitmix64(seed + counter * golden)."""
    golden: tl.constexpr = 0x9E3779B97F4A7C15
    x = seed.to(tl.uint64) + counter.to(tl.uint64) * golden + golden
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return (x & 0xFFFFFFFF).to(tl.uint32), (x >> 32).to(tl.uint32)


@triton.jit
def gumbel(token, low, high):
    """Gumbel noise, float32, for token ids (int32)."""
    h = _fmix32(_fmix32(token.to(tl.uint32) ^ low) + high)
    uniform = ((h >> 8).to(tl.int32).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    # The largest hash rounds to 1, whose noise would be infinite.
    return -tl.log(-tl.log(tl.minimum(uniform, 0.99999994)))


@triton.jit
def ordered_bits(x):
    """uint32 that order as the floats do; 0 is below all of them."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # adding makes one zero of the two
    flip = (bits >> 31) | -2147483648
    return (bits ^ flip).to(tl.uint32, bitcast=True)


@triton.jit
def _best(score, token, BEST: tl.constexpr = 0):
    """(the largest score, its lowest token id)."""
    top = tl.max(score, 0)
    return top, tl.min(tl.where(score == top, token, NO_TOKEN), 0)


@triton.jit
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
    best, best_token = _best(x, token)
    to = partial_ptr + (row * num_chunks + chunk) * 5
    tl.store(to, top)
    tl.store(to + 1, mass)
    tl.store(to + 2, best)
    tl.store(to + 3, best_token.to(tl.float32, bitcast=True))
    tl.store(to + 4, bad.to(tl.float32))


@triton.jit
def _largest_bits_with_count(bits, valid, at_least, word):
    """The largest t for which `at_least` of the valid `bits` are t or more; 0 if there are fewer."""
    t = tl.zeros([], tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(word):
        candidate = t | bit
        bit = bit >> 1
        enough = tl.sum((valid & (bits >= candidate)).to(tl.int32), 0) >= at_least
        t = tl.where(enough, candidate, t)
    return t


@triton.jit
def _smallest_bits_with_mass_above(bits, weight, limit, word):
    """The smallest t for which the weights of `bits` above t sum to less than `limit`."""
    t = tl.zeros([], tl.uint32)  # the largest t that still has the limit's mass above it, once there is one
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(word):
        candidate = t | bit
        bit = bit >> 1
        heavy = tl.sum(tl.where(bits > candidate, weight, 0.0), 0) >= limit
        t = tl.where(heavy, candidate, t)
    heavy = tl.sum(tl.where(bits > t, weight, 0.0), 0) >= limit
    return tl.where(heavy, t + 1, t)


@triton.jit
def _choose_of_top_k(
    logits, maxima_ptr, groups_ptr, low, high, temperature, k, p, floor, top, vocab, num_groups, word,
    GROUPS: tl.constexpr, PICKED: tl.constexpr,
):  # fmt: skip
    """The token of a row with a top-k of at most PICKED: exact top-k, then top-p and the floor, then the best noisy one."""
    group = tl.arange(0, GROUPS)
    in_row = group < num_groups
    maxima = ordered_bits(tl.load(maxima_ptr + group, mask=in_row, other=0.0))
    cut = _largest_bits_with_count(maxima, in_row, k, word)
    above = in_row & (maxima > cut)
    level = in_row & (maxima == cut)
    spare = k - tl.sum(above.to(tl.int32), 0)
    picked = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= spare))
    place = tl.cumsum(picked.to(tl.int32), 0) - 1
    tl.store(groups_ptr + place, group, mask=picked)
    num_picked = tl.sum(picked.to(tl.int32), 0)
    tl.debug_barrier()  # other threads read what was stored

    element = tl.arange(0, PICKED * GROUP)
    owner = element // GROUP
    token = tl.load(groups_ptr + owner, mask=owner < num_picked, other=0) * GROUP + element % GROUP
    valid = (owner < num_picked) & (token < vocab)
    x = tl.load(logits + token, mask=valid, other=float("-inf")).to(tl.float32)
    bits = ordered_bits(x)
    cut = _largest_bits_with_count(bits, valid, k, word)
    above = valid & (bits > cut)
    level = valid & (bits == cut)
    spare = k - tl.sum(above.to(tl.int32), 0)
    kept = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= spare))

    x = tl.div_rn(x, temperature)
    weight = tl.where(kept, tl.exp(x - top), 0.0)
    if p < 1.0:
        limit = p * tl.sum(weight, 0)
        cut = _smallest_bits_with_mass_above(bits, weight, limit, word)
        level = kept & (bits == cut)
        before = tl.sum(tl.where(bits > cut, weight, 0.0), 0) + (tl.cumsum(level.to(tl.int32), 0) - 1).to(tl.float32) * weight
        kept = kept & ((bits > cut) | (level & (before < limit)))
    kept = kept & (x >= floor)
    score = tl.where(kept, x + gumbel(token, low, high), float("-inf"))
    _, best = _best(score, token)
    return best


@triton.jit
def _narrow(bits, valid, wanted, most):
    """(t, how many of the valid `bits` are t or more): at least `wanted`, and no more than `most` unless many tie."""
    t = tl.zeros([], tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    count = tl.sum(valid.to(tl.int32), 0)
    while (count > most) & (bit > 0):
        candidate = t | bit
        bit = bit >> 1
        found = tl.sum((valid & (bits >= candidate)).to(tl.int32), 0)
        enough = found >= wanted
        t = tl.where(enough, candidate, t)
        count = tl.where(enough, found, count)
    return t, count


@triton.jit
def _choose_of_few(
    logits, maxima_ptr, scratch_ptr, low, high, temperature, k, p, floor, top, vocab, num_groups,
    GROUPS: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """The token of a row with a top-k of at most FEW / 2; NO_TOKEN if too many logits tie.

    Groups, then elements, are narrowed down to at most FEW that hold the k largest; those are compared pair by pair.
    """
    group = tl.arange(0, GROUPS)
    in_row = group < num_groups
    maxima = ordered_bits(tl.load(maxima_ptr + group, mask=in_row, other=0.0))
    cut, num_picked = _narrow(maxima, in_row, k, FEW)
    token = tl.full([], NO_TOKEN, tl.int32)
    if num_picked <= FEW:
        picked = in_row & (maxima >= cut)
        tl.store(scratch_ptr + tl.cumsum(picked.to(tl.int32), 0) - 1, group, mask=picked)
        tl.debug_barrier()  # other threads read what was stored
        element = tl.arange(0, FEW * GROUP)
        owner = element // GROUP
        candidate = tl.load(scratch_ptr + owner, mask=owner < num_picked, other=0) * GROUP + element % GROUP
        valid = (owner < num_picked) & (candidate < vocab)
        bits = ordered_bits(tl.load(logits + candidate, mask=valid, other=float("-inf")).to(tl.float32))
        at_least = valid & (bits >= cut)
        count = tl.sum(at_least.to(tl.int32), 0)
        if count > FEW:
            cut, count = _narrow(bits, valid, k, FEW)
            at_least = valid & (bits >= cut)
        if count <= FEW:
            tl.debug_barrier()
            tl.store(scratch_ptr + tl.cumsum(at_least.to(tl.int32), 0) - 1, candidate, mask=at_least)
            tl.debug_barrier()
            own = tl.arange(0, FEW)
            mine = tl.load(scratch_ptr + own, mask=own < count, other=0)
            x = tl.load(logits + mine, mask=own < count, other=float("-inf")).to(tl.float32)
            other = tl.load(scratch_ptr + own[None, :], mask=own[None, :] < count, other=0)
            y = tl.load(logits + other, mask=own[None, :] < count, other=float("-inf")).to(tl.float32)
            x_bits = ordered_bits(x)[:, None]
            y_bits = ordered_bits(y)
            earlier = (y_bits > x_bits) | ((y_bits == x_bits) & (other < mine[:, None]))
            earlier = earlier & (own[None, :] < count)
            rank = tl.sum(earlier.to(tl.int32), 1)
            weight = tl.exp(tl.div_rn(y, temperature) - top)
            before = tl.sum(tl.where(earlier, weight, 0.0), 1)
            x = tl.div_rn(x, temperature)
            kept = (own < count) & (rank < k)
            total = tl.sum(tl.where(kept, tl.exp(x - top), 0.0), 0)
            limit = tl.where(p < 1.0, p * total, float("inf"))
            kept = kept & (before < limit) & (x >= floor)
            _, token = _best(tl.where(kept, x + gumbel(mine, low, high), float("-inf")), mine)
    return token


@triton.jit
def _count_before(
    logits, maxima_ptr, low, high, temperature, top, cut, cut_token, vocab, num_groups, NOISE: tl.constexpr, TILE: tl.constexpr
):
    """Of the tokens ordered before (cut, cut_token): how many, their mass, and the best noisy one."""
    count = tl.zeros([TILE], tl.int32)
    mass = tl.zeros([TILE], tl.float32)
    best_score = tl.full([TILE], float("-inf"), tl.float32)
    best = tl.full([TILE], NO_TOKEN, tl.int32)
    for start in range(0, num_groups, TILE // GROUP):
        token = start * GROUP + tl.arange(0, TILE)
        owner = token // GROUP
        maxima = tl.load(maxima_ptr + owner, mask=owner < num_groups, other=float("-inf"))
        valid = (token < vocab) & (ordered_bits(maxima) >= cut)
        x = tl.load(logits + token, mask=valid, other=float("-inf")).to(tl.float32)
        bits = ordered_bits(x)
        before = valid & ((bits > cut) | ((bits == cut) & (token < cut_token)))
        count += before.to(tl.int32)
        x = tl.div_rn(x, temperature)
        mass += tl.where(before, tl.exp(x - top), 0.0)
        if NOISE:
            score = tl.where(before, x + gumbel(token, low, high), float("-inf"))
            better = score > best_score
            best = tl.where(better, token, best)
            best_score = tl.where(better, score, best_score)
    _, best_token = _best(best_score, best)
    return tl.sum(count, 0), tl.sum(mass, 0), best_token


@triton.jit
def _choose_by_trying(
    logits, maxima_ptr, low, high, temperature, k, p, floor, top, total, first, vocab, num_groups, word, TILE: tl.constexpr
):
    """The token of a row with any filters: try the best noisy token, then the best of those before it, and so on."""
    limit = p * total
    if (k > 0) & (p < 1.0):
        # Top-p counts the mass of the top k alone: find the k-th logit and what the top k weigh.
        cut = tl.zeros([], tl.uint32)
        bit = tl.full([], 0x80000000, tl.uint32)
        for _ in range(word):
            candidate = cut | bit
            bit = bit >> 1
            count, _, _ = _count_before(
                logits, maxima_ptr, low, high, temperature, top, candidate, NO_TOKEN, vocab, num_groups, False, TILE
            )
            cut = tl.where(count >= k, candidate, cut)
        count, mass, _ = _count_before(
            logits, maxima_ptr, low, high, temperature, top, cut, -1, vocab, num_groups, False, TILE
        )
        sign = (cut >> 31) == 1
        value = tl.where(sign, cut ^ 0x80000000, cut ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)
        limit = p * (mass + (k - count).to(tl.float32) * tl.exp(tl.div_rn(value, temperature) - top))
    token = first
    trying = True
    while trying:
        value = tl.load(logits + token).to(tl.float32)
        count, mass, next_token = _count_before(
            logits, maxima_ptr, low, high, temperature, top, ordered_bits(value), token, vocab, num_groups, True, TILE
        )
        good = ((k <= 0) | (count < k)) & ((p >= 1.0) | (mass < limit)) & (tl.div_rn(value, temperature) >= floor)
        trying = (not good) & (next_token != NO_TOKEN)
        token = tl.where(trying, next_token, token)
    return token


@triton.jit(do_not_specialize=["word"])
def _choose(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, counter_ptr,
    partial_ptr, maxima_ptr, groups_ptr, ids_ptr, finite_ptr, stride, vocab, num_chunks, num_groups, word,
    CHUNKS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, FILTERED: tl.constexpr, PDL: tl.constexpr,
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
    _, token = _best(tl.where(own, scores, float("-inf")), tl.where(own, tokens, NO_TOKEN))
    if FILTERED:
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
                found = _choose_of_few(
                    logits, maxima, groups, low, high, temperature, k, p, floor, top, vocab, num_groups, GROUPS, 128
                )
            if found != NO_TOKEN:
                token = found
            elif (k > 0) & (k <= 256):
                token = _choose_of_top_k(
                    logits, maxima, groups, low, high, temperature, k, p, floor, top, vocab, num_groups, word, GROUPS, 256
                )
            else:
                token = _choose_by_trying(
                    logits, maxima, low, high, temperature, k, p, floor, top, total, token, vocab, num_groups, word, TILE
                )
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


def sample_rows(
    logits: Tensor, rows: SamplingRows, *, filtered: bool = True, ids: Tensor | None = None, finite: Tensor | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw one token for each row; nothing waits for the host.

    Args:
        logits: [num_rows, vocab], float32 (or a half type); left as they are.
        filtered: false promises that no row has a top-k, top-p or min-p.
        ids, finite: where to write; int64 and bool [num_rows].

    Returns:
        (ids, finite). A row with NaN or an infinity among its logits is not finite, and its id is 0.
    """
    num_rows, vocab = logits.shape
    device = logits.device
    chunk = 1024
    chunks, groups = triton.cdiv(vocab, chunk), triton.cdiv(vocab, 32)
    partial = torch.empty(num_rows, chunks, 5, dtype=torch.float32, device=device)
    maxima = torch.empty(num_rows, groups, dtype=torch.float32, device=device)
    picked = torch.empty(num_rows, 256, dtype=torch.int32, device=device)
    ids = torch.empty(num_rows, dtype=torch.int64, device=device) if ids is None else ids
    finite = torch.empty(num_rows, dtype=torch.bool, device=device) if finite is None else finite
    dependent = {"launch_pdl": True} if pdl else {}
    _scan[(chunks, num_rows)](
        logits, rows.temperature, rows.seed, rows.counter, partial, maxima, logits.stride(0), vocab, chunks, groups,
        CHUNK=chunk, PDL=pdl, num_warps=4, **dependent,
    )  # fmt: skip
    _choose[(num_rows,)](
        logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.counter,
        partial, maxima, picked, ids, finite, logits.stride(0), vocab, chunks, groups, 32,
        CHUNKS=next_power_of_2(chunks), GROUPS=next_power_of_2(groups), TILE=min(4096, next_power_of_2(max(vocab, 32))),
        FILTERED=filtered, PDL=pdl, num_warps=16 if filtered else 4, **dependent,
    )  # fmt: skip
    return ids, finite

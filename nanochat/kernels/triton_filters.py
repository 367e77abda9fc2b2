"""Top-k, top-p and min-p of one row, exact and without sorting: the ways of `triton_sampling`, one program a row."""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from nanochat.kernels.triton_noise import GROUP, NO_TOKEN, best_of, gumbel, ordered_bits


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
def choose_of_top_k(
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
        before = (
            tl.sum(tl.where(bits > cut, weight, 0.0), 0)
            + (tl.cumsum(level.to(tl.int32), 0) - 1).to(tl.float32) * weight
        )
        kept = kept & ((bits > cut) | (level & (before < limit)))
    kept = kept & (x >= floor)
    score = tl.where(kept, x + gumbel(token, low, high), float("-inf"))
    _, best = best_of(score, token)
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
def choose_of_few(
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
            _, token = best_of(tl.where(kept, x + gumbel(mine, low, high), float("-inf")), mine)
    return token


@triton.jit
def _count_before(
    logits,
    maxima_ptr,
    low,
    high,
    temperature,
    top,
    cut,
    cut_token,
    vocab,
    num_groups,
    NOISE: tl.constexpr,
    TILE: tl.constexpr,
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
    _, best_token = best_of(best_score, best)
    return tl.sum(count, 0), tl.sum(mass, 0), best_token


@triton.jit
def choose_by_trying(
    logits,
    maxima_ptr,
    low,
    high,
    temperature,
    k,
    p,
    floor,
    top,
    total,
    first,
    vocab,
    num_groups,
    word,
    TILE: tl.constexpr,
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
                logits,
                maxima_ptr,
                low,
                high,
                temperature,
                top,
                candidate,
                NO_TOKEN,
                vocab,
                num_groups,
                False,
                TILE,
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
            logits,
            maxima_ptr,
            low,
            high,
            temperature,
            top,
            ordered_bits(value),
            token,
            vocab,
            num_groups,
            True,
            TILE,
        )
        good = (
            ((k <= 0) | (count < k))
            & ((p >= 1.0) | (mass < limit))
            & (tl.div_rn(value, temperature) >= floor)
        )
        trying = (not good) & (next_token != NO_TOKEN)
        token = tl.where(trying, next_token, token)
    return token

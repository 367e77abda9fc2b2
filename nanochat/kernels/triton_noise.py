"""The noise of sampling, and the order of logits: what the scan and the filters share."""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

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
    # 23 bits, so that adding a half is exact: with 24 the largest would round to 1, and its noise to infinity.
    uniform = ((h >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform))


@triton.jit
def ordered_bits(x):
    """uint32 that order as the floats do; 0 is below all of them."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # adding makes one zero of the two
    flip = (bits >> 31) | -2147483648
    return (bits ^ flip).to(tl.uint32, bitcast=True)


@triton.jit
def best_of(score, token):
    """(the largest score, its lowest token id)."""
    top = tl.max(score, 0)
    return top, tl.min(tl.where(score == top, token, NO_TOKEN), 0)

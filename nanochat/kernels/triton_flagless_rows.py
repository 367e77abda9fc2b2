"""Whole rows between the GPUs of a host without flags: what has arrived is told from what has not by the numbers themselves.

A wide sum (`triton_wide_sum`) writes a row to its peers, waits until it is there (a fence), and only then raises a flag. Of
some hundred rows the fence is a fifth of the time. Here a place in an inbox holds zero bits as long as nothing has come, a
sender writes -0.0 for +0.0, which changes no sum, and who has read a row empties it for the round after the next. The idea is
known by Lamport's name (TensorRT-LLM's all-reduce has it).

Rounds are counted on the device, for each row; odd and even ones use two halves of the inbox. Who sends round k + 2 has the
peer's row of round k + 1, which the peer sent after its kernel of round k had ended, and with it the emptying.

Waiting is bounded and can be ended, as with flags (`triton_row_inbox`), and the bits of the sums are the same.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

ROWS = 512  # at most in a message


@triton.jit
def _words(address, like):
    """A row in an inbox, as integers of the size of what `like` points to."""
    if like.dtype.element_ty.primitive_bitwidth == 16:
        return tl.multiple_of(address.to(tl.pointer_type(tl.int16)), 16)
    else:
        return tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)


@triton.jit
def _bits(values):
    """The bits of numbers, of which +0.0 is written as -0.0: none is all zeros."""
    if values.dtype.primitive_bitwidth == 16:
        bits = values.to(tl.int16, bitcast=True)
        return tl.where(bits == 0, -32768, bits).to(tl.int16)
    else:
        bits = values.to(tl.int32, bitcast=True)
        return tl.where(bits == 0, -2147483648, bits).to(tl.int32)


@triton.jit
def _look(source, mask, failed_ptr):
    """(bits, state): 0 where all of a row is there, 1 where some is missing, 2 where a peer is lost; one for all threads."""
    failed = tl.load(failed_ptr, volatile=True)
    bits = tl.load(source, mask=mask, other=1, volatile=True)
    return bits, tl.max(tl.where(failed != 0, 2, (bits == 0).to(tl.int32)))


@triton.jit
def _receive(source, mask, failed_ptr, looks):
    """(a row's bits, whether it did not come); its place is emptied."""
    bits, state = _look(source, mask, failed_ptr)
    looked = 0
    while (state == 1) & (looked < looks):
        bits, state = _look(source, mask, failed_ptr)
        looked += 1
    tl.store(source, tl.zeros_like(bits), mask=mask)
    return bits, (state != 0).to(tl.int32)


@triton.jit
def send_flagless(
    values, like, inboxes_ptr, place, between, at, mask, RANK: tl.constexpr, RANKS: tl.constexpr
):  # fmt: skip
    """Write a row to this rank's place in all other inboxes. `like` points to the type of the values."""
    bits = _bits(values)
    for step in range(1, RANKS):
        inbox = tl.load(inboxes_ptr + (RANK + step) % RANKS) + place + RANK * between
        tl.store(_words(inbox, like) + at, bits, mask=mask)


@triton.jit
def add_flagless(
    own, like, inbox, between, at, mask, failed_ptr, looks, BLOCK: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr
):  # fmt: skip
    """(the sum of this rank's row and of those that arrive here, in the order of the ranks, float32; how many did not)."""
    total = tl.zeros([BLOCK], tl.float32)
    lost = tl.zeros([], tl.int32)
    for rank in range(RANKS):
        if rank == RANK:
            total += own.to(tl.float32)
        else:
            come, missing = _receive(_words(inbox + rank * between, like) + at, mask, failed_ptr, looks)
            lost += missing
            summand = come.to(like.dtype.element_ty, bitcast=True).to(tl.float32)
            total += tl.where(mask, summand, 0.0)
    return total, lost

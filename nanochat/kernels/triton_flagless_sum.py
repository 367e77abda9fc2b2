"""Wide sums without flags: what has arrived is told from what has not by the numbers themselves.

A wide sum (`triton_wide_sum`) writes a row to its peers, waits until it is there (a fence), and only then raises a flag. Of
some hundred rows the fence is a fifth of the time. Here a place in an inbox holds zero bits as long as nothing has come, a
sender writes -0.0 for +0.0, which changes no sum, and who has read a row empties it for the round after the next. The idea is
known by Lamport's name (TensorRT-LLM's all-reduce has it).

Rounds are counted on the device, for each row; odd and even ones use two halves of the inbox. Who sends round k + 2 has the
peer's row of round k + 1, which the peer sent after its kernel of round k had ended, and with it the emptying.

Waiting is bounded and can be ended, as in `triton_wide_sum`, whose ends launch this kernel. The bits are those of its sums.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from nanochat.kernels.triton_inbox import next_round, time_from, time_to
from nanochat.kernels.triton_row_inbox import finish_row

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
def flagless_sum(
    delta_ptr, x_ptr, weight_ptr, sum_ptr, out_ptr, inboxes_ptr, rounds_ptr, failed_ptr, spent_ptr, eps, looks,
    stride, between, WIDTH: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, SEND: tl.constexpr, RECEIVE: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """One row, as in a wide sum. An inbox is bytes [2, RANKS, rows, stride], `between` of them from rank to rank."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < WIDTH
    to = row * WIDTH + at
    own = tl.load(delta_ptr + to, mask=mask, other=0.0)
    round_ = next_round(rounds_ptr + row)
    place = (round_ & 1).to(tl.int64) * RANKS * between + row * stride
    if RECEIVE & (row == 0):
        time_from(spent_ptr, COMPILED)
    if SEND:
        bits = _bits(own)
        for step in range(1, RANKS):
            theirs = tl.load(inboxes_ptr + (RANK + step) % RANKS) + place + RANK * between
            tl.store(_words(theirs, delta_ptr) + at, bits, mask=mask)
    if RECEIVE:
        residual = 0.0  # it and the weight are on their way while the others are waited for
        weight = 1.0
        if ADD:
            residual = tl.load(x_ptr + to, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            weight = tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
        given_up = tl.load(failed_ptr, volatile=True)  # no branch may hang on it: threads may see it differ
        inbox = tl.load(inboxes_ptr + RANK) + place
        total = tl.zeros([BLOCK], tl.float32)
        lost = tl.zeros([], tl.int32)
        for rank in range(RANKS):
            if rank == RANK:
                total += own.to(tl.float32)
            else:
                come, missing = _receive(
                    _words(inbox + rank * between, delta_ptr) + at, mask, failed_ptr, looks
                )
                lost += missing
                summand = come.to(delta_ptr.dtype.element_ty, bitcast=True).to(tl.float32)
                total += tl.where(mask, summand, 0.0)
        tl.store(rounds_ptr + row, round_)
        if lost > 0:
            tl.store(failed_ptr, 1)
        total = tl.where((lost > 0) | (given_up != 0), float("nan"), total)
        finish_row(total, residual, weight, sum_ptr, out_ptr, to, mask, eps, WIDTH, NORM)
        if row == tl.num_programs(0) - 1:
            time_to(spent_ptr, COMPILED)

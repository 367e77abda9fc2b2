"""Wide sums in two shots: each row is summed by one rank, which hands the others what they lack.

With more than two ranks a wide sum (`triton_wide_sum`) sends every row to everybody. Here a row's summands go to its owner
alone, and the sum with its residual comes back: half the bytes of four ranks, for one more hop. The owner adds up in the
order of the ranks and rounds once, and a norm is of what was rounded: the bits are those of a wide sum.

Rows, flags, inboxes and rounds are those of wide sums, and both kinds may take turns. An owner sends no summands of its own
row, so its place in the others' inboxes is free for the sum. Who sends round k + 1 to an owner has its sum of round k, which
came after it had read all of that round; an owner that sends the sum of round k + 1 has everybody's summands of it, which
came after they had read the sum of round k: two halves are enough here too.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from nanochat.kernels.triton_inbox import next_round, time_from, time_to
from nanochat.kernels.triton_row_inbox import add_rows, elements, fence, raise_flag, send_row, wait_for


@triton.jit
def _store(
    kept, weight, sum_ptr, out_ptr, to, mask, eps, WIDTH: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """A row's sum as it was rounded, and with NORM the norm of it."""
    if NORM:
        tl.store(sum_ptr + to, kept, mask=mask)
        wide = tl.where(mask, kept.to(tl.float32), 0.0)
        kept = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps) * weight).to(kept.dtype)
    tl.store(out_ptr + to, kept, mask=mask)


@triton.jit
def sum_in_two_shots(
    delta_ptr, x_ptr, weight_ptr, sum_ptr, out_ptr, inboxes_ptr, rounds_ptr, failed_ptr, spent_ptr, eps, looks,
    stride, between, WIDTH: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, SEND: tl.constexpr, OWN: tl.constexpr, RECEIVE: tl.constexpr,
    COMPILED: tl.constexpr, LINE: tl.constexpr,
):  # fmt: skip
    """One row. SEND: this rank's summands to the row's owner. OWN: what its owner does. RECEIVE: what the others do then."""
    row = tl.program_id(0).to(tl.int64)
    owner = (row % RANKS).to(tl.int32)
    at = tl.arange(0, BLOCK)
    mask = at < WIDTH
    to = row * WIDTH + at
    own = tl.load(delta_ptr + to, mask=mask, other=0.0)
    weight = 1.0
    if NORM:
        weight = tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
    round_ = next_round(rounds_ptr + row)
    place = (round_ & 1).to(tl.int64) * RANKS * between + row * stride
    given_up = tl.load(failed_ptr, volatile=True)  # no branch may hang on it: threads may see it differ
    if RECEIVE & (row == 0):
        time_from(spent_ptr, COMPILED)
    mine = tl.load(inboxes_ptr + RANK) + place
    lost = tl.zeros([], tl.int32)
    if owner == RANK:
        if OWN:
            if ADD:  # on its way while the others are waited for
                residual = tl.load(x_ptr + to, mask=mask, other=0.0).to(tl.float32)
            total, lost = add_rows(
                own, delta_ptr, mine, between, stride, at, mask, round_, failed_ptr, looks, BLOCK, RANK, RANKS, LINE
            )  # fmt: skip
            if ADD:
                total += residual
            total = tl.where((lost > 0) | (given_up != 0), float("nan"), total)
            kept = total.to(delta_ptr.dtype.element_ty)
            send_row(
                kept, delta_ptr, inboxes_ptr, place, between, stride, at, mask, round_, RANK, RANKS, LINE, COMPILED
            )  # fmt: skip
            _store(kept, weight, sum_ptr, out_ptr, to, mask, eps, WIDTH, NORM)
            tl.store(rounds_ptr + row, round_)
    else:
        if SEND:
            inbox = tl.load(inboxes_ptr + owner) + place + RANK * between
            tl.store(elements(inbox, delta_ptr) + at, own, mask=mask)
            fence(COMPILED)
            raise_flag(inbox + stride - LINE, round_, COMPILED)
        if RECEIVE:
            theirs = mine + owner * between
            lost += wait_for(theirs + stride - LINE, round_, failed_ptr, looks)
            kept = tl.load(elements(theirs, delta_ptr) + at, mask=mask, other=0.0, cache_modifier=".cg")
            kept = tl.where((lost > 0) | (given_up != 0), float("nan"), kept.to(tl.float32)).to(kept.dtype)
            _store(kept, weight, sum_ptr, out_ptr, to, mask, eps, WIDTH, NORM)
            tl.store(rounds_ptr + row, round_)
    if lost > 0:
        tl.store(failed_ptr, 1)
    if RECEIVE & (row == tl.num_programs(0) - 1):
        time_to(spent_ptr, COMPILED)

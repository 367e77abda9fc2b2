"""Whole rows between the GPUs of a host, each behind a flag: how they are written, released, waited for.

A row is plain stores of 16 bytes into another rank's inbox (`peer_memory`), and when all threads have written, the round's
number behind them, as a release seen by the whole system. Who reads that number (an acquire) sees the row.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

LINE = 128  # bytes: rows begin at whole ones, and a flag has one to itself


def row_bytes_in_lines(row_bytes: int) -> int:
    """Whole lines of data."""
    return -(-row_bytes // LINE) * LINE


def row_stride(row_bytes: int) -> int:
    """From row to row in an inbox: whole lines of data, and a flag's."""
    return row_bytes_in_lines(row_bytes) + LINE


@triton.jit
def elements(address, like):
    """The address of a row in an inbox as a pointer to elements of the type that `like` points to."""
    return tl.multiple_of(address.to(tl.pointer_type(like.dtype.element_ty)), 16)


@triton.jit
def fence(COMPILED: tl.constexpr):
    """All that this program's threads wrote before is seen before what thread 0 writes after."""
    tl.debug_barrier()
    if COMPILED:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; .reg .b32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0; @p fence.acq_rel.sys; mov.u32 $0, 0; }",
            "=r", [], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def raise_flag(flag, round_, COMPILED: tl.constexpr):
    """Thread 0 writes the round's number to the address `flag`: a store, since peers on PCIe alone take no atomics."""
    if COMPILED:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; .reg .b32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0; @p st.relaxed.sys.global.b32 [$1], $2;"
            " mov.u32 $0, 0; }",
            "=r,l,r", [flag, round_], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:  # the interpreter knows no assembler
        tl.store(flag.to(tl.pointer_type(tl.int32)), round_)


@triton.jit
def _look(word_ptr):
    """A word, read by one thread and told to all, who then see what was released with it."""
    return tl.atomic_add(word_ptr, 0, sem="acquire", scope="sys")


@triton.jit
def wait_for(flag, round_, failed_ptr, looks):
    """0 when the flag at this address has the round's number, 1 when it was missed for too long, 2 when a peer is lost."""
    flag_ptr = flag.to(tl.pointer_type(tl.int32))
    state = (_look(flag_ptr) != round_).to(tl.int32)
    looked = 0
    while (state == 1) & (looked < looks):
        state = (_look(flag_ptr) != round_).to(tl.int32)
        if looked % 32 == 0:
            state = tl.where(_look(failed_ptr) != 0, 2, state)
        looked += 1
    return state


@triton.jit
def send_row(
    values, like, inboxes_ptr, place, between, stride, at, mask, round_, RANK: tl.constexpr, RANKS: tl.constexpr,
    LINE: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """Write a row to this rank's place in all other inboxes, and then its flags. `like` points to the type of the values."""
    for step in range(1, RANKS):
        inbox = tl.load(inboxes_ptr + (RANK + step) % RANKS) + place + RANK * between
        tl.store(elements(inbox, like) + at, values, mask=mask)
    fence(COMPILED)
    for step in range(1, RANKS):
        inbox = tl.load(inboxes_ptr + (RANK + step) % RANKS) + place + RANK * between
        raise_flag(inbox + stride - LINE, round_, COMPILED)


@triton.jit
def add_rows(
    own, like, inbox, between, stride, at, mask, round_, failed_ptr, looks, BLOCK: tl.constexpr, RANK: tl.constexpr,
    RANKS: tl.constexpr, LINE: tl.constexpr,
):  # fmt: skip
    """(the sum of this rank's row and of those that arrive here, in the order of the ranks, float32; how many did not)."""
    total = tl.zeros([BLOCK], tl.float32)
    lost = tl.zeros([], tl.int32)
    for rank in range(RANKS):
        if rank == RANK:
            total += own.to(tl.float32)
        else:
            theirs = inbox + rank * between
            lost += wait_for(theirs + stride - LINE, round_, failed_ptr, looks)
            summand = tl.load(elements(theirs, like) + at, mask=mask, other=0.0, cache_modifier=".cg")
            total += summand.to(tl.float32)
    return total, lost


@triton.jit
def finish_row(
    total, residual, weight, sum_ptr, out_ptr, to, mask, eps, WIDTH: tl.constexpr, NORM: tl.constexpr
):
    """Store a row's sum with its residual, and with NORM the norm of it."""
    total += residual
    if NORM:
        kept = total.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + to, kept, mask=mask)
        kept = tl.where(mask, kept.to(tl.float32), 0.0)  # the norm is of the residual as it is stored
        total = kept * tl.rsqrt(tl.sum(kept * kept, 0) / WIDTH + eps) * weight
    tl.store(out_ptr + to, total.to(out_ptr.dtype.element_ty), mask=mask)

"""Words of 32 bits between the GPUs of a host, each beside its round's number: how they are sent, waited for, received.

A rank's inbox is memory that the others can write (`peer_memory`). A word travels in a write of 64 bits, which is never
seen by halves: who finds the round's number has the word (NCCL's LL protocol does so). So nobody waits for a fence or a flag.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clock(COMPILED: tl.constexpr):
    """Nanoseconds, int64."""
    if COMPILED:
        return tl.extra.cuda.globaltimer()
    else:
        return tl.zeros([], tl.int64)


@triton.jit
def time_from(spent_ptr, COMPILED: tl.constexpr):
    """An exchange begins here, whose end another program sees (`time_to`); in between the number is negative."""
    tl.atomic_add(spent_ptr, -clock(COMPILED), sem="relaxed")


@triton.jit
def time_to(spent_ptr, COMPILED: tl.constexpr):
    """The exchange ends here."""
    tl.atomic_add(spent_ptr, clock(COMPILED), sem="relaxed")


@triton.jit
def following(round_):
    """The number of the round after `round_`; never 0, which is what an inbox holds where nothing was ever written."""
    return tl.where(round_ + 1 == 0, 2, round_ + 1)


@triton.jit
def next_round(rounds_ptr):
    """The number of the round that begins."""
    return following(tl.load(rounds_ptr))


@triton.jit
def send_words(to, words, round_, mask, COMPILED: tl.constexpr):
    """Write words beside their round's number to the addresses `to`, seen by the whole system."""
    pairs = (round_.to(tl.int64) << 32) | (words.to(tl.int64) & 0xFFFFFFFF)
    if COMPILED:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.sys.global.b64 [$1], $2; mov.u32 $0, 0; }",
            "=r,l,l,r", [to, pairs, mask.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:  # the interpreter knows no assembler
        tl.store(to.to(tl.pointer_type(tl.int64)), pairs, mask=mask)


@triton.jit
def look(source, round_, mask, failed_ptr):
    """(pairs, state): 0 where all words of the round are there, 1 where some are missing, 2 where a peer is lost.

    The state is a maximum over all threads, so that they leave a loop together whatever each of them saw.
    """
    failed = tl.load(failed_ptr, volatile=True)
    pairs = tl.load(source, mask=mask, other=0, volatile=True)
    missing = mask & ((pairs >> 32).to(tl.int32) != round_)
    return pairs, tl.max(tl.where(failed != 0, 2, missing.to(tl.int32)))


@triton.jit
def receive_words(source, round_, mask, failed_ptr, looks):
    """(words, state): wait for a round's words in this rank's own inbox; they are good where the state is 0."""
    pairs, state = look(source, round_, mask, failed_ptr)
    looked = 0
    while (state == 1) & (looked < looks):
        pairs, state = look(source, round_, mask, failed_ptr)
        looked += 1
    return pairs.to(tl.int32), state

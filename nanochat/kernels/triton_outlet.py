"""A product of one row that sends its results to all ranks itself, as it has them, and the kernel that collects them.

No kernel ends between the product and the sum, and what is sent, float32, is not rounded to 16 bits before. A rank collects
its own results from its inbox too.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.triton_inbox import clock, following, receive_words, send_words


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where a product sends its results, instead of storing them: every rank's inbox.

    Attributes:
        inboxes: their addresses, each int64 [2, rows, ranks, words], this rank's last.
        rounds: int32, of the parts' last exchanges, the first row's first.
        compiled: whether the kernel runs on a GPU.
    """

    inboxes: tuple[int, ...]
    rounds: Tensor
    rank: int
    ranks: int
    rows: int
    words: int
    compiled: bool


@triton.jit
def send_results(
    results, at, round_, mask, inboxes, num_rows, capacity,
    RANK: tl.constexpr, RANKS: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """Put float32 results, whose places in a row are `at`, into every rank's inbox, the other ranks' first."""
    words = results.to(tl.float32).to(tl.int32, bitcast=True)
    place = ((round_ & 1).to(tl.int64) * num_rows * RANKS + RANK) * capacity + at
    for step in tl.static_range(RANKS):
        send_words(inboxes[step] + place * 8, words, round_, mask, COMPILED)


@triton.jit
def collect_row(
    x_ptr, out_ptr, inboxes_ptr, rounds_ptr, failed_ptr, spent_ptr, looks, num_rows, capacity,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, SIDE: tl.constexpr,
    COMPILED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A part of the row: x plus what the products of all ranks sent, a float32 in each word.

    PDL: the product before lets this kernel start only once its own wait is over (`late`), so x and the round are there.
    But nobody looks into an inbox while the product computes: a multiprocessor that does so computes more slowly, and the
    whole product waits for it.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    part = tl.program_id(0)
    word = part * BLOCK + tl.arange(0, BLOCK)
    own = word < WIDTH
    round_ = following(tl.load(rounds_ptr + part, cache_modifier=".cg"))
    x = tl.load(x_ptr + word, mask=own, other=0.0, cache_modifier=".cg").to(tl.float32)
    inbox = tl.load(inboxes_ptr + RANK).to(tl.pointer_type(tl.int64))
    inbox += (round_ & 1).to(tl.int64) * num_rows * RANKS * capacity
    rank = tl.arange(0, SIDE)[:, None]  # all ranks' words are looked for at once
    source = inbox + rank * capacity + word[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    began = clock(COMPILED)
    words, lost = receive_words(source, round_, (rank < RANKS) & own[None, :], failed_ptr, looks)
    total = tl.sum(words.to(tl.float32, bitcast=True), 0)
    tl.debug_barrier()  # every thread has read the round
    tl.store(rounds_ptr + part, round_)
    if part == 0:
        tl.store(spent_ptr, tl.load(spent_ptr) + clock(COMPILED) - began)
    if lost > 0:
        tl.store(failed_ptr, 1)
    total = tl.where(lost > 0, float("nan"), total + x)
    tl.store(out_ptr + word, total.to(out_ptr.dtype.element_ty), mask=own)

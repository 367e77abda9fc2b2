"""Sums over the GPUs of one host in one launch, with what follows them in a decoder: residual and RMSNorm; few words, too.

Every rank has an inbox that the others can write (`peer_memory`). A rank sends its summands straight into the inboxes of
all others and adds up what arrives in its own, in the order of the ranks: all get the same bits. The sum stays in float32
until the residual is added.

Words of 32 bits travel in writes of 64, each beside the number of its round, and a write of 64 bits is never seen by
halves: who finds the round's number has the word (NCCL's LL protocol does so). So nobody waits for a fence or a flag.
Rounds are counted on the device, for each part of a row, so that a captured graph can be replayed; odd and even ones use two
halves of the inbox. A rank begins a round when it has everything of the one before, which its peers sent after they had read all
of the round before that: nothing is overwritten that is still needed.

A product can send its results itself (`triton_outlet`): then a rank only collects them.

Waiting is bounded: a rank that misses a word for too long, or is told that a peer is lost, says so in `failed`, makes
its result NaN and never waits again.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2
from nanochat.kernels.triton_exchange_clock import ExchangeClock
from nanochat.kernels.triton_inbox import clock, next_round, receive_words, send_words
from nanochat.kernels.triton_outlet import Outlet, collect_row

LOOKS = 1 << 27  # at an inbox before a peer counts as lost: a minute or so
PARTS = 8
GATHERED = 1024  # at most so many words of a rank are put beside the others'


@triton.jit
def _halves(words, like):
    """The two 16-bit numbers in each word, as float32, in the type that `like` points to."""
    if like.dtype.element_ty == tl.bfloat16:
        return (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
    else:
        low = words.to(tl.int16).to(tl.float16, bitcast=True)
        return low.to(tl.float32), (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _one_shot(
    delta_ptr, x_ptr, weight_ptr, sum_ptr, out_ptr, inboxes_ptr, rounds_ptr, failed_ptr, spent_ptr, eps, looks,
    num_rows, capacity, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    RANK: tl.constexpr, RANKS: tl.constexpr, PAIRED: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr,
    SEND: tl.constexpr, RECEIVE: tl.constexpr, COMPILED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A part of a row: send this rank's summands, add up everybody's, with ADD add the residual, with NORM norm the result too.

    With NORM there is one program for all of a row, and it counts for all parts. An inbox begins with
    int64 [2, num_rows, RANKS, capacity]. PAIRED: a word holds two elements of 16 bits.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # the next kernel asks for its weights while this one waits for the others
    began = clock(COMPILED)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    WORDS: tl.constexpr = WIDTH // 2 if PAIRED else WIDTH
    word = part * BLOCK + tl.arange(0, BLOCK)
    own = word < WORDS
    counter = rounds_ptr + row * PARTS + part
    round_ = next_round(counter)
    place = ((round_ & 1).to(tl.int64) * num_rows + row) * RANKS * capacity
    words = tl.load(delta_ptr + row * WORDS + word, mask=own, other=0)
    if SEND:
        for step in tl.static_range(1, RANKS):
            inbox = tl.load(inboxes_ptr + (RANK + step) % RANKS) + place * 8
            send_words(inbox + (RANK * capacity + word) * 8, words, round_, own, COMPILED)
    if RECEIVE:
        inbox = tl.load(inboxes_ptr + RANK).to(tl.pointer_type(tl.int64)) + place
        low = tl.zeros([BLOCK], tl.float32)
        high = tl.zeros([BLOCK], tl.float32)
        lost = tl.zeros([], tl.int32)
        for rank in tl.static_range(RANKS):
            summand = words
            if rank != RANK:
                summand, state = receive_words(inbox + rank * capacity + word, round_, own, failed_ptr, looks)
                lost += state
            if PAIRED:
                first, second = _halves(summand, out_ptr)
                low += first
                high += second
            else:
                low += summand.to(tl.float32, bitcast=True)
        if NORM:
            tl.store(counter + tl.arange(0, PARTS), tl.zeros([PARTS], tl.int32) + round_)
        else:
            tl.store(counter, round_)
        if (row == 0) & (part == 0):
            tl.store(spent_ptr, tl.load(spent_ptr) + clock(COMPILED) - began)
        if lost > 0:
            tl.store(failed_ptr, 1)
        total = tl.interleave(low, high) if PAIRED else low
        total = tl.where(lost > 0, float("nan"), total)
        SIZE: tl.constexpr = 2 * BLOCK if PAIRED else BLOCK
        at = part * SIZE + tl.arange(0, SIZE)
        mask = at < WIDTH
        to = row * WIDTH + at
        if ADD:
            total += tl.load(x_ptr + to, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            kept = total.to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + to, kept, mask=mask)
            kept = tl.where(mask, kept.to(tl.float32), 0.0)  # the norm is of the residual as it is stored
            inverse = tl.rsqrt(tl.sum(kept * kept, 0) / WIDTH + eps)
            weight = tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
            total = kept * inverse * weight
        tl.store(out_ptr + to, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gather(
    words_ptr, out_ptr, inboxes_ptr, rounds_ptr, failed_ptr, spent_ptr, looks, begin, count,
    BLOCK: tl.constexpr, CAPACITY: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    SEND: tl.constexpr, RECEIVE: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """One program: `count` words of each rank, int32 [RANKS, count]; a lost rank's are all 1.

    They travel through int64 [2, RANKS, CAPACITY], which lies in an inbox from the word `begin` on.
    """
    began = clock(COMPILED)
    word = tl.arange(0, BLOCK)
    own = word < count
    round_ = next_round(rounds_ptr)
    place = begin + (round_ & 1).to(tl.int64) * RANKS * CAPACITY
    words = tl.load(words_ptr + word, mask=own, other=0)
    if SEND:
        for step in tl.static_range(1, RANKS):
            inbox = tl.load(inboxes_ptr + (RANK + step) % RANKS) + place * 8
            send_words(inbox + (RANK * CAPACITY + word) * 8, words, round_, own, COMPILED)
    if RECEIVE:
        inbox = tl.load(inboxes_ptr + RANK).to(tl.pointer_type(tl.int64)) + place
        for rank in tl.static_range(RANKS):
            theirs = words
            if rank != RANK:
                theirs, state = receive_words(inbox + rank * CAPACITY + word, round_, own, failed_ptr, looks)
                theirs = tl.where(state > 0, 1, theirs)
                if state > 0:
                    tl.store(failed_ptr, 1)
            tl.store(out_ptr + rank * count + word, theirs, mask=own)
        tl.debug_barrier()  # every thread has read the round
        tl.store(rounds_ptr, round_)
        tl.store(spent_ptr, tl.load(spent_ptr) + clock(COMPILED) - began)


class OneShot:
    """One rank's end. Launches only, the same on every rank and in the same order; a graph can capture it.

    Args:
        inboxes: the address of each rank's inbox, as this process sees it; `inbox_bytes` of zeros each.
        rows: at most so many in a message. Its programs need not fit on the chip at once: each sends first, waits only for its
            own counterparts, and programs start in order.
        words: at most so many 32-bit words in a row.
        looks: how often an inbox is looked at before a peer counts as lost.
        parts: of a row: its programs, where no norm needs the whole of it; a power of two.

    Attributes:
        failed: int32 [1], on the device: a peer is lost.
        clock: what exchanges took.
    """

    def __init__(
        self, inboxes: list[int], rank: int, rows: int, words: int, device: torch.device, looks: int = LOOKS, parts: int = PARTS
    ) -> None:  # fmt: skip
        self.rank, self.ranks = rank, len(inboxes)
        self.rows, self.words, self.looks, self._parts = rows, words, looks, parts
        self.failed = torch.zeros(1, dtype=torch.int32, device=device)
        self._inboxes = torch.tensor(inboxes, dtype=torch.int64, device=device)
        self._others_first = tuple(inboxes[(rank + 1 + step) % self.ranks] for step in range(self.ranks))
        self.clock = ExchangeClock(device)
        self._rounds = torch.zeros(
            rows * parts + 1, dtype=torch.int32, device=device
        )  # of each row's parts, and of gathered words
        if device.type == "cuda":  # made now: while a kernel waits, nothing can be allocated
            self._aside = torch.cuda.Stream(device)
            self._lost = torch.ones(1, dtype=torch.int32, pin_memory=True)

    def takes(self, x: Tensor) -> bool:
        """Whether a message [..., width] goes through an inbox."""
        size = x.shape[-1] * x.element_size()
        small = size % 4 == 0 and size <= 4 * self.words and 0 < x.numel() <= self.rows * x.shape[-1]
        return small and x.is_contiguous() and x.dtype in (torch.bfloat16, torch.float16, torch.float32)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in new memory."""
        return self._launch(x, None, None, 0.0)[0]

    def add(self, delta: Tensor, x: Tensor, *, pdl: bool = False) -> Tensor:
        """x + the sum of all ranks' delta, [T, H] in new memory. `pdl`: a programmatic dependent launch."""
        return self._launch(delta, x, None, 0.0, pdl=pdl)[0]

    def add_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(the norm of x + the sum of all ranks' delta, x + that sum), both [T, H] in new memory."""
        return self._launch(delta, x, weight, eps)

    def outlet(self, x: Tensor) -> Outlet | None:
        """Where a product sends what `collect` adds to the one row x [1, H]; None where a row of float32 is too long."""
        if x.shape[-1] > self.words or x.numel() != x.shape[-1] or not x.is_contiguous():
            return None
        compiled = x.device.type != "cpu"
        return Outlet(
            self._others_first, self._rounds, self.rank, self.ranks, self.rows, self.words, compiled
        )

    def collect(self, x: Tensor, *, pdl: bool = False) -> Tensor:
        """x + the sum of what every rank's product sent last, [1, H] in new memory.

        Args:
            pdl: a programmatic dependent launch; the product before must have been a `late` one.
        """
        width = x.shape[-1]
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        block, side = next_power_of_2(-(-width // self._parts)), next_power_of_2(self.ranks)
        collect_row[(self._parts,)](
            x, out, self._inboxes, self._rounds, self.failed, self.clock.nanoseconds, self.looks, self.rows, self.words,
            WIDTH=width, BLOCK=block, RANK=self.rank, RANKS=self.ranks, SIDE=side,
            COMPILED=x.device.type != "cpu", PDL=pdl,
            num_warps=min(8, max(1, side * block // 128)), **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
        return out

    def gathers(self, x: Tensor) -> bool:
        """Whether `gather` can be asked about x."""
        return 0 < x.numel() * x.element_size() <= 4 * GATHERED and x.element_size() % 4 == 0

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's x, [ranks, *x.shape]; contiguous, of elements of whole words."""
        return self._launch_gather(x)

    def give_up(self) -> None:
        """A peer is lost: whoever waits ends at once, and so does every later sum. From any thread."""
        with torch.cuda.stream(self._aside):  # a copy, which finds room beside what waits
            self.failed.copy_(self._lost, non_blocking=True)

    def _launch(
        self, delta: Tensor, x: Tensor | None, weight: Tensor | None, eps: float, *, send: bool = True, receive: bool = True,
        pdl: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        width = delta.shape[-1]
        out = torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
        total = out if weight is None else torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
        paired = delta.element_size() == 2
        words, parts = width // 2 if paired else width, self._parts if weight is None else 1
        block = next_power_of_2(-(-words // parts))
        _one_shot[(delta.numel() // width, parts)](
            delta.view(torch.int32), delta if x is None else x, delta if weight is None else weight, total, out,
            self._inboxes, self._rounds, self.failed, self.clock.nanoseconds, eps, self.looks, self.rows, self.words,
            WIDTH=width, BLOCK=block, PARTS=self._parts, RANK=self.rank, RANKS=self.ranks, PAIRED=paired, ADD=x is not None,
            NORM=weight is not None, SEND=send, RECEIVE=receive, COMPILED=delta.device.type != "cpu", PDL=pdl,
            num_warps=min(16, max(1, block // 64)), **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
        return out, total

    def _launch_gather(self, x: Tensor, *, send: bool = True, receive: bool = True) -> Tensor:
        words = x.view(-1).view(torch.int32)
        out = torch.empty(self.ranks, *x.shape, dtype=x.dtype, device=x.device)
        block = next_power_of_2(words.numel())
        _gather[(1,)](
            words, out.view(self.ranks, -1).view(torch.int32), self._inboxes, self._rounds[-1:], self.failed,
            self.clock.nanoseconds, self.looks, inbox_bytes(self.ranks, self.rows, self.words, 0) // 8, words.numel(),
            BLOCK=block, CAPACITY=GATHERED, RANK=self.rank, RANKS=self.ranks, SEND=send, RECEIVE=receive,
            COMPILED=x.device.type != "cpu", num_warps=min(8, max(1, block // 128)),
        )  # fmt: skip
        return out


def inbox_bytes(ranks: int, rows: int, words: int, gathered: int = GATHERED) -> int:
    """How large an inbox must be."""
    return 2 * ranks * (rows * words + gathered) * 8

"""Sums of middle-sized and large messages over the GPUs of one host, with residual and RMSNorm: whole rows, then a flag.

What `triton_one_shot` is for few rows, this is for hundreds and thousands: its words of 32 bits, each beside its round's
number, take twice the bytes in small writes. Here one program has one row. It writes this rank's summands into the inboxes
of all others (`triton_row_inbox`). The summands are added in the order of the ranks, in float32: all get the same bits, and
those of `triton_one_shot`. Many rows of more than two ranks may go in two shots instead (`triton_two_shots`), and few rows
without a flag (`triton_flagless_rows`). What an inbox has no room for goes in several launches, each a round of its rows.

Rounds are counted on the device, for each row; odd and even ones use two halves of the inbox, flags too. Who sends round
k + 1 has the peer's flag of round k, which the peer sent after its kernel of round k - 1 had ended: two halves are enough.
There may be more rows than fit on the chip at once: a program waits only for the same row of its peers, and programs
start in order.

Waiting is bounded and can be ended, as in `triton_one_shot`, whose `failed` and `clock` are shared.
"""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2
from nanochat.kernels.triton_flagless_rows import ROWS as FLAGLESS_ROWS
from nanochat.kernels.triton_flagless_rows import add_flagless, send_flagless
from nanochat.kernels.triton_inbox import next_round, time_from, time_to
from nanochat.kernels.triton_one_shot import OneShot
from nanochat.kernels.triton_row_inbox import (
    LINE,
    add_rows,
    finish_row,
    row_bytes_in_lines,
    row_stride,
    send_row,
)
from nanochat.kernels.triton_two_shots import sum_in_two_shots

ROWS = 2048  # at most in a launch
_LEAST_ROWS, _INBOX = 512, 160 << 20  # fewer, but so many, where an inbox would take more bytes
_VECTOR = 16  # bytes that a thread moves at once


@triton.jit
def _wide_sum(
    delta_ptr, x_ptr, weight_ptr, sum_ptr, out_ptr, inboxes_ptr, rounds_ptr, failed_ptr, spent_ptr, eps, looks,
    stride, between, WIDTH: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, SEND: tl.constexpr, RECEIVE: tl.constexpr, COMPILED: tl.constexpr,
    LINE: tl.constexpr, FLAGLESS: tl.constexpr,
):  # fmt: skip
    """One row: send this rank's summands, add up everybody's, with ADD add the residual, with NORM norm the result too.

    An inbox is bytes [2, RANKS, rows, stride], `between` of them from rank to rank; but with FLAGLESS, a row's last LINE
    begins with its flag.
    """
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
        if FLAGLESS:
            send_flagless(own, delta_ptr, inboxes_ptr, place, between, at, mask, RANK, RANKS)
        else:
            send_row(
                own, delta_ptr, inboxes_ptr, place, between, stride, at, mask, round_, RANK, RANKS, LINE, COMPILED
            )  # fmt: skip
    if RECEIVE:
        residual = 0.0  # it and the weight are on their way while the others are waited for
        weight = 1.0
        if ADD:
            residual = tl.load(x_ptr + to, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            weight = tl.load(weight_ptr + at, mask=mask, other=0.0).to(tl.float32)
        given_up = tl.load(failed_ptr, volatile=True)  # no branch may hang on it: threads may see it differ
        inbox = tl.load(inboxes_ptr + RANK) + place
        if FLAGLESS:
            total, lost = add_flagless(
                own, delta_ptr, inbox, between, at, mask, failed_ptr, looks, BLOCK, RANK, RANKS
            )  # fmt: skip
        else:
            total, lost = add_rows(
                own, delta_ptr, inbox, between, stride, at, mask, round_, failed_ptr, looks, BLOCK, RANK, RANKS, LINE
            )  # fmt: skip
        tl.store(rounds_ptr + row, round_)
        if lost > 0:
            tl.store(failed_ptr, 1)
        total = tl.where((lost > 0) | (given_up != 0), float("nan"), total)
        finish_row(total, residual, weight, sum_ptr, out_ptr, to, mask, eps, WIDTH, NORM)
        if row == tl.num_programs(0) - 1:
            time_to(spent_ptr, COMPILED)


class WideSum:
    """One rank's end. Launches only, the same on every rank and in the same order; a graph can capture it.

    Args:
        inboxes: the address of each rank's inbox, as this process sees it; `wide_bytes` of zeros each, at whole LINEs.
        rows: at most so many in a launch.
        row_bytes: at most so many in a row.
        one_shot: the end whose `failed` and `clock` this one shares.

    Attributes:
        two_shots: messages of so many rows and more go in two shots; 0: none. The same on every rank.
        flagless: messages of up to so many rows go without flags instead; 0: none. The same on every rank.
    """

    def __init__(self, inboxes: list[int], rows: int, row_bytes: int, one_shot: OneShot) -> None:
        self.rank, self.ranks = one_shot.rank, one_shot.ranks
        self.rows, self.row_bytes, self.looks = rows, row_bytes, one_shot.looks
        self.two_shots = self.flagless = 0
        self.failed, self._nanoseconds = one_shot.failed, one_shot.clock.nanoseconds
        self._inboxes = torch.tensor(inboxes, dtype=torch.int64, device=self.failed.device)
        self._rounds = torch.zeros(rows, dtype=torch.int32, device=self.failed.device)
        self._flagless_inboxes = self._inboxes + _flagged_bytes(self.ranks, rows, row_bytes)
        self._flagless_rounds = torch.zeros(FLAGLESS_ROWS, dtype=torch.int32, device=self.failed.device)

    def takes(self, x: Tensor) -> bool:
        """Whether a message [..., width] goes through an inbox."""
        size = x.shape[-1] * x.element_size()
        fits = size % _VECTOR == 0 and 0 < size <= self.row_bytes and x.numel() > 0
        return fits and x.is_contiguous() and x.dtype in (torch.bfloat16, torch.float16, torch.float32)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in new memory."""
        return self._launch(x, None, None, 0.0)[0]

    def add_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(the norm of x + the sum of all ranks' delta, x + that sum), both [T, H] in new memory."""
        return self._launch(delta, x, weight, eps)

    def _launch(
        self, delta: Tensor, x: Tensor | None, weight: Tensor | None, eps: float, *, send: bool = True, own: bool = True,
        receive: bool = True,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        width = delta.shape[-1]
        rows = delta.numel() // width
        out = torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
        total = out if weight is None else torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
        block = next_power_of_2(width)
        threads = block * delta.element_size() // (2 * _VECTOR)  # two vectors each
        flagless = rows <= min(self.flagless, FLAGLESS_ROWS)
        if flagless:
            inboxes, rounds, stride = (
                self._flagless_inboxes,
                self._flagless_rounds,
                row_bytes_in_lines(self.row_bytes),
            )
        else:
            inboxes, rounds, stride = self._inboxes, self._rounds, row_stride(self.row_bytes)
        most = rounds.shape[0]
        in_two = not flagless and 0 < self.two_shots <= rows
        kernel, parts = (sum_in_two_shots, {"OWN": own}) if in_two else (_wide_sum, {"FLAGLESS": flagless})
        tensors = delta, delta if x is None else x, total, out
        for deltas, xs, totals, outs in [tensors] if rows <= most else self._cut(tensors, width):
            kernel[(deltas.numel() // width,)](
                deltas, xs, delta if weight is None else weight, totals, outs,
                inboxes, rounds, self.failed, self._nanoseconds, eps, self.looks, stride, most * stride,
                WIDTH=width, BLOCK=block, RANK=self.rank, RANKS=self.ranks, ADD=x is not None, NORM=weight is not None,
                SEND=send, RECEIVE=receive, COMPILED=delta.device.type != "cpu", LINE=LINE, **parts,
                num_warps=min(8, max(4, threads // 32)), num_stages=1,
            )  # fmt: skip
        return out, total

    def _cut(self, tensors: tuple[Tensor, ...], width: int) -> Iterator[tuple[Tensor, ...]]:
        """Into what one launch takes: views of as many rows of each."""
        return zip(*(tensor.view(-1, width).split(self.rows) for tensor in tensors), strict=True)


def wide_rows(ranks: int, row_bytes: int) -> int:
    """How many rows an inbox is made for."""
    rows = ROWS
    while rows > _LEAST_ROWS and _flagged_bytes(ranks, rows, row_bytes) > _INBOX:
        rows //= 2
    return rows


def wide_bytes(ranks: int, rows: int, row_bytes: int) -> int:
    """How large an inbox must be."""
    return _flagged_bytes(ranks, rows, row_bytes) + 2 * ranks * FLAGLESS_ROWS * row_bytes_in_lines(row_bytes)


def _flagged_bytes(ranks: int, rows: int, row_bytes: int) -> int:
    """Of these what rows with flags go through; those without are behind them."""
    return 2 * ranks * rows * row_stride(row_bytes)

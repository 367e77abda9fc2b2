"""The two ends of a decode step on the device: ids to hidden states, and sampled ids to the next step's inputs."""

# Device code has no Python types.
# pyright: reportMissingParameterType=false, reportUntypedFunctionDecorator=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanochat.kernels.sizes import next_power_of_2


@triton.jit
def _embed(
    ids_ptr, table_ptr, scale, positions_ptr, frequency_ptr, x_ptr, cos_ptr, sin_ptr, factor, tokens,
    first, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, ROPES: tl.constexpr,
    SCALED: tl.constexpr, DIVIDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    token = tl.load(ids_ptr + row)
    there = offs < WIDTH
    if DIVIDED:
        token -= first
        there = there & (token >= 0) & (token < count)
    x = tl.load(table_ptr + token * WIDTH + offs, mask=there, other=0.0)
    if SCALED:
        x = (x.to(tl.float32) * scale).to(x.dtype)
    tl.store(x_ptr + row * WIDTH + offs, x.to(x_ptr.dtype.element_ty), mask=offs < WIDTH)
    position = tl.load(positions_ptr + row).to(tl.float32)
    half = tl.arange(0, BLOCK_HALF)
    for rope in tl.static_range(ROPES):
        angle = position * tl.load(frequency_ptr + rope * HALF + half, mask=half < HALF, other=0.0)
        to = (rope * tokens + row) * HALF + half
        tl.store(cos_ptr + to, tl.cos(angle) * factor, mask=half < HALF)
        tl.store(sin_ptr + to, tl.sin(angle) * factor, mask=half < HALF)


def embed(
    ids: Tensor, positions: Tensor, table: Tensor, frequencies: Tensor, *, scale: float = 1.0, factor: float = 1.0,
    first: int | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rows of an embedding table, and the angles of each token's position.

    Args:
        ids, positions: int64 [T].
        table: [vocab, H] contiguous; a row is multiplied by `scale`.
        frequencies: float32 [ropes, rotary / 2] contiguous; `factor` scales cosines and sines.
        first: the table is a rank's share, from this id on; tokens of other ranks are zeros.

    Returns:
        x [T, H] in the table's dtype, cos and sin float32 [ropes, T, rotary / 2].
    """
    tokens, width = ids.shape[0], table.shape[1]
    ropes, half = frequencies.shape
    x = torch.empty(tokens, width, dtype=table.dtype, device=ids.device)
    cos = torch.empty(ropes, tokens, half, dtype=torch.float32, device=ids.device)
    sin = torch.empty_like(cos)
    _embed[(tokens,)](
        ids, table, scale, positions, frequencies, x, cos, sin, factor, tokens,
        first or 0, table.shape[0], WIDTH=width, BLOCK=next_power_of_2(width), HALF=half, BLOCK_HALF=next_power_of_2(half), ROPES=ropes,
        SCALED=scale != 1.0, DIVIDED=first is not None, PDL=pdl, num_warps=4, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
    return x, cos, sin


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """What a decode step reads and the next one needs, on the device; a row with context 0 is empty or over.

    Attributes:
        ids, positions: int64 [rows], the token to feed and where it stands.
        context_lens: int32 [rows], the positions cached once it is written.
        slots: int64 [rows], where its key and value go; -1 writes nothing.
        block_tables: int32 [rows, max_blocks]; must reach one position further than `positions`.
        counter: int64 [rows], the tokens drawn so far (see `SamplingRows`).
        stop_ids: int32 [rows, n], padded with -1: a row that draws one is over.
    """

    ids: Tensor
    positions: Tensor
    context_lens: Tensor
    slots: Tensor
    block_tables: Tensor
    counter: Tensor
    stop_ids: Tensor


@triton.jit(do_not_specialize=["rows", "table_stride", "steps", "width"])
def _advance(
    sampled_ptr, finite_ptr, ids_ptr, positions_ptr, context_ptr, slots_ptr, table_ptr, counter_ptr, stop_ptr,
    told_ptr, turn_ptr, rows, table_stride, steps, width,
    STOPS: tl.constexpr, BLOCK_STOPS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.arange(0, BLOCK)
    own = row < rows
    turn = tl.load(turn_ptr)
    told = told_ptr + turn % steps * width
    context = tl.load(context_ptr + row, mask=own, other=0)
    alive = own & (context > 0)
    sampled = tl.load(sampled_ptr + row, mask=own, other=0)
    position = tl.load(positions_ptr + row, mask=alive, other=0) + 1
    stop = tl.arange(0, BLOCK_STOPS)
    stops = tl.load(
        stop_ptr + row[:, None] * STOPS + stop[None, :],
        mask=alive[:, None] & (stop < STOPS)[None, :],
        other=-1,
    )
    met = tl.max((stops.to(tl.int64) == sampled[:, None]).to(tl.int32), 1) > 0
    finite = tl.load(finite_ptr + row, mask=own, other=0) != 0
    tl.store(told + 1 + row, tl.where(finite, sampled, -1), mask=own)
    going = alive & finite & (met == 0)
    block = tl.load(table_ptr + row.to(tl.int64) * table_stride + position // 16, mask=going, other=0)
    slot = tl.where(going, block.to(tl.int64) * 16 + position % 16, -1)
    tl.store(slots_ptr + row, slot, mask=own)
    tl.store(context_ptr + row, tl.where(going, context + 1, 0), mask=own)
    tl.store(positions_ptr + row, position, mask=going)
    tl.store(ids_ptr + row, sampled, mask=going)
    tl.store(counter_ptr + row, tl.load(counter_ptr + row, mask=alive, other=0) + 1, mask=alive)
    tl.debug_barrier()  # every thread has read the turn
    tl.store(told, turn)
    tl.store(turn_ptr, turn + 1)


@dataclass(frozen=True, slots=True)
class Told:
    """A ring in which steps leave their tokens, in memory that the host reads: no copy stands between two steps.

    Attributes:
        ring: int64 [steps, 1 + rows], pinned where there is a GPU: the step's number, then a token for each row, -1 where the
            logits are not finite.
        turn: int64 [1], on the device: the next step's number.
    """

    ring: Tensor
    turn: Tensor


def advance(rows: DecodeRows, sampled: Tensor, finite: Tensor, told: Told, *, pdl: bool = False) -> None:
    """Hand the drawn tokens over to the next step, in place, and to the host. A row is over after a stop or NaN.

    Args:
        sampled, finite: int64 and bool [rows], from `sample_rows`.
    """
    count, stops = sampled.shape[0], rows.stop_ids.shape[1]
    block = next_power_of_2(count)
    # One program: the turn has one reader.
    _advance[(1,)](
        sampled, finite.view(torch.uint8), rows.ids, rows.positions, rows.context_lens, rows.slots, rows.block_tables,
        rows.counter, rows.stop_ids, told.ring, told.turn, count, rows.block_tables.stride(0),
        *told.ring.shape, STOPS=stops, BLOCK_STOPS=next_power_of_2(stops), BLOCK=block, PDL=pdl,
        num_warps=min(8, max(1, block // 32)), **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip

"""Attention of a few rows over the paged cache, in machine code: rotate, write into the cache, attend.

A ticket is one row's queries over a part of what the row sees: 16 positions are a step, and the softmax is kept running
(Milakov and Gimelshein, 2018, https://arxiv.org/abs/1805.02867), so keys and values are read once, block by block: a ticket for
each key-value head took twice as long, since the lines of one head lie apart. A context is cut where there would be too few
tickets for all threads; the caller then puts the parts together.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir

from nanochat.kernels.cpu_code import (
    F32,
    FLOATS,
    HALVES,
    I32,
    I64,
    LANES,
    PAIRS,
    POINTER,
    Code,
    Value,
    constant,
    int32,
    int64,
    real,
)
from nanochat.kernels.cpu_matmul import tile
from nanochat.kernels.layout import BLOCK_SIZE

assert BLOCK_SIZE == LANES  # a step is a block

MOST_GROUP = 64  # query heads of one key-value head
MOST_WIDTH = 8192  # of all of them together
MOST_HEADS = 256
MOST_ROW = 16384  # of all heads together
_AHEAD = 1  # steps: memory does not know which block comes next

# The arguments, by place; those that change from step to step lie side by side. QKV: bfloat16 [ROWS, (HEADS + 2 * KV_HEADS) *
# WIDTH], changed in place. COS and SIN: bfloat16 [ROWS, 2 * HALF]. TABLES: int32, block ids, a table every TABLE_ROW; OWNERS:
# int32 [ROWS], whose table is a row's; CONTEXTS: int32 [ROWS], positions that a row sees, its own last. PARTS: into how many each
# context is cut; where there are several, SCRATCH has room for `part_size` float32 of each ticket. SPANS: int32 (first row, rows)
# and, in the next place, how many of them: only where there are many rows.
(
    QKV, ROWS, HEADS, KV_HEADS, WIDTH, HALF, KEYS, VALUES, WINDOW, SCALE, OUT, NORMS, Q_NORM, K_NORM, EPS,
    COS, SIN, SLOTS, TABLES, TABLE_ROW, OWNERS, CONTEXTS, PARTS, SCRATCH, SPANS,
) = range(25)  # fmt: skip
SIZE = 26


def part_size(heads: int, head_dim: int) -> int:
    """float32 that a ticket leaves in SCRATCH: of each head its highest score, the weights' sum, and their sum of values."""
    return heads * (2 + head_dim)


def build_attention(module: Any, share: Value, norm: Value, dots: bool) -> Value:
    """`attend(team, args)`; returns `place_row(args, row)`."""
    job, unite = _job(module, dots), _unite(module)
    place_row = _place_row(module, norm)
    code = Code(module, "attend", [POINTER, POINTER])
    b, (team, args) = code.b, code.function.args
    rows, parts = code.argument(args, ROWS), code.argument(args, PARTS)
    with code.loop(int64(0), rows) as row:
        b.call(place_row, [args, row])
    b.call(share, [team, job, args, code.product(rows, parts)])
    with b.if_then(b.icmp_signed(">", parts, int64(1))), code.loop(int64(0), rows) as row:
        b.call(unite, [args, row])
    b.ret_void()
    return place_row


def _place_row(module: Any, norm: Value) -> Value:
    """`place_row(args, row)`: a row's heads are normed and rotated in place, its keys and values written to the cache."""
    head = _head(module, norm)
    code = Code(module, "place_row", [POINTER, I64])
    b, (args, row) = code.b, code.function.args
    heads, kv_heads, width = (code.argument(args, place) for place in (HEADS, KV_HEADS, WIDTH))
    line = code.product(kv_heads, width)  # a position's keys
    row_size = code.product(b.add(heads, b.mul(kv_heads, int64(2))), width)
    start = code.at(code.pointer(args, QKV), code.product(row, row_size))
    with code.loop(int64(0), b.add(heads, kv_heads)) as number:
        is_key = b.icmp_signed(">=", number, heads)
        b.call(head, [args, row, code.at(start, code.product(number, width)), is_key])
    slot = b.load(code.at(code.pointer(args, SLOTS), row, I64), typ=I64)
    keys = code.at(start, code.product(heads, width))
    with b.if_then(b.icmp_signed(">=", slot, int64(0))):
        for place, source in ((KEYS, keys), (VALUES, code.at(keys, line))):
            to = code.at(code.pointer(args, place), code.product(slot, line))
            with code.loop(int64(0), line, LANES) as i:
                code.store(code.load(code.at(source, i), HALVES), code.at(to, i))
    b.ret_void()
    return code.function


def _head(module: Any, norm: Value) -> Value:
    """`head(args, row, x, is_key)`: one head's norm and rotation, in place."""
    code = Code(module, "head", [POINTER, I64, POINTER, ir.IntType(1)])
    b, (args, row, x, is_key) = code.b, code.function.args
    with b.if_then(b.icmp_signed("!=", code.argument(args, NORMS), int64(0))):
        weight = b.select(is_key, code.pointer(args, K_NORM), code.pointer(args, Q_NORM))
        b.call(norm, [x, code.argument(args, WIDTH), weight, code.real(args, EPS), x])
    half = code.argument(args, HALF)
    angles = code.product(row, half, int64(2))
    cosines, sines = (code.at(code.pointer(args, place), angles) for place in (COS, SIN))
    with code.loop(int64(0), half, LANES) as i:
        above = b.add(i, half)
        first, second = (code.wide(code.load(code.at(x, place), HALVES)) for place in (i, above))
        cos = code.wide(code.load(code.at(cosines, i), HALVES))
        sin = code.wide(code.load(code.at(sines, above), HALVES))  # the first half of SIN is negative
        code.store(code.narrow(b.fsub(b.fmul(first, cos), b.fmul(second, sin))), code.at(x, i))
        code.store(code.narrow(code.fma(first, sin, b.fmul(second, cos))), code.at(x, above))
    b.ret_void()
    return code.function


class _Row:
    """What a ticket knows of its row."""

    def __init__(self, code: Code, args: Value, row: Value) -> None:
        b = code.b
        self.heads, self.kv_heads, self.width = (
            code.argument(args, place) for place in (HEADS, KV_HEADS, WIDTH)
        )
        self.group = b.sdiv(self.heads, self.kv_heads)
        self.line = code.product(self.kv_heads, self.width)
        self.all = code.product(self.heads, self.width)
        size = b.add(self.all, b.mul(self.line, int64(2)))
        self.queries = code.at(code.pointer(args, QKV), code.product(row, size))
        self.out = code.at(code.pointer(args, OUT), code.product(row, self.all))
        self.start, self.context = seen_by(code, args, row)
        self.table = table_of(code, args, row)


def number_at(code: Code, address: Value) -> Value:
    """An int32 in memory."""
    return code.b.sext(code.b.load(address, typ=I32), I64)


def table_of(code: Code, args: Value, row: Value) -> Value:
    """The block table of a row's sequence."""
    owner = number_at(code, code.at(code.pointer(args, OWNERS), row, I32))
    return code.at(code.pointer(args, TABLES), code.product(owner, code.argument(args, TABLE_ROW)), I32)


def seen_by(code: Code, args: Value, row: Value) -> tuple[Value, Value]:
    """The positions [start, end) that a row sees."""
    b = code.b
    context = number_at(code, code.at(code.pointer(args, CONTEXTS), row, I32))
    window = code.argument(args, WINDOW)
    width = b.select(b.icmp_signed(">", window, int64(0)), window, context)
    return code.most(b.sub(context, width), int64(0)), context


def _job(module: Any, dots: bool) -> Value:
    code = Code(module, "row", [POINTER, I64], dots=dots)
    b, (args, index) = code.b, code.function.args
    parts = code.argument(args, PARTS)
    row = _Row(code, args, b.sdiv(index, parts))
    highest, total = code.room(F32, MOST_HEADS), code.room(F32, MOST_HEADS)
    result = code.room(
        F32, MOST_ROW
    )  # of each head its even elements, 16 at a time, each before its odd ones
    with code.loop(int64(0), row.heads) as head:
        b.store(real(float("-inf")), code.at(highest, head, F32))
        b.store(real(0.0), code.at(total, head, F32))
    with code.loop(int64(0), row.all, LANES) as i:
        code.store(constant(FLOATS, 0.0), code.at(result, i, F32))
    keys, values, scale = code.pointer(args, KEYS), code.pointer(args, VALUES), code.real(args, SCALE)
    first, last = _steps(code, row, b.srem(index, parts), parts)
    share = _share(code, row)
    with code.loop(first, last) as step:
        offset = _block(code, row, step)
        before = b.mul(step, int64(LANES))
        least, end = b.sub(row.start, before), b.sub(row.context, before)
        # What lies past the context was never written and may be NaN: the last position stands in, with no weight.
        places = [code.product(code.least(int64(j), b.sub(end, int64(1))), row.line) for j in range(LANES)]
        seen = between(code, least, end)
        soon = _block(code, row, code.least(b.add(step, int64(_AHEAD)), b.sub(last, int64(1))))
        with code.loop(int64(0), row.kv_heads) as kv_head:
            at = b.add(offset, code.product(kv_head, row.width))
            k_rows, v_rows = (
                [code.at(tensor, b.add(at, place)) for place in places] for tensor in (keys, values)
            )
            group = code.product(kv_head, row.group)
            with code.loop(group, b.add(group, row.group)) as head:
                # A part with each head: what is asked for all at once is waited for.
                _ask_for(code, (keys, values), b.add(soon, code.product(head, share)), share)
                query = code.at(row.queries, code.product(head, row.width))
                scores = b.fmul(tile(code, k_rows, [query], row.width), code.splat(scale))
                scores = b.select(seen, scores, constant(FLOATS, float("-inf")))
                weights = _running(code, code.at(highest, head, F32), code.at(total, head, F32), scores)
                sums = code.at(result, code.product(head, row.width), F32)
                _accumulate(code, sums, v_rows, row.width, weights)
    with b.if_else(b.icmp_signed("==", parts, int64(1))) as (whole, part):
        with whole:
            _finish(code, row, result, total)
        with part:
            kept = _scratch(code, args, row, index)
            for source, to, count in zip(
                (highest, total, result), kept, (row.heads, row.heads, row.all), strict=True
            ):
                with code.loop(int64(0), count) as i:
                    b.store(b.load(code.at(source, i, F32), typ=F32), code.at(to, i, F32))
    b.ret_void()
    return code.function


def _block(code: Code, row: _Row, step: Value) -> Value:
    """Where a step's keys and values begin."""
    block = number_at(code, code.at(row.table, step, I32))
    return code.product(block, int64(LANES), row.line)


def _share(code: Code, row: _Row) -> Value:
    """Of a step's keys, and of its values, what each head asks for: whole lines, and at least a whole block together."""
    b, line = code.b, code.product(row.group, int64(2 * LANES))
    rounded = b.add(b.mul(row.width, int64(LANES)), b.sub(line, int64(1)))
    return b.mul(b.sdiv(rounded, line), int64(2 * LANES))


def _ask_for(code: Code, tensors: tuple[Value, Value], first: Value, count: Value) -> None:
    """Have some of a later step's keys and values fetched."""
    with code.loop(int64(0), count, 2 * LANES) as i:
        for tensor in tensors:
            code.prefetch(code.at(tensor, code.b.add(first, i)))


def _steps(code: Code, row: _Row, part: Value, parts: Value) -> tuple[Value, Value]:
    """The steps [first, last) of a part, of which there may be none."""
    b = code.b
    start = b.sdiv(row.start, int64(LANES))
    end = b.sdiv(b.add(row.context, int64(LANES - 1)), int64(LANES))
    each = b.sdiv(b.add(b.sub(end, start), b.sub(parts, int64(1))), parts)
    first = b.add(start, code.product(part, each))
    return first, code.least(b.add(first, each), end)


def _scratch(code: Code, args: Value, row: _Row, ticket: Value) -> tuple[Value, Value, Value]:
    """Where a ticket's highest scores, sums of weights and sums of values are."""
    b = code.b
    size = code.product(row.heads, b.add(row.width, int64(2)))
    start = code.at(code.pointer(args, SCRATCH), code.product(ticket, size), F32)
    return start, code.at(start, row.heads, F32), code.at(start, code.product(row.heads, int64(2)), F32)


def _unite(module: Any) -> Value:
    """`unite(args, row)`: the parts of one row become one, where the first of them lies."""
    code = Code(module, "unite", [POINTER, I64])
    b, (args, index) = code.b, code.function.args
    parts = code.argument(args, PARTS)
    row = _Row(code, args, index)
    tickets = code.product(index, parts)
    highest, total, result = _scratch(code, args, row, tickets)
    with code.loop(int64(1), parts) as part:
        other_highest, other_total, other_result = _scratch(code, args, row, b.add(tickets, part))
        with code.loop(int64(0), row.heads) as head:
            ours, theirs = (b.load(code.at(at, head, F32), typ=F32) for at in (highest, other_highest))
            most = b.select(b.fcmp_ordered(">", theirs, ours), theirs, ours)
            b.store(most, code.at(highest, head, F32))
            kept, taken = (code.exp(code.splat(b.fsub(before, most))) for before in (ours, theirs))

            def added(at: Value, other: Value, kind: Value, kept: Value, taken: Value) -> None:
                first, second = (code.load(address, kind) for address in (at, other))
                code.store(b.fadd(b.fmul(first, kept), b.fmul(second, taken)), at)

            one = [b.extract_element(factor, int32(0)) for factor in (kept, taken)]
            added(code.at(total, head, F32), code.at(other_total, head, F32), F32, *one)
            first = code.product(head, row.width)
            with code.loop(int64(0), row.width, LANES) as i:
                place = b.add(first, i)
                added(code.at(result, place, F32), code.at(other_result, place, F32), FLOATS, kept, taken)
    _finish(code, row, result, total)
    b.ret_void()
    return code.function


def between(code: Code, least: Value, end: Value) -> Value:
    """Which lanes lie in [least, end)."""
    b = code.b
    lanes = ir.Constant(PAIRS, list(range(LANES)))
    low, high = (code.splat(b.trunc(bound, I32), PAIRS) for bound in (least, end))
    return b.and_(b.icmp_signed(">=", lanes, low), b.icmp_signed("<", lanes, high))


def _running(code: Code, highest: Value, total: Value, scores: Value) -> tuple[Value, Value]:
    """The weights of 16 positions, and the factor that what was summed before must be multiplied by."""
    b = code.b
    before = b.load(highest, typ=F32)
    most = code.highest(scores)
    # A NaN must not be lost, and the largest of numbers leaves it out.
    now = b.select(b.fcmp_ordered(">", most, before), most, before)
    b.store(now, highest)
    weights = code.exp(b.fsub(scores, code.splat(now)))
    shrunk = code.exp(code.splat(b.fsub(before, now)))
    b.store(
        b.fadd(b.fmul(b.load(total, typ=F32), b.extract_element(shrunk, int32(0))), code.total(weights)),
        total,
    )
    return weights, shrunk


def _accumulate(
    code: Code, sums: Value, v_rows: list[Value], width: Value, weights: tuple[Value, Value]
) -> None:
    """sums = sums * shrunk + weights @ values."""
    b = code.b
    each, shrunk = weights
    factors = [code.splat(b.extract_element(each, int32(j))) for j in range(LANES)]
    with code.loop(int64(0), width, 2 * LANES) as i:
        at_even, at_odd = code.at(sums, i, F32), code.at(sums, b.add(i, int64(LANES)), F32)
        even, odd = (b.fmul(code.load(at, FLOATS), shrunk) for at in (at_even, at_odd))
        for row, factor in zip(v_rows, factors, strict=True):
            v = code.load(code.at(row, i), PAIRS)
            even, odd = code.fma(factor, code.even(v), even), code.fma(factor, code.odd(v), odd)
        code.store(even, at_even)
        code.store(odd, at_odd)


def _finish(code: Code, row: _Row, result: Value, total: Value) -> None:
    """Divide by the weights' sum and round."""
    b = code.b
    with code.loop(int64(0), row.heads) as head:
        inverse = code.splat(b.fdiv(real(1.0), b.load(code.at(total, head, F32), typ=F32)))
        first = code.product(head, row.width)
        with code.loop(int64(0), row.width, 2 * LANES) as i:
            place = b.add(first, i)
            even = code.load(code.at(result, place, F32), FLOATS)
            odd = code.load(code.at(result, b.add(place, int64(LANES)), F32), FLOATS)
            pairs = code.joined(b.fmul(even, inverse), b.fmul(odd, inverse))
            code.store(pairs, code.at(row.out, place))

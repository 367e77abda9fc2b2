"""Attention of many rows over the paged cache, in machine code: what reads a prompt.

A ticket is up to four rows of one sequence, with the queries that share one key-value head. 16 positions are a step: their
keys are turned once, so that a position is a lane, and their values are laid in pairs of positions, so that the
processor's product of pairs takes both; then every query of the ticket has its turn. The softmax is kept running.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir

from nanochat.kernels.cpu_attention import (
    HEADS,
    KEYS,
    KV_HEADS,
    MOST_GROUP,
    MOST_WIDTH,
    OUT,
    QKV,
    ROWS,
    SCALE,
    SPANS,
    VALUES,
    WIDTH,
    between,
    number_at,
    seen_by,
    table_of,
)
from nanochat.kernels.cpu_code import (
    F32,
    FLOATS,
    HALVES,
    I16,
    I32,
    I64,
    LANES,
    PAIRS,
    POINTER,
    Code,
    Value,
    constant,
    int64,
    real,
)

SPAN = 4  # rows of a ticket at most
MOST_HEAD = 512  # numbers of a head
_SUMS = 4  # sums of a score side by side: a product waits for the one before


def build_prompts(module: Any, share: Value, place_row: Value, dots: bool) -> None:
    """`attend_prompts(team, args)`. `place_row(args, row)` rotates a row and writes its keys and values."""
    job = _job(module, dots)
    code = Code(module, "attend_prompts", [POINTER, POINTER])
    b, (team, args) = code.b, code.function.args
    b.call(share, [team, place_row, args, code.argument(args, ROWS)])
    spans = code.product(code.argument(args, SPANS + 1), code.argument(args, KV_HEADS))
    b.call(share, [team, job, args, spans])
    b.ret_void()


class _Ticket:
    """What a ticket knows of its rows and its key-value head."""

    def __init__(self, code: Code, args: Value, index: Value) -> None:
        b = code.b
        self._code, self._args = code, args
        heads, kv_heads, self.width = (code.argument(args, place) for place in (HEADS, KV_HEADS, WIDTH))
        span = code.at(code.pointer(args, SPANS), b.mul(b.sdiv(index, kv_heads), int64(2)), I32)
        self.first, self.count = (number_at(code, code.at(span, place, I32)) for place in range(2))
        self.head = b.srem(index, kv_heads)
        self.group = b.sdiv(heads, kv_heads)
        self.line = code.product(kv_heads, self.width)  # a position's keys
        self.queries = code.product(self.count, self.group)
        self._heads = code.product(heads, self.width)
        self._row_size = b.add(self._heads, b.mul(self.line, int64(2)))
        self._first_head = code.product(self.head, self.group, self.width)
        self.table = table_of(code, args, self.first)
        self.start, _ = self.seen(int64(0))
        _, self.end = self.seen(b.sub(self.count, int64(1)))

    def seen(self, row: Value) -> tuple[Value, Value]:
        """The positions [start, end) that a row of the ticket sees."""
        return seen_by(self._code, self._args, self._code.b.add(self.first, row))

    def query(self, row: Value, g: Value) -> Value:
        """Where a query of the ticket lies."""
        code, b = self._code, self._code.b
        at = b.add(code.product(b.add(self.first, row), self._row_size), self._first_head)
        return code.at(code.pointer(self._args, QKV), b.add(at, code.product(g, self.width)))

    def out(self, row: Value, g: Value) -> Value:
        """Where its result goes."""
        code, b = self._code, self._code.b
        at = b.add(code.product(b.add(self.first, row), self._heads), self._first_head)
        return code.at(code.pointer(self._args, OUT), b.add(at, code.product(g, self.width)))


class _Room:
    """Memory for a ticket: the step's keys and values, and what each query has so far."""

    def __init__(self, code: Code) -> None:
        most = SPAN * MOST_GROUP
        self.keys = code.room(I32, LANES * MOST_HEAD // 2)  # [pairs of numbers, positions]
        self.values = code.room(I32, LANES // 2 * MOST_HEAD)  # [pairs of positions, numbers]
        self.highest = code.room(F32, most)
        self.totals = code.room(F32, most * LANES)  # a sum for each lane
        self.results = code.room(F32, SPAN * MOST_WIDTH)
        self.weights = code.room(I16, LANES)


def _job(module: Any, dots: bool) -> Value:
    code = Code(module, "prompts", [POINTER, I64], dots=dots)
    b, (args, index) = code.b, code.function.args
    ticket, room, scale = _Ticket(code, args, index), _Room(code), code.real(args, SCALE)
    with code.loop(int64(0), ticket.queries) as q:
        b.store(real(float("-inf")), code.at(room.highest, q, F32))
        code.store(constant(FLOATS, 0.0), code.at(room.totals, b.mul(q, int64(LANES)), F32))
    with code.loop(int64(0), code.product(ticket.queries, ticket.width), LANES) as i:
        code.store(constant(FLOATS, 0.0), code.at(room.results, i, F32))
    keys, values = code.pointer(args, KEYS), code.pointer(args, VALUES)
    last = b.sdiv(b.add(ticket.end, int64(LANES - 1)), int64(LANES))
    with code.loop(b.sdiv(ticket.start, int64(LANES)), last) as step:
        before = b.mul(step, int64(LANES))
        _lay_out(code, ticket, room, keys, values, step)
        with code.loop(int64(0), ticket.count) as row:
            start, end = ticket.seen(row)
            least, most = b.sub(start, before), b.sub(end, before)
            some = b.and_(b.icmp_signed("<", least, int64(LANES)), b.icmp_signed(">", most, int64(0)))
            with b.if_then(some):  # of positions that it does not see a row keeps nothing
                seen = between(code, least, most)
                with code.loop(int64(0), ticket.group) as g:
                    q = b.add(code.product(row, ticket.group), g)
                    scores = _scores(code, ticket, room, ticket.query(row, g))
                    scores = b.fmul(scores, code.splat(scale))
                    scores = b.select(seen, scores, constant(FLOATS, float("-inf")))
                    _add(code, ticket, room, q, scores)
    with code.loop(int64(0), ticket.count) as row, code.loop(int64(0), ticket.group) as g:
        _finish(code, ticket, room, b.add(code.product(row, ticket.group), g), ticket.out(row, g))
    b.ret_void()
    return code.function


def _lay_out(code: Code, ticket: _Ticket, room: _Room, keys: Value, values: Value, step: Value) -> None:
    """A step's keys and values, as the products want them."""
    b = code.b
    block = number_at(code, code.at(ticket.table, step, I32))
    offset = b.add(code.product(block, int64(LANES), ticket.line), code.product(ticket.head, ticket.width))
    # What lies past the context was never written and may be NaN: the last position stands in, with no weight.
    most = b.sub(b.sub(ticket.end, b.mul(step, int64(LANES))), int64(1))
    places = [b.add(offset, code.product(code.least(int64(j), most), ticket.line)) for j in range(LANES)]
    with code.loop(int64(0), ticket.width, 2 * LANES) as i:
        rows = [code.load(code.at(code.at(keys, place), i), PAIRS) for place in places]
        first = code.at(room.keys, b.mul(i, int64(LANES // 2)), I32)
        for p, lanes in enumerate(_turned(code, rows)):
            code.store(lanes, code.at(first, p * LANES, I32))
    with code.loop(int64(0), ticket.width, LANES) as i:
        for j in range(0, LANES, 2):
            low, high = (
                b.zext(code.load(code.at(code.at(values, place), i), HALVES), PAIRS)
                for place in places[j : j + 2]
            )
            pair = b.or_(low, b.shl(high, constant(PAIRS, 16)))
            at = b.add(code.product(int64(j // 2), ticket.width), i)
            code.store(pair, code.at(room.values, at, I32))


def _turned(code: Code, rows: list[Value]) -> list[Value]:
    """16 vectors of 16 lanes, lines become columns: in four rounds, in which halves of neighbours are exchanged."""
    kind = ir.VectorType(I32, LANES)
    for size in (8, 4, 2, 1):
        kept = [lane if not lane & size else LANES + lane - size for lane in range(LANES)]
        other = [lane + size if not lane & size else LANES + lane for lane in range(LANES)]
        turned = list(rows)
        for i in range(LANES):
            if not i & size:
                pair = rows[i], rows[i + size]
                turned[i] = code.b.shuffle_vector(*pair, ir.Constant(kind, kept))
                turned[i + size] = code.b.shuffle_vector(*pair, ir.Constant(kind, other))
        rows = turned
    return rows


def _scores(code: Code, ticket: _Ticket, room: _Room, query: Value) -> Value:
    """A query's products with the step's 16 keys."""
    b = code.b
    sums = [code.cell(FLOATS, constant(FLOATS, 0.0)) for _ in range(_SUMS)]
    with code.loop(int64(0), b.sdiv(ticket.width, int64(2)), _SUMS) as p:
        for n, total in enumerate(sums):
            at = b.add(p, int64(n))
            pair = code.splat(b.load(code.at(query, at, I32), typ=I32, align=2), PAIRS)
            lanes = code.load(code.at(room.keys, b.mul(at, int64(LANES)), I32), PAIRS)
            total.set(code.dot(total.get(), lanes, pair))
    first, second, third, fourth = (total.get() for total in sums)
    return b.fadd(b.fadd(first, second), b.fadd(third, fourth))


def _add(code: Code, ticket: _Ticket, room: _Room, q: Value, scores: Value) -> None:
    """Take 16 positions into what a query has so far."""
    b = code.b
    highest, at_totals = code.at(room.highest, q, F32), code.at(room.totals, b.mul(q, int64(LANES)), F32)
    result = code.at(room.results, code.product(q, ticket.width), F32)
    before = b.load(highest, typ=F32)
    most = code.highest(scores)
    now = code.cell(F32, before)  # a NaN is none the higher, and its weight is NaN
    with b.if_then(b.fcmp_ordered(">", most, before)):
        now.set(most)
        b.store(most, highest)
        shrunk = code.exp(code.splat(b.fsub(before, most)))
        code.store(b.fmul(code.load(at_totals, FLOATS), shrunk), at_totals)
        with code.loop(int64(0), ticket.width, LANES) as i:
            to = code.at(result, i, F32)
            code.store(b.fmul(code.load(to, FLOATS), shrunk), to)
    weights = code.exp(b.fsub(scores, code.splat(now.get())))
    code.store(b.fadd(code.load(at_totals, FLOATS), weights), at_totals)
    code.store(code.narrow(weights), room.weights)
    pairs = [
        code.splat(b.load(code.at(room.weights, j, I32), typ=I32, align=2), PAIRS) for j in range(LANES // 2)
    ]
    with code.loop(int64(0), ticket.width, LANES) as i:
        to = code.at(result, i, F32)
        total = code.load(to, FLOATS)
        for j, pair in enumerate(pairs):
            at = b.add(code.product(int64(j), ticket.width), i)
            total = code.dot(total, code.load(code.at(room.values, at, I32), PAIRS), pair)
        code.store(total, to)


def _finish(code: Code, ticket: _Ticket, room: _Room, q: Value, out: Value) -> None:
    """Divide by the weights' sum and round."""
    b = code.b
    total = code.total(code.load(code.at(room.totals, b.mul(q, int64(LANES)), F32), FLOATS))
    inverse = code.splat(b.fdiv(real(1.0), total))
    result = code.at(room.results, code.product(q, ticket.width), F32)
    with code.loop(int64(0), ticket.width, LANES) as i:
        value = b.fmul(code.load(code.at(result, i, F32), FLOATS), inverse)
        code.store(code.narrow(value), code.at(out, i))

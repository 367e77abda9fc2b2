"""Matrices that hold no more than 4 or 8 bits a number, read as such: a quarter or half of the bytes of bfloat16.

A checkpoint that was quantized once and is bfloat16 now, as the starter model, still has all its numbers on the old grids:
for every 32 inputs of an output 16 steps from a least number on (Q4_1 and its like), or 255 around zero (Q8_0). `quantize`
finds the grids again, from the least and the largest number, and says whether every number lies on its own, but for what
bfloat16 had rounded away. So nothing is lost, and much is found again: where the model was trained in bfloat16, its least and
largest numbers are what they were, and so are the grids. All of the starter's matrices come back exactly as its file has them.

16 outputs are a unit, as in `cpu_matmul`, and an output is a lane. For 32 inputs a unit has a line of 64 bytes with each
lane's step and least number, float16, and then a plane of four lines: the low half of a byte of 8 bits and 4 bits alike; its
high half has another plane. A lane of a line is 32 bits: four pairs of inputs, pair j with its even one's 4 bits from bit 4 j
on and its odd one's from bit 16 + 4 j on. So one shift and one mask make pairs of bfloat16 of them: of 128 + q the last bits
are q. What that adds, and the least number, are multiplied by the sum of the inputs, which is added up once for each product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llvmlite.ir as ir

from nanochat.kernels.cpu_code import (
    F32,
    FLOATS,
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

GROUP = 32  # inputs that share a step

# What `quantize` takes, by place: rows of IN numbers in bfloat16; UNITS of them in tickets of UNITS_EACH; where the same with so
# many PLANES goes; and an int64 that becomes 1 where a number lies on no grid.
WEIGHT, IN, UNITS, UNITS_EACH, QUANTIZED, PLANES, LOST = range(7)
SIZE = 7

_LINE, _PLANE = 64, 256
_HALF = ir.HalfType()
_HALVES = ir.VectorType(_HALF, LANES)
_OFFSET = 128.0  # where bfloat16's last bit is 1
_PAIR_OF_OFFSETS = 0x43004300
_TWO_NIBBLES = 0x000F000F
# bfloat16 rounds a number, and both ends of its grid, by at most this much of them; float16 rounds a step by an eighth of it.
_ROUNDED = 1.0625 / 256.0


def unit_bytes(width: int, planes: int) -> int:
    """Of 16 outputs with `width` inputs."""
    return width // GROUP * (_LINE + planes * _PLANE)


def build_quantize(module: Any, share: Value) -> None:
    """`quantize(team, args)`."""
    job = _quantize_units(module)
    code = Code(module, "quantize", [POINTER, POINTER])
    b, (team, args) = code.b, code.function.args
    units, each = code.argument(args, UNITS), code.argument(args, UNITS_EACH)
    b.call(share, [team, job, args, b.sdiv(b.add(units, b.sub(each, int64(1))), each)])
    b.ret_void()


def _quantize_units(module: Any) -> Value:
    """The units of one ticket, as long as nothing was lost."""
    code = Code(module, "quantize_units", [POINTER, I64])
    b, (args, index) = code.b, code.function.args
    each, width, planes = (code.argument(args, place) for place in (UNITS_EACH, IN, PLANES))
    weight, out, lost = (code.pointer(args, place) for place in (WEIGHT, QUANTIZED, LOST))
    first = b.mul(index, each)
    last = code.least(b.add(first, each), code.argument(args, UNITS))
    with code.loop(b.mul(first, int64(LANES)), b.mul(last, int64(LANES))) as row:  # noqa: SIM117
        with b.if_then(b.icmp_signed("==", b.load_atomic(lost, "monotonic", 8, typ=I64), int64(0))):
            _quantize_row(code, row, weight, width, planes, out, lost)
    b.ret_void()
    return code.function


def _quantize_row(
    code: Code, row: Value, weight: Value, width: Value, planes: Value, out: Value, lost: Value
) -> None:
    """A row's groups, into its lane of its unit."""
    b, groups = code.b, code.b.sdiv(width, int64(GROUP))
    lane, first = b.and_(row, int64(LANES - 1)), b.mul(b.sdiv(row, int64(LANES)), groups)
    size = b.add(int64(_LINE), b.mul(planes, int64(_PLANE)))
    with code.loop(int64(0), groups) as group:
        place = b.gep(out, [b.mul(b.add(first, group), size)], source_etype=ir.IntType(8))
        pairs = code.load(code.at(weight, b.add(b.mul(row, width), b.mul(group, int64(GROUP)))), PAIRS)
        even, odd = code.even(pairs), code.odd(pairs)
        with b.if_else(b.icmp_signed("==", planes, int64(1))) as (four, eight):
            with four:
                _four_bits(code, even, odd, place, lane, lost)
            with eight:
                _eight_bits(code, even, odd, place, lane, lost)


def _four_bits(code: Code, even: Value, odd: Value, place: Value, lane: Value, lost: Value) -> None:
    b = code.b
    highest, lowest = _of_all(code, _larger, even, odd), _of_all(code, _smaller, even, odd)
    step = b.fptrunc(b.fmul(b.fsub(highest, lowest), constant(FLOATS, 1 / 15)), _HALVES)
    least = b.fptrunc(lowest, _HALVES)
    _store_grid(code, place, lane, step, least)
    step, least = b.fpext(step, FLOATS), b.fpext(least, FLOATS)
    inverse, zero, most = _inverse(code, step), constant(FLOATS, 0.0), constant(FLOATS, 15.0)
    # What the least number may be off, and how much more a number may be that is a step above it.
    off, off_above = _size(code, lowest), b.fmul(b.fsub(highest, lowest), constant(FLOATS, 1 / 8))
    off_above = b.fmul(b.fadd(b.fsub(_size(code, highest), off), off_above), constant(FLOATS, _ROUNDED / 15))
    found = list[Value]()
    for values in (even, odd):
        steps = _clamped(code, b.fmul(b.fsub(values, least), inverse), zero, most)
        allowed = b.fmul(b.fadd(_size(code, values), off), constant(FLOATS, _ROUNDED))
        _check(code, values, code.fma(steps, step, least), code.fma(steps, off_above, allowed), lost)
        found.append(b.fptosi(steps, PAIRS))
    _store_plane(code, place, 0, lane, *found)


def _eight_bits(code: Code, even: Value, odd: Value, place: Value, lane: Value, lost: Value) -> None:
    b = code.b
    highest = _of_all(code, _larger, _size(code, even), _size(code, odd))
    step = b.fptrunc(b.fmul(highest, constant(FLOATS, 1 / 127)), _HALVES)
    wide_step = b.fpext(step, FLOATS)
    _store_grid(code, place, lane, step, b.fptrunc(b.fmul(wide_step, constant(FLOATS, -_OFFSET)), _HALVES))
    inverse, low, high = _inverse(code, wide_step), constant(FLOATS, -127.0), constant(FLOATS, 127.0)
    found = list[Value]()
    for values in (even, odd):
        steps = _clamped(code, b.fmul(values, inverse), low, high)
        allowed = b.fmul(_size(code, values), constant(FLOATS, 2.125 * _ROUNDED))
        _check(code, values, b.fmul(steps, wide_step), allowed, lost)
        found.append(b.fptosi(b.fadd(steps, constant(FLOATS, _OFFSET)), PAIRS))
    _store_plane(code, place, 0, lane, *(b.and_(each, constant(PAIRS, 15)) for each in found))
    _store_plane(code, place, 1, lane, *(b.lshr(each, constant(PAIRS, 4)) for each in found))


def _store_grid(code: Code, place: Value, lane: Value, step: Value, least: Value) -> None:
    """A lane's step and least number, which are the same in all of their lanes."""
    for each, at in ((step, lane), (least, code.b.add(lane, int64(LANES)))):
        code.store(code.b.extract_element(each, int32(0)), code.at(place, at, _HALF))


def _store_plane(code: Code, place: Value, plane: int, lane: Value, even: Value, odd: Value) -> None:
    """A lane's 16 pairs of 4 bits: lane 4 c + j of the pairs belongs into line c, from bit 4 j and bit 16 + 4 j on."""
    b = code.b
    shifts = ir.Constant(PAIRS, [4 * (i % 4) for i in range(LANES)])
    bits = b.shl(b.or_(even, b.shl(odd, constant(PAIRS, 16))), shifts)
    for apart in (1, 2):
        others = ir.Constant(ir.VectorType(I32, LANES), [i ^ apart for i in range(LANES)])
        bits = b.or_(bits, b.shuffle_vector(bits, bits, others))
    for line in range(4):
        to = _LINE // 4 + plane * (_PLANE // 4) + line * LANES  # in 32 bits
        code.store(b.extract_element(bits, int32(4 * line)), code.at(place, b.add(lane, int64(to)), I32))


def _check(code: Code, values: Value, found: Value, allowed: Value, lost: Value) -> None:
    """What lies on no grid is lost: also what is not a number, or has none that float16 holds."""
    b = code.b
    lies = b.fcmp_ordered("<=", _size(code, b.fsub(values, found)), allowed)
    all_lie = code.intrinsic("llvm.vector.reduce.and.v16i1", ir.IntType(1), lies)
    with b.if_then(b.not_(all_lie)):
        b.atomic_rmw("xchg", lost, int64(1), "monotonic")


def _inverse(code: Code, step: Value) -> Value:
    """1 / step, the same in all lanes; 0 where all numbers are the same."""
    b = code.b
    one = b.extract_element(step, int32(0))
    none = b.fcmp_ordered("==", one, real(0.0))
    return code.splat(b.select(none, real(0.0), b.fdiv(real(1.0), one)))


def _size(code: Code, values: Value) -> Value:
    return code.intrinsic("llvm.fabs.v16f32", FLOATS, values)


def _larger(code: Code, a: Value, b: Value) -> Value:
    return code.b.select(code.b.fcmp_ordered(">", a, b), a, b)


def _smaller(code: Code, a: Value, b: Value) -> Value:
    return code.b.select(code.b.fcmp_ordered("<", a, b), a, b)


def _of_all(code: Code, better: Callable[[Code, Value, Value], Value], a: Value, b: Value) -> Value:
    """The best of 32 numbers, in every lane."""
    best = better(code, a, b)
    for apart in (8, 4, 2, 1):
        others = ir.Constant(ir.VectorType(I32, LANES), [i ^ apart for i in range(LANES)])
        best = better(code, best, code.b.shuffle_vector(best, best, others))
    return best


def _clamped(code: Code, values: Value, low: Value, high: Value) -> Value:
    """To whole numbers between both; what is no number becomes the lower one."""
    whole = code.intrinsic("llvm.rint.v16f32", FLOATS, values)
    return _smaller(code, _larger(code, whole, low), high)


def prepared_size(width: int, dots: bool) -> int:
    """Numbers in float32 that `prepare` makes of a row."""
    return width // GROUP + (0 if dots else width)


def build_prepare(module: Any, dots: bool) -> Value:
    """`prepare(x, x_row, rows, width, prepared)`: of each row the sums of its groups, and where the processor does not multiply
    bfloat16 itself its even and then its odd numbers in float32."""
    code = Code(module, "prepare", [POINTER, I64, I64, I64, POINTER])
    b, (x, x_row, rows, width, prepared) = code.b, code.function.args
    groups, half = b.sdiv(width, int64(GROUP)), b.sdiv(width, int64(2))
    with (
        code.loop(int64(0), rows) as row,
        code.loop(int64(0), groups) as group,
    ):
        pairs = code.load(code.at(x, b.add(b.mul(row, x_row), b.mul(group, int64(GROUP)))), PAIRS)
        even, odd = code.even(pairs), code.odd(pairs)
        to = _prepared_row(code, prepared, row, width, dots)
        code.store(code.total(b.fadd(even, odd)), code.at(to, group, F32))
        if not dots:
            place = b.add(groups, b.mul(group, int64(LANES)))
            code.store(even, code.at(to, place, F32))
            code.store(odd, code.at(to, b.add(place, half), F32))
    b.ret_void()
    return code.function


def _prepared_row(code: Code, prepared: Value, row: Value, width: Value, dots: bool) -> Value:
    b = code.b
    groups = b.sdiv(width, int64(GROUP))
    return code.at(prepared, b.mul(row, groups if dots else b.add(groups, width)), F32)


def build_quantized_unit(module: Any, dots: bool, planes: int) -> Value:
    """`quantized_unit_N(x, x_row, rows, width, unit, prepared, sums)`: a unit with all rows, to float32 [rows, 16]."""
    parameters = [POINTER, I64, I64, I64, POINTER, POINTER, POINTER]
    code = Code(module, f"quantized_unit_{planes}", parameters, dots=dots)
    b, (x, x_row, rows, width, unit, prepared, sums) = code.b, code.function.args
    groups, half, size = b.sdiv(width, int64(GROUP)), b.sdiv(width, int64(2)), _LINE + planes * _PLANE

    def tiles(first: Value, count: int) -> None:
        """`count` rows from row `first` on."""
        numbers = [b.add(first, int64(r)) for r in range(count)]
        taken = [code.at(x, b.mul(number, x_row)) for number in numbers]
        made = [_prepared_row(code, prepared, number, width, dots) for number in numbers]
        totals = [code.cell(FLOATS, constant(FLOATS, 0.0)) for _ in range(count)]
        with code.loop(int64(0), groups) as group:
            place = b.gep(unit, [b.mul(group, int64(size))], source_etype=ir.IntType(8))
            step, least = _grid(code, place)
            offset = -sum(_OFFSET * 16**plane for plane in range(planes))
            least = code.fma(step, constant(FLOATS, offset), least)
            if dots:
                inputs = [(code.at(row, b.mul(group, int64(GROUP))),) for row in taken]
            else:
                even = b.add(groups, b.mul(group, int64(LANES)))
                inputs = [(code.at(row, even, F32), code.at(row, b.add(even, half), F32)) for row in made]
            parts = [_plane(code, place, plane, inputs) for plane in range(planes)]
            for r, total in enumerate(totals):
                inputs_sum = code.splat(code.load(code.at(made[r], group, F32), F32))
                part = parts[0][r]
                if planes > 1:
                    part = code.fma(parts[1][r], constant(FLOATS, 16.0), part)
                total.set(code.fma(least, inputs_sum, code.fma(step, part, total.get())))
        for number, total in zip(numbers, totals, strict=True):
            code.store(total.get(), code.at(sums, b.mul(number, int64(LANES)), F32))

    eights = b.and_(rows, int64(-8))
    with code.loop(int64(0), eights, 8) as first:
        tiles(first, 8)
    for count in (4, 2, 1):
        with b.if_then(b.icmp_signed("!=", b.and_(rows, int64(count)), int64(0))):
            tiles(b.and_(rows, int64(-2 * count)), count)
    b.ret_void()
    return code.function


def _grid(code: Code, place: Value) -> tuple[Value, Value]:
    """Each lane's step and least number."""
    found = (code.load(code.at(place, at, _HALF), _HALVES) for at in (0, LANES))
    step, least = (code.b.fpext(each, FLOATS) for each in found)
    return step, least


def _pairs(code: Code, place: Value, plane: int) -> Iterator[Value]:
    """A group's 16 pairs of inputs, each of all 16 outputs: 128 + q in bfloat16."""
    b = code.b
    for line in range(4):
        bits = code.load(code.at(place, _LINE // 4 + plane * (_PLANE // 4) + line * LANES, I32), PAIRS)
        for j in range(4):
            shifted = b.lshr(bits, constant(PAIRS, 4 * j)) if j else bits
            yield b.or_(b.and_(shifted, constant(PAIRS, _TWO_NIBBLES)), constant(PAIRS, _PAIR_OF_OFFSETS))


def _plane(code: Code, place: Value, plane: int, inputs: Sequence[tuple[Value, ...]]) -> list[Value]:
    """Of each row's 32 inputs the sum of products with 128 + q, a lane for each output.

    `inputs`: their address, as pairs; where the processor does not multiply these, the even ones' and the odd ones'.
    """
    chains = max(1, 4 // len(inputs))  # a product waits for the one before it
    sums = [[constant(FLOATS, 0.0) for _ in range(chains)] for _ in inputs]
    for number, pairs in enumerate(_pairs(code, place, plane)):
        at = number // 4 % chains
        for row, chain in zip(inputs, sums, strict=True):
            if code.dots:
                pair = code.splat(code.load(code.at(row[0], number, I32), I32), PAIRS)
                chain[at] = code.dot(chain[at], pairs, pair)
            else:
                even, odd = (code.splat(code.load(code.at(half, number, F32), F32)) for half in row)
                chain[at] = code.fma(code.odd(pairs), odd, code.fma(code.even(pairs), even, chain[at]))
    return [_added(code, chain) for chain in sums]


def _added(code: Code, values: list[Value]) -> Value:
    while len(values) > 1:
        values = [code.b.fadd(one, other) for one, other in zip(values[::2], values[1::2], strict=True)]
    return values[0]

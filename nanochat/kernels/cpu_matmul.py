"""Products of a few rows with a matrix, and norms, in machine code.

The matrix lies as it is saved, [out, in] in bfloat16, or as `cpu_quantized` has it, and each of its numbers is read once
however many rows there are. Sums are float32. 16 rows of the matrix are a unit; a tile is 16 sums, of 8 matrix rows and 2
rows or of 4 and 4.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir

from nanochat.kernels.cpu_code import (
    F32,
    FLOATS,
    HALVES,
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
from nanochat.kernels.cpu_quantized import GROUP, build_prepare, build_quantized_unit, unit_bytes

MOST_ROWS = 16
MOST_QUANTIZED_ROWS = 128  # of a product with a quantized matrix

# A product's arguments, by place. x: rows of bfloat16, ROW elements apart. A unit's 16 rows of the matrix give 16
# columns of the result; `GATED` takes the gate's from there and the up projection's UP rows further on. A quantized matrix has
# one or two PLANES, another one none, and for it x is PREPARED first (see there).
(
    X, X_ROW, ROWS, IN, WEIGHT, BIAS, OUT, OUT_ROW, MODE, UP, UNITS, UNITS_EACH, NORM, EPS, NORMED, PLANES, PREPARED,
) = range(17)  # fmt: skip
SIZE = 17

PLAIN, SILU, GELU, ADDED = range(4)

_BYTES = 2


def build_matmul(module: Any, share: Value, dots: bool) -> Value:
    """`multiply(team, args)` and `normalize(team, args)`; returns `norm`."""
    norm = _norm(module)
    units_of = [_unit(module, dots), *(build_quantized_unit(module, dots, planes) for planes in (1, 2))]
    job = _job(module, units_of)
    prepare = build_prepare(module, dots)
    code = Code(module, "multiply", [POINTER, POINTER])
    b, (team, args) = code.b, code.function.args
    with b.if_then(b.icmp_signed("!=", code.argument(args, PLANES), int64(0))):
        rows_of_x = (code.argument(args, place) for place in (X_ROW, ROWS, IN))
        b.call(prepare, [code.pointer(args, X), *rows_of_x, code.pointer(args, PREPARED)])
    units, each = code.argument(args, UNITS), code.argument(args, UNITS_EACH)
    b.call(share, [team, job, args, b.sdiv(b.add(units, b.sub(each, int64(1))), each)])
    with b.if_then(b.icmp_signed("!=", code.argument(args, NORMED), int64(0))):
        out, width = code.pointer(args, OUT), code.product(units, int64(LANES))
        weight, eps = code.pointer(args, NORM), code.real(args, EPS)
        with code.loop(int64(0), code.argument(args, ROWS)) as row:
            source = code.at(out, code.product(row, code.argument(args, OUT_ROW)))
            to = code.at(code.pointer(args, NORMED), code.product(row, width))
            b.call(norm, [source, width, weight, eps, to])
    b.ret_void()
    _normalize(module, norm)
    return norm


def _normalize(module: Any, norm: Value) -> None:
    """The norm of rows alone: X, X_ROW, ROWS, IN (their width), NORM, EPS, NORMED."""
    code = Code(module, "normalize", [POINTER, POINTER])
    b, (_, args) = code.b, code.function.args
    width = code.argument(args, IN)
    with code.loop(int64(0), code.argument(args, ROWS)) as row:
        source = code.at(code.pointer(args, X), code.product(row, code.argument(args, X_ROW)))
        to = code.at(code.pointer(args, NORMED), code.product(row, width))
        b.call(norm, [source, width, code.pointer(args, NORM), code.real(args, EPS), to])
    b.ret_void()


def _norm(module: Any) -> Value:
    """`norm(x, width, weight, eps, out)`: one row, rounded once."""
    code = Code(module, "norm", [POINTER, I64, POINTER, F32, POINTER])
    b, (x, width, weight, eps, out) = code.b, code.function.args
    squares = code.cell(FLOATS, constant(FLOATS, 0.0))
    with code.loop(int64(0), width, LANES) as i:
        v = code.wide(code.load(code.at(x, i), HALVES))
        squares.set(code.fma(v, v, squares.get()))
    mean = b.fdiv(code.total(squares.get()), b.sitofp(width, F32))
    inverse = b.fdiv(real(1.0), code.intrinsic("llvm.sqrt.f32", F32, b.fadd(mean, eps)))
    factor = code.splat(inverse)
    with code.loop(int64(0), width, LANES) as i:
        v = code.wide(code.load(code.at(x, i), HALVES))
        w = code.wide(code.load(code.at(weight, i), HALVES))
        code.store(code.narrow(b.fmul(b.fmul(v, factor), w)), code.at(out, i))
    b.ret_void()
    return code.function


def tile(code: Code, matrix: list[Value], rows: list[Value], width: Value) -> Value:
    """16 sums: every matrix row (an address) with every row, the rows' sums one after the other."""
    sums = [code.cell(FLOATS, constant(FLOATS, 0.0)) for _ in range(len(matrix) * len(rows))]
    with code.loop(int64(0), width, 2 * LANES) as i:
        weights = [code.load(code.at(address, i), PAIRS) for address in matrix]
        for place, address in enumerate(rows):
            x = code.load(code.at(address, i), PAIRS)
            for w, total in zip(weights, sums[place * len(matrix) :], strict=False):
                total.set(code.dot(total.get(), w, x))
    return code.sums([total.get() for total in sums])


def _line_by_line(code: Code, weight: Value, row: Value, width: Value) -> Value:
    """A unit with one row: 16 sums. In the order of memory, which is read 20 % faster than 16 lines side by side."""
    parts = code.room(FLOATS, LANES)
    step = 2 * LANES
    with code.loop(int64(0), int64(LANES)) as number:
        line = code.at(weight, code.product(number, width))
        totals = [
            code.cell(FLOATS, constant(FLOATS, 0.0)) for _ in range(2)
        ]  # a product waits for the one before
        even = code.b.and_(width, int64(-2 * step))
        with code.loop(int64(0), even, 2 * step) as i:
            for total, place in zip(totals, (i, code.b.add(i, int64(step))), strict=True):
                w, x = (code.load(code.at(address, place), PAIRS) for address in (line, row))
                total.set(code.dot(total.get(), w, x))
        with code.loop(even, width, step) as i:
            w, x = (code.load(code.at(address, i), PAIRS) for address in (line, row))
            totals[0].set(code.dot(totals[0].get(), w, x))
        code.store(code.b.fadd(totals[0].get(), totals[1].get()), code.at(parts, number, FLOATS))
    return code.sums([code.load(code.at(parts, number, FLOATS), FLOATS) for number in range(LANES)])


def _unit(module: Any, dots: bool) -> Value:
    """`unit(x, x_row, rows, width, weight, sums)`: a unit with all rows, to float32 [rows, 16]."""
    code = Code(module, "unit", [POINTER, I64, I64, I64, POINTER, POINTER], dots=dots)
    b, (x, x_row, rows, width, weight, sums) = code.b, code.function.args

    def tiles(first: Value, count: int) -> None:
        """All tiles of `count` rows from row `first` on."""
        height = LANES // count
        taken = [code.at(x, code.product(b.add(first, int64(r)), x_row)) for r in range(count)]
        with code.loop(int64(0), int64(LANES), height) as top:
            matrix = [code.at(weight, code.product(b.add(top, int64(r)), width)) for r in range(height)]
            code_tile = tile(code, matrix, taken, width)
            for r in range(count):
                lanes = [r * height + lane for lane in range(height)]
                part = _lanes(code, code_tile, lanes)
                place = b.add(code.product(b.add(first, int64(r)), int64(LANES)), top)
                code.store(part, code.at(sums, place, F32))

    fours = b.and_(rows, int64(-4))
    with code.loop(int64(0), fours, 4) as first:
        tiles(first, 4)
    with b.if_then(b.icmp_signed("!=", b.and_(rows, int64(2)), int64(0))):
        tiles(fours, 2)
    with b.if_then(b.icmp_signed("!=", b.and_(rows, int64(1)), int64(0))):
        last = b.sub(rows, int64(1))
        found = _line_by_line(code, weight, code.at(x, code.product(last, x_row)), width)
        code.store(found, code.at(sums, code.product(last, int64(LANES)), F32))
    b.ret_void()
    return code.function


def _lanes(code: Code, vector: Value, lanes: list[int]) -> Value:
    if len(lanes) == LANES:
        return vector
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return code.b.shuffle_vector(vector, vector, mask)


def _job(module: Any, units_of: list[Value]) -> Value:
    """The units of one ticket: sums, and what becomes of them. `units_of` compute one, by the matrix's number of planes."""
    code = Code(module, "product", [POINTER, I64])
    b, (args, index) = code.b, code.function.args
    rows, width, mode = (code.argument(args, place) for place in (ROWS, IN, MODE))
    each, out_row, up = (code.argument(args, place) for place in (UNITS_EACH, OUT_ROW, UP))
    x, x_row, bias = code.pointer(args, X), code.argument(args, X_ROW), code.argument(args, BIAS)
    weight, out = code.pointer(args, WEIGHT), code.pointer(args, OUT)
    planes, prepared = code.argument(args, PLANES), code.pointer(args, PREPARED)
    sums, ups = (code.room(F32, LANES * MOST_QUANTIZED_ROWS) for _ in range(2))

    def unit(column: Value, to: Value) -> None:
        """The sums of all rows with 16 rows of the matrix, from row `column` on."""
        for count, function in enumerate(units_of):
            with b.if_then(b.icmp_signed("==", planes, int64(count))):
                if count:
                    taken = b.mul(
                        b.sdiv(column, int64(LANES)),
                        b.mul(b.sdiv(width, int64(GROUP)), int64(unit_bytes(GROUP, count))),
                    )
                    place = b.gep(weight, [taken], source_etype=ir.IntType(8))
                    b.call(function, [x, x_row, rows, width, place, prepared, to])
                else:
                    place = code.at(weight, code.product(column, width))
                    b.call(function, [x, x_row, rows, width, place, to])

    first = code.product(index, each)
    gated = b.and_(b.icmp_signed(">=", mode, int64(SILU)), b.icmp_signed("<=", mode, int64(GELU)))
    with code.loop(first, code.least(b.add(first, each), code.argument(args, UNITS))) as number:
        column = code.product(number, int64(LANES))
        unit(column, sums)
        with b.if_then(gated):
            unit(b.add(column, up), ups)
        with code.loop(int64(0), rows) as row:
            value = code.cell(FLOATS, _summed(code, sums, row, bias, column))
            to = code.at(out, b.add(code.product(row, out_row), column))
            with b.if_then(gated):
                other = _summed(code, ups, row, bias, b.add(column, up))
                value.set(b.fmul(_activated(code, value.get(), mode), other))
            with b.if_then(b.icmp_signed("==", mode, int64(ADDED))):
                # What is added is rounded first, as it is where the two are operations of their own.
                delta = code.wide(code.narrow(value.get()))
                value.set(b.fadd(delta, code.wide(code.load(to, HALVES))))
            code.store(code.narrow(value.get()), to)
    b.ret_void()
    return code.function


def _summed(code: Code, sums: Value, row: Value, bias: Value, column: Value) -> Value:
    """A row's 16 sums with their biases."""
    b = code.b
    value = code.cell(FLOATS, code.load(code.at(sums, code.product(row, int64(LANES)), F32), FLOATS))
    with b.if_then(b.icmp_signed("!=", bias, int64(0))):
        address = code.at(b.inttoptr(bias, POINTER), column)
        value.set(b.fadd(value.get(), code.wide(code.load(address, HALVES))))
    return value.get()


def _activated(code: Code, x: Value, mode: Value) -> Value:
    """silu, or gelu by tanh: both are x times a logistic function, since (1 + tanh(u)) / 2 = logistic(2 u)."""
    b = code.b
    cube = b.fmul(b.fmul(x, x), b.fmul(x, constant(FLOATS, 0.044715)))
    gelu = b.fmul(b.fadd(x, cube), constant(FLOATS, 2 * 0.7978845608028654))
    inner = b.select(b.icmp_signed("==", mode, int64(GELU)), gelu, x)
    grown = code.exp(b.fsub(constant(FLOATS, -0.0), inner))
    return b.fdiv(x, b.fadd(constant(FLOATS, 1.0), grown))

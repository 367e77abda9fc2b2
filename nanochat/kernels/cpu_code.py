"""The vocabulary that the CPU's machine code is written in: loops, cells, and vectors of bfloat16 pairs.

LLVM compiles it (llvmlite brings LLVM along, so nobody needs a compiler). Numbers travel as 16 lanes of 32 bits: as
16 float32, or as 16 pairs of bfloat16, the even element in a lane's low half. AVX-512 holds that in one register; with
AVX2 LLVM splits it in two.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

LANES = 16

I16, I32, I64 = (ir.IntType(bits) for bits in (16, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()
VOID = ir.VoidType()
FLOATS = ir.VectorType(F32, LANES)
PAIRS = ir.VectorType(I32, LANES)
HALVES = ir.VectorType(I16, LANES)

_FAST = ("nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc")
_LOG2E = 1.4426950408889634
# 2^x on [-0.5, 0.5] to 2e-7, Taylor's terms of exp(x ln 2).
_EXP2 = (
    1.0,
    0.6931471805599453,
    0.24022650695910072,
    0.05550410866482158,
    0.009618129107628477,
    0.0013333558146428443,
    0.00015403530393381608,
)

Value = Any  # llvmlite ships no types


class _BFloat(ir.types.Type):
    """LLVM's `bfloat`, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class Cell:
    """A variable."""

    def __init__(self, code: Code, kind: Value, first: Value) -> None:
        self._b, self._kind = code.b, kind
        with code.b.goto_entry_block():
            self._at = code.b.alloca(kind)
        self.set(first)

    def get(self) -> Value:
        """Its value now."""
        return self._b.load(self._at, typ=self._kind)

    def set(self, value: Value) -> None:
        """Change it."""
        self._b.store(value, self._at)


class Code:
    """A function under construction.

    Args:
        dots: whether the processor multiplies pairs of bfloat16 itself (AVX512-BF16).
    """

    def __init__(self, module: Value, name: str, parameters: Sequence[Value], *, dots: bool = False) -> None:
        self.module, self.dots = module, dots
        self.function = ir.Function(module, ir.FunctionType(VOID, parameters), name)
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        # What is allocated lives in a block of its own, before everything else.
        body = self.function.append_basic_block("body")
        self.b.branch(body)
        self.b.position_at_end(body)

    # Control ------------------------------------------------------------------------------------

    def cell(self, kind: Value, first: Value) -> Cell:
        """A variable with its first value."""
        return Cell(self, kind, first)

    def room(self, kind: Value, count: int) -> Value:
        """Memory for `count` values while the function runs, aligned to a cache line."""
        with self.b.goto_entry_block():
            at: Any = self.b.alloca(kind, count)
            at.align = 64
        at.type = POINTER  # llvmlite still thinks in pointers to something
        return at

    @contextmanager
    def loop(self, start: Value, stop: Value, step: int = 1) -> Generator[Value]:
        """`for i in range(start, stop, step)`, all of it int64."""
        b = self.b
        counter = self.cell(I64, start)
        head, body, after = (b.append_basic_block(name) for name in ("head", "loop", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = counter.get()
        b.cbranch(b.icmp_signed("<", i, stop), body, after)
        b.position_at_end(body)
        yield i
        counter.set(b.add(i, int64(step)))
        b.branch(head)
        b.position_at_end(after)

    def argument(self, args: Value, index: Value | int) -> Value:
        """Number `index` of a call's arguments, int64."""
        return self.b.load(self.at(args, index, I64), typ=I64)

    def pointer(self, args: Value, index: Value | int) -> Value:
        """The same as an address."""
        return self.b.inttoptr(self.argument(args, index), POINTER)

    def real(self, args: Value, index: int) -> Value:
        """The same as a float32, of which the argument holds the bits."""
        return self.b.bitcast(self.b.trunc(self.argument(args, index), I32), F32)

    def least(self, a: Value, b: Value) -> Value:
        """The smaller of two int64."""
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def most(self, a: Value, b: Value) -> Value:
        """The larger of two int64."""
        return self.b.select(self.b.icmp_signed(">", a, b), a, b)

    def product(self, *factors: Value) -> Value:
        """The product of int64 values."""
        whole = factors[0]
        for factor in factors[1:]:
            whole = self.b.mul(whole, factor)
        return whole

    # Memory -------------------------------------------------------------------------------------

    def at(self, base: Value, index: Value | int, kind: Value = I16) -> Value:
        """The address of element `index` of an array."""
        return self.b.gep(base, [int64(index) if isinstance(index, int) else index], source_etype=kind)

    def load(self, address: Value, kind: Value) -> Value:
        """A value that may lie at any address."""
        return self.b.load(address, typ=kind, align=2)

    def store(self, value: Value, address: Value) -> None:
        """Write a value to any address."""
        self.b.store(value, address, align=2)

    def prefetch(self, address: Value) -> None:
        """Ask for a cache line that will be read soon, into the second cache."""
        self.intrinsic("llvm.prefetch.p0", VOID, address, int32(0), int32(2), int32(1))

    # Vectors ------------------------------------------------------------------------------------

    def intrinsic(self, name: str, result: Value, *operands: Value, flags: Sequence[str] = ()) -> Value:
        """A call of one of LLVM's own functions."""
        known = self.module.globals.get(name)
        if known is None:
            known = ir.Function(self.module, ir.FunctionType(result, [o.type for o in operands]), name)
        return self.b.call(known, operands, fastmath=flags)

    def splat(self, value: Value, kind: Value = FLOATS) -> Value:
        """A scalar in every lane."""
        empty = ir.Constant(kind, ir.Undefined)
        one = self.b.insert_element(empty, value, int32(0))
        return self.b.shuffle_vector(one, empty, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))

    def even(self, pairs: Value) -> Value:
        """The even elements of pairs, float32."""
        return self.b.bitcast(self.b.shl(pairs, constant(PAIRS, 16)), FLOATS)

    def odd(self, pairs: Value) -> Value:
        """The odd elements of pairs, float32."""
        return self.b.bitcast(self.b.and_(pairs, constant(PAIRS, -65536)), FLOATS)

    def wide(self, halves: Value) -> Value:
        """16 bfloat16 to float32."""
        return self.b.bitcast(self.b.shl(self.b.zext(halves, PAIRS), constant(PAIRS, 16)), FLOATS)

    def _rounded(self, values: Value) -> Value:
        """float32 to bfloat16 in each lane's high half, to nearest even; NaN stays NaN."""
        b = self.b
        bits = b.bitcast(values, PAIRS)
        lowest = b.and_(b.lshr(bits, constant(PAIRS, 16)), constant(PAIRS, 1))
        rounded = b.add(bits, b.add(lowest, constant(PAIRS, 0x7FFF)))
        return b.select(b.fcmp_unordered("uno", values, values), constant(PAIRS, 0x7FC00000), rounded)

    def narrow(self, values: Value) -> Value:
        """16 float32 to bfloat16."""
        return self.b.trunc(self.b.lshr(self._rounded(values), constant(PAIRS, 16)), HALVES)

    def joined(self, even: Value, odd: Value) -> Value:
        """Even and odd elements, float32, to pairs."""
        low = self.b.lshr(self._rounded(even), constant(PAIRS, 16))
        return self.b.or_(low, self.b.and_(self._rounded(odd), constant(PAIRS, -65536)))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self.intrinsic("llvm.fma.v16f32", FLOATS, a, b, c)

    def dot(self, total: Value, a: Value, b: Value) -> Value:
        """`total` plus the products of pairs."""
        if self.dots:
            both = ir.VectorType(_BFloat(), 2 * LANES)
            pairs = [self.b.bitcast(pair, both) for pair in (a, b)]
            return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, *pairs)
        return self.fma(self.odd(a), self.odd(b), self.fma(self.even(a), self.even(b), total))

    def sums(self, vectors: Sequence[Value]) -> Value:
        """16 vectors to one: the sum of each one's lanes. A tree of 15 additions of shuffled halves."""
        width = LANES
        while len(vectors) > 1:
            width //= 2
            vectors = [
                self._halves_added(a, b, width) for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    def _halves_added(self, a: Value, b: Value, width: int) -> Value:
        """Groups of 2 * `width` lanes, first a's and then b's, to groups of `width`."""
        first = [group + lane for group in range(0, 2 * LANES, 2 * width) for lane in range(width)]
        kind = ir.VectorType(I32, LANES)
        left = self.b.shuffle_vector(a, b, ir.Constant(kind, first))
        right = self.b.shuffle_vector(a, b, ir.Constant(kind, [lane + width for lane in first]))
        return self.b.fadd(left, right)

    def total(self, vector: Value) -> Value:
        """The sum of the lanes."""
        return self.intrinsic("llvm.vector.reduce.fadd.v16f32", F32, real(0.0), vector, flags=("reassoc",))

    def highest(self, vector: Value) -> Value:
        """The largest of the lanes."""
        return self.intrinsic("llvm.vector.reduce.fmax.v16f32", F32, vector)

    def exp(self, x: Value) -> Value:
        """e^x; 0 below -87, where float32 has no normal numbers, and e^88 above 88. NaN stays NaN."""
        b = self.b
        low, high = constant(FLOATS, -87.0), constant(FLOATS, 88.0)
        below = b.fcmp_ordered("<", x, low)
        x = b.select(below, low, b.select(b.fcmp_ordered(">", x, high), high, x))
        x = b.fmul(x, constant(FLOATS, _LOG2E))
        whole = self.intrinsic("llvm.rint.v16f32", FLOATS, x)
        rest = b.fsub(x, whole)
        power = constant(FLOATS, _EXP2[-1])
        for factor in reversed(_EXP2[:-1]):
            power = self.fma(power, rest, constant(FLOATS, factor))
        # A NaN has no whole part to convert; the polynomial carries it on, whatever is added to its exponent.
        safe = b.select(b.fcmp_unordered("uno", whole, whole), constant(FLOATS, 0.0), whole)
        shift = b.shl(b.fptosi(safe, PAIRS), constant(PAIRS, 23))
        grown = b.bitcast(b.add(b.bitcast(power, PAIRS), shift), FLOATS)
        return b.select(below, constant(FLOATS, 0.0), grown)


def int32(value: int) -> Value:
    """A constant."""
    return ir.Constant(I32, value)


def int64(value: int) -> Value:
    """A constant."""
    return ir.Constant(I64, value)


def real(value: float) -> Value:
    """A constant float32: the nearest to `value`."""
    return ir.Constant(F32, struct.unpack("f", struct.pack("f", value))[0])


def constant(kind: Value, value: float) -> Value:
    """A constant in every lane."""
    one = real(value) if kind == FLOATS else ir.Constant(kind.element, value)
    return ir.Constant(kind, [one] * LANES)

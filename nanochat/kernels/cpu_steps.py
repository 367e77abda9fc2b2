"""Many calls in one: all products and attentions of a step, without a return to Python between two of them.

A call from Python costs some 10 us, most of them for its arguments; and it gives the interpreter's lock back, which the
thread of a user interface may then hold for milliseconds. A step of 30 layers makes 150 of them.
"""

from __future__ import annotations

from typing import Any

from nanochat.kernels.cpu_code import I64, POINTER, Code, int64

# What is called, by number.
MULTIPLY, ATTEND, NORMALIZE = range(3)
_CALLED = ("multiply", "attend", "normalize")
PLACES = 2  # of a call, int64 each: its number, the address of its arguments


def build_steps(module: Any) -> None:
    """`perform(team, calls, count)`: so many calls, one after the other."""
    code = Code(module, "perform", [POINTER, POINTER, I64])
    b, (team, calls, count) = code.b, code.function.args
    with code.loop(int64(0), b.mul(count, int64(PLACES)), PLACES) as at:
        number, args = code.argument(calls, at), code.pointer(calls, b.add(at, int64(1)))
        for called, name in enumerate(_CALLED):
            with b.if_then(b.icmp_signed("==", number, int64(called))):
                b.call(module.globals[name], [team, args])
    b.ret_void()

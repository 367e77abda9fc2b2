"""Threads that share out one job at a time, in machine code. Fast to begin, and unharmed by a busy neighbour.

A job is `function(args, index)` for every index below a count. The caller sets the tickets, everybody takes one after
the other, and the caller goes on when as many are done as there were. Nobody waits for a thread that has not come:
one that the system put aside costs what it holds of the work, not the step. OpenMP divides in advance, and beside one
busy process it lost most of its speed.

A worker that finds no ticket spins for some 30 us, which is longer than Python takes from one job to the next, and
then sleeps on a futex.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir

from nanochat.kernels.cpu_code import I32, I64, POINTER, VOID, Code, Value, int32, int64

# Places in a team's memory, int64 each, on cache lines of their own.
TICKETS, DONE, EPOCH, ASLEEP, CLOSED, FUNCTION, ARGS = 0, 8, 16, 17, 18, 24, 25
SIZE = 32

JOB = ir.FunctionType(VOID, [POINTER, I64])

_SPINS = 600  # of `pause`, some 50 ns each
_PATIENCE = 2000  # the same, before the caller lets others run while it waits for the last tickets
_FUTEX = 202  # the system call on x86-64
_WAIT, _WAKE = 128, 129  # for the threads of one process
_EVERYBODY = 2**31 - 1


def build_team(module: Any) -> Value:
    """`worker(team)` and `close(team)`, and the function that this returns: `share(team, job, args, count)`."""
    take = _take(module)
    _worker(module, take)
    _close(module)
    return _share(module, take)


def _place(code: Code, team: Value, index: int) -> Value:
    return code.at(team, index, I64)


def _read(code: Code, team: Value, index: int) -> Value:
    return code.b.load_atomic(_place(code, team, index), "seq_cst", 8, typ=I64)


def _write(code: Code, team: Value, index: int, value: Value) -> None:
    code.b.atomic_rmw("xchg", _place(code, team, index), value, "seq_cst")


def _futex(code: Code, team: Value, operation: int, value: Value) -> None:
    """Wait while the epoch is `value`, or wake so many who do."""
    name = "syscall"
    call = code.module.globals.get(name) or ir.Function(
        code.module, ir.FunctionType(I64, [I64], var_arg=True), name
    )
    nothing = ir.Constant(POINTER, None)
    code.b.call(
        call, [int64(_FUTEX), _place(code, team, EPOCH), int32(operation), value, nothing, nothing, int32(0)]
    )


def _take(module: Any) -> Value:
    """`take(team)`: do what tickets are left."""
    code = Code(module, "take", [POINTER])
    b, (team,) = code.b, code.function.args
    again, mine, end = (b.append_basic_block(name) for name in ("again", "mine", "end"))
    b.branch(again)
    b.position_at_end(again)
    ticket = b.atomic_rmw("sub", _place(code, team, TICKETS), int64(1), "seq_cst")
    b.cbranch(b.icmp_signed(">", ticket, int64(0)), mine, end)
    b.position_at_end(mine)
    # Until this ticket is done the caller waits, so what it wrote about the job stays.
    job = b.load(_place(code, team, FUNCTION), typ=POINTER)
    args = b.load(_place(code, team, ARGS), typ=POINTER)
    ir_call(code, job, args, b.sub(ticket, int64(1)))
    b.atomic_rmw("add", _place(code, team, DONE), int64(1), "seq_cst")
    b.branch(again)
    b.position_at_end(end)
    b.ret_void()
    return code.function


def ir_call(code: Code, job: Value, args: Value, index: Value) -> None:
    """Call a job through its address."""
    code.b.call(_Typed(job), [args, index])


class _Typed:
    """An address as something that llvmlite calls."""

    def __init__(self, address: Value) -> None:
        self._address = address
        self.function_type = JOB
        self.type = address.type
        self.attributes = ()

    def get_reference(self) -> str:
        return self._address.get_reference()


def _worker(module: Any, take: Value) -> None:
    code = Code(module, "worker", [POINTER])
    b, (team,) = code.b, code.function.args
    look, work, idle, sleep, wait, end = (
        b.append_basic_block(name) for name in ("look", "work", "idle", "sleep", "wait", "end")
    )
    spins = code.cell(I64, int64(0))
    b.branch(look)
    b.position_at_end(look)
    epoch = b.trunc(_read(code, team, EPOCH), I32)
    b.cbranch(b.icmp_signed(">", _read(code, team, TICKETS), int64(0)), work, idle)
    b.position_at_end(work)
    b.call(take, [team])
    spins.set(int64(0))
    b.branch(look)
    b.position_at_end(idle)
    code.intrinsic("llvm.x86.sse2.pause", VOID)
    spins.set(b.add(spins.get(), int64(1)))
    b.cbranch(b.icmp_signed("<", spins.get(), int64(_SPINS)), look, sleep)
    b.position_at_end(sleep)
    b.cbranch(b.icmp_signed("!=", _read(code, team, CLOSED), int64(0)), end, wait)
    b.position_at_end(wait)
    # The caller raises the epoch before it looks for sleepers: either it sees this one, or the wait returns at once.
    b.atomic_rmw("add", _place(code, team, ASLEEP), int64(1), "seq_cst")
    _futex(code, team, _WAIT, epoch)
    b.atomic_rmw("sub", _place(code, team, ASLEEP), int64(1), "seq_cst")
    spins.set(int64(0))
    b.branch(look)
    b.position_at_end(end)
    b.ret_void()


def _wake(code: Code, team: Value) -> None:
    b = code.b
    b.atomic_rmw("add", _place(code, team, EPOCH), int64(1), "seq_cst")
    with b.if_then(b.icmp_signed(">", _read(code, team, ASLEEP), int64(0))):
        _futex(code, team, _WAKE, int32(_EVERYBODY))


def _close(module: Any) -> None:
    code = Code(module, "close", [POINTER])
    (team,) = code.function.args
    _write(code, team, CLOSED, int64(1))
    _wake(code, team)
    code.b.ret_void()


def _share(module: Any, take: Value) -> Value:
    code = Code(module, "share", [POINTER, POINTER, POINTER, I64])
    b, (team, job, args, count) = code.b, code.function.args
    with b.if_then(b.icmp_signed("<=", count, int64(1))):
        with b.if_then(b.icmp_signed("==", count, int64(1))):
            ir_call(code, job, args, int64(0))
        b.ret_void()
    b.store(job, _place(code, team, FUNCTION))
    b.store(args, _place(code, team, ARGS))
    _write(code, team, DONE, int64(0))
    _write(code, team, TICKETS, count)
    _wake(code, team)
    b.call(take, [team])
    waited = code.cell(I64, int64(0))
    look, wait, end = (b.append_basic_block(name) for name in ("look", "wait", "end"))
    b.branch(look)
    b.position_at_end(look)
    b.cbranch(b.icmp_signed("==", _read(code, team, DONE), count), end, wait)
    b.position_at_end(wait)
    code.intrinsic("llvm.x86.sse2.pause", VOID)
    waited.set(b.add(waited.get(), int64(1)))
    with b.if_then(b.icmp_signed(">", waited.get(), int64(_PATIENCE))):
        code.intrinsic("sched_yield", I32)
    b.branch(look)
    b.position_at_end(end)
    b.ret_void()
    return code.function

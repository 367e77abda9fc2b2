"""A run of the benchmark in a process of its own, as the screen starts it. Run as a module, it is that process.

The screen draws in its own process meanwhile, so neither slows the other; a run that takes too much memory ends its
own process only; and a run that does not stop in time can be ended. The plan goes in as the first line, events come out
as one line of JSON each. When the input ends, the run is stopped: also when whoever started it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from nanochat.bench import Hooks, Plan, Progress, Run, Sizes, run_benchmark
from nanochat.environment import own_module
from nanochat.errors import NanochatError

STOP_SECONDS = 1.5
"""How long a run may take to stop between two steps before its process is ended."""

_LONGEST_LINE = 2**28
_STDERR_KEPT = 4000
_EXIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Doing:
    """What is being done, in words: measuring the device, loading."""

    what: str


@dataclass(frozen=True, slots=True)
class Grown:
    """The run has another row."""

    run: Run


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over, whole or partial."""

    run: Run


Event = Doing | Progress | Grown | Ended


class BenchProcess:
    """One run. Belongs to one event loop.

    Args:
        command: starts the process; this module's own, unless a test has another.
    """

    def __init__(self, plan: Plan, command: Sequence[str] | None = None) -> None:
        self._plan = plan
        own, self._environment = own_module("nanochat.benchmarks.child")
        self._command = command or own
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._complaints = b""

    async def events(self) -> AsyncIterator[Event]:
        """Everything that happens, to the end. Of a stopped run the last event may be a `Grown` one.

        Raises:
            NanochatError: the run was refused, or its process ended before its time.
        """
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            limit=_LONGEST_LINE,
            start_new_session=True,
            env=self._environment,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        complaining = asyncio.create_task(self._take_complaints(process.stderr))
        ended = False
        try:
            process.stdin.write(json.dumps(plan_as_dict(self._plan)).encode() + b"\n")
            if self._stopping:
                process.stdin.close()
            reader = _Reader()
            async for line in process.stdout:
                event = reader.read(line)
                ended = ended or isinstance(event, Ended)
                yield event
            code = await process.wait()
            await complaining
            if not ended and not self._stopping:
                raise NanochatError(f"the benchmark's process ended {_how(code)}{self._last_words()}")
        finally:
            self._kill()
            complaining.cancel()
            process.stdin.close()
            await process.wait()

    async def stop(self) -> None:
        """End the run: between two steps if it can, and by ending its process if that takes too long."""
        self._stopping = True
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                self._process.kill()

    async def _take_complaints(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(_STDERR_KEPT):
            self._complaints = (self._complaints + piece)[-_STDERR_KEPT:]

    def _last_words(self) -> str:
        lines = self._complaints.decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""


def _how(code: int) -> str:
    if code == -9:
        return "by the system (signal 9), as it does when memory runs out"
    return f"by signal {-code}" if code < 0 else f"with code {code}"


class _Reader:
    """Lines -> events. The run's header comes once, then each row by itself."""

    def __init__(self) -> None:
        self._run: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []

    def read(self, line: bytes) -> Event:
        data = json.loads(line)
        kind, value = data["event"], data["value"]
        if kind == "doing":
            return Doing(value)
        if kind == "progress":
            return Progress(**value)
        if kind == "refused":
            raise NanochatError(value)
        self._rows += value.pop("rows")
        self._run = value
        run = Run.from_dict(self._run | {"rows": self._rows})
        return Grown(run) if kind == "row" else Ended(run)


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """A plan as JSON takes it."""
    return asdict(plan) | {"model": str(plan.model), "gguf": str(plan.gguf) if plan.gguf else None}


def plan_from_dict(data: dict[str, Any]) -> Plan:
    """The reverse of `plan_as_dict`."""
    values = dict(data)
    sizes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data["sizes"].items()
    }
    values["sizes"] = Sizes(**sizes)
    values["model"], values["gguf"] = Path(data["model"]), Path(data["gguf"]) if data["gguf"] else None
    values["names"], values["against"] = tuple(data["names"]), tuple(data["against"])
    return Plan(**values)


# The process itself ------------------------------------------------------------------------------


def main() -> None:
    """Run the plan that stdin says; tell on stdout; keep the result."""
    from nanochat.benchmarks.storage import Results
    from nanochat.environment import end_at_once, set_variables

    end_at_once()
    set_variables()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the events
    plan = plan_from_dict(json.loads(_first_line()))
    stopped = threading.Event()
    threading.Thread(target=_await_end, args=(stopped,), daemon=True).start()
    results, telling = Results.find(), _Telling(out)

    def grown(run: Run, _row: object) -> None:
        results.keep(run)
        telling.send_run("row", run)

    try:
        hooks = Hooks(
            lambda progress: telling.send("progress", asdict(progress)),
            grown,
            lambda what: telling.send("doing", what),
            stopped.is_set,
        )
        run = run_benchmark(plan, hooks)
    except NanochatError as error:
        telling.send("refused", str(error))
        return
    lost = results.keep(run) if run.rows else None
    telling.send_run("ended", run)
    if lost is not None:
        telling.send("refused", lost)


class _Telling:
    """Events on the way to the process that asked; of a run's rows each goes once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told = 0

    def send(self, event: str, value: Any) -> None:
        """One event, on a line of its own."""
        self._out.write(json.dumps({"event": event, "value": value}, allow_nan=False) + "\n")
        self._out.flush()

    def send_run(self, event: str, run: Run) -> None:
        """A run, with the rows that have come since the last time."""
        data = run.as_dict()
        data["rows"] = data["rows"][self._told :]
        self._told = len(run.rows)
        self.send(event, data)


def _first_line() -> bytes:
    """Read by the byte, so that nothing after it is taken, and no lock is held when the process ends."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(2)
        line += byte
    return line


def _await_end(stopped: threading.Event, leave: Callable[[int], object] = os._exit) -> None:
    """When the input ends, stop; some seconds later, in any case."""
    while os.read(0, 1024):
        pass
    stopped.set()
    threading.Event().wait(_EXIT_SECONDS)
    leave(1)


if __name__ == "__main__":
    main()

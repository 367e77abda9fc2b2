"""The worker processes of a group: started, watched, ended.

A rank is lost when its process ends, or when the watch finds that it hangs. Then all workers are killed, so that nobody
waits for the lost one, and the reason is kept. If it is rank 0 that hangs, its work is called off.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import nanochat
from nanochat import errors
from nanochat.engine.parallel.channel import SharedMemory, allocate
from nanochat.engine.parallel.line import Line
from nanochat.engine.parallel.own_work import OwnWork
from nanochat.engine.parallel.standstill import POLL
from nanochat.engine.parallel.watch import Bounds, Stage, Standing, Watch
from nanochat.errors import EngineDead, NanochatError

FOLDER = "nanochat-ranks-"  # how the names of the folders where ranks meet begin
_STUCK = 1.0  # seconds in which a thread that is called off leaves its work, where it can
_GRACE = 3.0  # seconds to end by itself
_LOAD_AGAIN = "load the model again"


class Workers:
    """Ranks 1 to ranks - 1. Owns their processes, the memory that is shared with them, and the folder where they meet.

    Attributes:
        folder: private, and gone with the group.
        failure: what ended the group; None while it works.
        own: rank 0's work.
    """

    def __init__(self, ranks: int, environment: dict[str, str], bounds: Bounds | None = None) -> None:
        self.ranks = ranks
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER))
        self.failure: NanochatError | None = None
        self.on_failure: Callable[[], None] | None = None
        self.on_stuck: Callable[[NanochatError], None] | None = None  # rank 0 cannot be called off
        self.loading = True
        self.busy = False  # whether rank 0 is in a step, and so expected in collectives
        self._changed = threading.Condition()
        self._closing = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: list[Line] = []
        self._words: list[list[dict[str, Any]]] = [[] for _ in range(ranks - 1)]
        self._bounds = bounds or Bounds()
        self._standings = [Standing(os.getpid(), Stage.LOADING)]  # rank 0's first
        self._logs: list[IO[bytes]] = []
        memory = allocate(ranks)
        self._lifeline, kept = -1, -1
        try:
            self.memory = SharedMemory(memory, ranks)
            self.own = OwnWork(self.memory.pulse(0))
            kept, self._lifeline = os.pipe()
            for rank in range(1, ranks):
                self._start(rank, memory, kept, environment)
            self._standings += [Standing(process.pid) for process in self._processes]
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)
            if kept >= 0:
                os.close(kept)
        self._watch = threading.Thread(target=self._run, name="nanochat-ranks", daemon=True)
        self._watch.start()

    def _start(self, rank: int, memory: int, lifeline: int, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        package = str(Path(nanochat.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        numbers = (rank, self.ranks, memory, theirs.fileno(), lifeline, os.getpid())
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the group
        self._logs.append(log)
        with theirs:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "nanochat.engine.parallel.worker", *map(str, numbers),
                     str(self.folder)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    pass_fds=(memory, theirs.fileno(), lifeline),
                    env={**environment, "PYTHONPATH": path},
                    process_group=0,  # Ctrl-C is for rank 0, which ends the others in order
                )
            )  # fmt: skip
        self._lines.append(Line(ours))

    @property
    def pids(self) -> list[int]:
        """The process ids of ranks 1 and on."""
        return [process.pid for process in self._processes]

    @property
    def doorbells(self) -> list[socket.socket]:
        """Where each worker hears of a step."""
        return [line.socket for line in self._lines]

    def tell(self, rank: int, **message: Any) -> None:
        """Words to a worker, which has to answer. Raises what it died of."""
        try:
            self._lines[rank - 1].send(**message)
        except OSError as error:
            raise self.explain(error) from error

    def hear(self, word: str) -> list[dict[str, Any]]:
        """Wait until every worker has said `word`; what they said with it. Raises what a lost worker died of."""
        with self._changed, self.memory.pulse(0).news():
            self._changed.wait_for(lambda: self.failure is not None or all(self._words))
            self.check()
            heard = [words.pop(0) for words in self._words]
        assert all(message["word"] == word for message in heard), heard
        return heard

    def loaded(self) -> None:
        """All ranks are ready: from now on there are steps."""
        self.loading = False
        self._standings[0].stage = Stage.READY

    def check(self) -> None:
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure

    def fail(self, failure: NanochatError) -> NanochatError:
        """End the group; the first reason is the one that counts, and is returned."""
        with self._changed:
            if self.failure is None and not self._closing:
                self.failure = failure
            self._changed.notify_all()
        for process in self._processes:
            process.kill()
        if self.on_failure is not None:
            self.on_failure()
        return self.failure or failure

    def explain(self, error: BaseException) -> NanochatError:
        """Why a step of rank 0's failed: a lost worker, if there is one; else the error itself. Ends the group."""
        with self._changed:  # a lost connection is often felt before the process is seen to be gone
            self._changed.wait_for(lambda: self.failure is not None, timeout=0 if _ours(error) else _GRACE)
        what = f"rank 0 failed ({_first_line(error)})"
        if not isinstance(
            error, Exception
        ):  # Ctrl-C: the other ranks went on, and there is no way back to them
            what = "a step over several devices was interrupted"
        return self.fail(EngineDead(f"{what}: {_LOAD_AGAIN}"))

    def forget_folder(self) -> None:
        """Everybody has met: nothing of this engine is left in a file system."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def dismiss(self) -> None:
        """Tell every worker to end by itself."""
        with self._changed:
            self._closing = True
        for line in self._lines:
            with contextlib.suppress(OSError):  # its process may be gone
                line.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End every worker, by itself where it can, and remove every trace."""
        self.dismiss()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        until = time.monotonic() + _GRACE
        for process in self._processes:
            try:
                process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        watch = getattr(self, "_watch", None)
        if watch is not None and watch is not threading.current_thread():
            watch.join()
        for line in self._lines:
            line.socket.close()
        for log in self._logs:
            log.close()
        self.forget_folder()

    # The watch ----------------------------------------------------------------------------------

    def _run(self) -> None:
        watch = Watch(self.memory, self._standings, self.own, self._bounds)
        sockets = {line.socket: place for place, line in enumerate(self._lines)}
        while not self._closing and self.failure is None:
            for ready in select.select(list(sockets), [], [], POLL)[0]:
                self._listen(sockets[ready])
            lost = watch.look(self.busy or self.loading)
            if lost is not None:
                self._lost(*lost)

    def _listen(self, place: int) -> None:
        message = self._lines[place].receive()
        if self._closing or self.failure is not None:
            return
        if message is None:
            self._lost(place + 1, self._ending(place))
        elif message["word"] == "failed":
            self.fail(_as_error(place + 1, message, self.loading))
        else:
            standing = self._standings[place + 1]
            standing.stage = Stage(standing.stage + 1)
            with self._changed:
                self._words[place].append(message)
                self._changed.notify_all()

    def _lost(self, rank: int, how: str) -> None:
        process = self._standings[rank].pid
        self.fail(EngineDead(f"rank {rank} of {self.ranks} (process {process}) {how}: {_LOAD_AGAIN}"))
        if rank == 0:
            self.own.call_off()
            on_stuck = self.on_stuck
            if self.failure is not None and on_stuck is not None and not self.own.has_ended(_STUCK):
                on_stuck(self.failure)

    def _ending(self, place: int) -> str:
        """How a worker whose socket is closed has ended."""
        try:
            code = self._processes[place].wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "does not answer any more"
        return f"{_ending(code)}{self._last_words(place)}"

    def _last_words(self, place: int) -> str:
        log = self._logs[place]
        log.seek(0)
        lines = log.read()[-4000:].decode(errors="replace").strip().splitlines()
        return f" ({lines[-1][:200]})" if lines else ""


def _ours(error: BaseException) -> bool:
    """Whether an error is no consequence of a lost worker: what ran out here, what a person did."""
    return not isinstance(error, (RuntimeError, OSError)) or "memory" in str(error)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
    hint = ", perhaps because the machine ran out of memory" if code == -signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def _as_error(rank: int, message: dict[str, Any], loading: bool) -> NanochatError:
    """A worker's last words: while it loads the same error, from here; later the engine's end."""
    kind = getattr(errors, str(message["kind"]), None)
    text = f"rank {rank}: {message['text']}"
    if loading and isinstance(kind, type) and issubclass(kind, NanochatError):
        return kind(text)
    return EngineDead(f"{text}: {_LOAD_AGAIN}")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]

"""Ranks 1 and on as threads of this process: everything but the processes is the real thing, and starts at once."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import traceback

from nanochat.engine.parallel import worker
from nanochat.engine.parallel.channel import SharedMemory
from nanochat.engine.parallel.line import Line
from nanochat.engine.parallel.processes import Workers


class RankThread:
    """What `Workers` asks of a process."""

    pid = 0

    def __init__(self, run) -> None:
        self._killed = False
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def wait(self, timeout: float = 10.0) -> int:
        self._thread.join(0 if self._killed else timeout)
        if self._thread.is_alive() and not self._killed:
            raise subprocess.TimeoutExpired("a rank", timeout)
        return 0

    def kill(self) -> None:
        """Nobody ends a thread: it ends when rank 0's connections are gone."""
        self._killed = True


class ThreadWorkers(Workers):
    def _start(self, rank, memory, lifeline, environment) -> None:
        ours, theirs = socket.socketpair()
        shared = SharedMemory(os.dup(memory), self.ranks)

        def run() -> None:
            stop = threading.Event()
            threading.Thread(target=self._beat, args=(shared.pulse(rank), stop), daemon=True).start()
            try:
                worker.work(rank, self.ranks, shared, Line(theirs), self.folder)
            except Exception as error:  # a process would end with it, and its connections with the process
                traceback.clear_frames(error.__traceback__)
            finally:
                stop.set()
                theirs.close()

        self._processes.append(RankThread(run))
        self._lines.append(Line(ours))

    @staticmethod
    def _beat(pulse, stop) -> None:
        while not stop.wait(0.1):
            pulse.beat(1)

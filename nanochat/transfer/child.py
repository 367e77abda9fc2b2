"""A child process that answers with events, one a line, and that can be killed at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from nanochat.errors import DownloadError, NanochatError, Offline
from nanochat.transfer.events import Answer, Event, Failed, Note, from_line

MODULES = Path(__file__).resolve().parents[2]


class Child:
    """`python -m MODULE ARGUMENT` in a session of its own: Ctrl-C in the terminal does not reach it.

    `on_event` is called from a thread of this object's. After the last event comes `on_end` with the exit status
    (negative: the signal) and the end of what it wrote to its error stream.
    """

    def __init__(
        self,
        module: str,
        argument: str,
        on_event: Callable[[Event], None],
        on_end: Callable[[int, str], None],
    ) -> None:
        path = os.pathsep.join(filter(None, (str(MODULES), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            # -P: a file json.py in the folder where the user stands is not the json module.
            [sys.executable, "-P", "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._on_event, self._on_end = on_event, on_end
        self._errors = ""
        self._listener = threading.Thread(target=self._listen, name=f"child-{self.pid}", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it now; nothing that it wrote is lost. `on_end` follows."""
        self._process.kill()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended and `on_end` has returned; False when it has not in time."""
        self._listener.join(timeout)
        return not self._listener.is_alive()

    def _listen(self) -> None:
        assert self._process.stdout is not None and self._process.stderr is not None
        errors = threading.Thread(target=self._collect_errors, daemon=True)
        errors.start()
        for line in self._process.stdout:
            event = from_line(line)
            if event is not None:
                self._on_event(event)
        status = self._process.wait()
        errors.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._on_end(status, self._errors)

    def _collect_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = (self._errors + line)[-4000:]


def end_text(status: int, errors: str) -> str:
    """What to say of a child that ended without a last word."""
    how = f"was killed (signal {-status})" if status < 0 else f"ended with status {status}"
    last = errors.strip().splitlines()[-1:] or ["it left no message"]
    return f"the process that did the work {how}: {last[0]}"


def ask(module: str, argument: str, *, connect_within: float, answer_within: float) -> object:
    """Run a child for its one answer.

    `connect_within`: seconds until it must have reached the network (it says so with a Note), else Offline;
    `answer_within`: seconds for the whole. Blocks: not for an event loop's thread.
    """
    connected, ended = threading.Event(), threading.Event()
    answers: list[object] = []
    errors: list[NanochatError] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            connected.set()
        elif isinstance(event, Answer):
            answers.append(event.value)
        elif isinstance(event, Failed):
            errors.append(event.error())

    def on_end(status: int, text: str) -> None:
        if not answers and not errors:
            errors.append(DownloadError(end_text(status, text)))
        connected.set()
        ended.set()

    child = Child(module, argument, on_event, on_end)
    try:
        if not connected.wait(connect_within):
            raise Offline(
                f"offline: no answer from the network within {connect_within:g} s. Models here work without it"
            )
        if not ended.wait(answer_within):
            raise Offline(f"the hub did not answer within {answer_within:g} s; try again later")
    finally:
        child.kill()
        child.join(5)
    if errors:
        raise errors[0]
    return answers[0]

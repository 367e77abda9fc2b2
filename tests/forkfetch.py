"""A process that fetches on command, each time in a fork of itself that a timer may kill.

Its imports are done once, so that a hundred downloads with a hundred deaths take seconds. Lines on standard
input: `SECONDS ENDPOINT SPEC` starts a download that dies after so many seconds (0: never), `join` waits for
all and prints their exit statuses (negative: the signal).
"""

from __future__ import annotations

import os
import signal
import sys

from nanochat.engine.models.config import ModelConfig
from nanochat.errors import NanochatError
from nanochat.fetch import Fetch
from nanochat.transfer.events import Spec
from nanochat.transfer.remote import open_hub


def download(seconds: float, spec: Spec) -> int:
    """In the fork: arm the timer, whose signal ends the process as SIGKILL would, and fetch."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        Fetch(spec, lambda _: None).run()
    except NanochatError as error:
        print(error, file=sys.stderr, flush=True)
        return 4
    return 0


def main() -> None:
    """Serve commands until the input ends."""
    assert ModelConfig is not None
    running: list[int] = []
    for line in sys.stdin:
        if line.strip() == "join":
            ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
            print(*ends, flush=True)
            running.clear()
            continue
        seconds, os.environ["HF_ENDPOINT"], text = line.split(" ", 2)
        spec = Spec.from_json(text)
        open_hub(spec.policy)
        pid = os.fork()
        if pid == 0:
            os._exit(download(float(seconds), spec))
        running.append(pid)


if __name__ == "__main__":
    main()

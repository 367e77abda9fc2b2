"""A process that fetches on command, each time in a fork of itself that is killed on the way.

Its imports are done once, so that a hundred downloads with a hundred deaths take seconds. Lines on standard
input: `WHEN ENDPOINT SPEC` starts a download that dies after so many seconds (0: never), or with `WHEN` as `#K`
before its K-th change of the file system; `join` waits for all and prints their exit statuses (negative: the signal).
"""

from __future__ import annotations

import os
import signal
import sys

from nanochat.engine.models.config import ModelConfig
from nanochat.errors import NanochatError
from nanochat.modelhub.fetch import Fetch
from nanochat.transfer.events import Spec
from nanochat.transfer.remote import open_hub

CHANGES = ("os.rename", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def die_at(number: int) -> None:
    """Kill this process before its `number`-th change of names, or opening of a file to be written."""
    left = number

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in CHANGES or writes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def download(when: str, spec: Spec) -> int:
    """In the fork: arm the death and fetch. The timer's signal ends a process as SIGKILL does."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if when.startswith("#"):
        die_at(int(when[1:]))
    elif float(when):
        signal.setitimer(signal.ITIMER_REAL, float(when))
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
        when, os.environ["HF_ENDPOINT"], text = line.split(" ", 2)
        spec = Spec.from_json(text)
        open_hub(spec.policy)
        pid = os.fork()
        if pid == 0:
            os._exit(download(when, spec))
        running.append(pid)


if __name__ == "__main__":
    main()

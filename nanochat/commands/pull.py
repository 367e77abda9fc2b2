"""Downloads in a terminal: start them, show how they go until they end, and leave them resumable on Ctrl-C."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.commands.progress_line import ProgressLine, redraws
from nanochat.errors import UsageError
from nanochat.hub import cache_folder
from nanochat.modelhub import starter
from nanochat.modelhub.download import RESTING, Download, State
from nanochat.modelhub.downloads import Downloads
from nanochat.modelhub.fit import Ruler
from nanochat.modelhub.text import progress_line, size
from nanochat.sanitize import sanitize_line
from nanochat.settings import Paths, Settings

REDRAW = 0.2
PLAIN_EVERY = 10.0


@dataclass
class Display:
    """Progress on stderr: redrawn in place where that can be done, a line now and then elsewhere."""

    terminal: bool
    _drawn: int = 0
    _last: dict[str, tuple[State, int, float]] = field(default_factory=dict[str, tuple[State, int, float]])

    def show(self, downloads: Sequence[Download]) -> None:
        """Draw the present state."""
        if self.terminal:
            up = f"\x1b[{self._drawn}A" if self._drawn else ""
            lines = [f"\r{progress_line(one)}\x1b[K\n" for one in downloads]
            sys.stderr.write(up + "".join(lines))
            self._drawn = len(lines)
        else:
            for one in downloads:
                self._plain(one)
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """A line of its own, above the bars."""
        if self.terminal and self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0
        print(sanitize_line(text), file=sys.stderr, flush=True)

    def _plain(self, one: Download) -> None:
        state, tenth, at = self._last.get(one.id, (None, -1, 0.0))
        new = (one.state, int(one.fraction * 10))
        if new != (state, tenth) or time.monotonic() - at > PLAIN_EVERY:
            self._last[one.id] = (*new, time.monotonic())
            print(progress_line(one, 200), file=sys.stderr)


def check_has_revisions(names: Sequence[str], revision: str | None) -> None:
    """UsageError where a revision was given for what has none: it would be dropped without a word."""
    if revision is not None and any(map(starter.is_named, names)):
        raise UsageError(f"--revision {revision}: the starter model ({starter.NAME}) has only one version")
    if revision is not None and not names:
        raise UsageError(
            f"--revision {revision}: give the model's name; what is unfinished keeps its version"
        )


def pull_starter(paths: Paths) -> Path:
    """The starter model's folder; fetches it as its first use does."""
    line = ProgressLine()
    try:
        return starter.ensure(line.starter, paths=paths)
    finally:
        line.erase()


def pull_all(names: Sequence[tuple[str, str]], paths: Paths) -> tuple[Download, ...]:
    """`pull` with a queue of its own."""
    bell = threading.Event()
    queue = Downloads(paths.data, cache_folder(), on_change=bell.set)
    try:
        return pull(names, paths, queue, bell)
    finally:
        queue.close()


def pull(
    names: Sequence[tuple[str, str]], paths: Paths, queue: Downloads, bell: threading.Event
) -> tuple[Download, ...]:
    """Fetch (repository, revision) pairs, or with none what earlier runs left, until all rest.

    On KeyboardInterrupt everything is stopped within a second and every byte is kept.
    """
    display = Display(redraws(sys.stderr))
    told: set[str] = set()
    try:
        if names:
            for repo_id, revision in names:
                queue.add(repo_id, revision)
        else:
            for one in queue.restore():
                queue.resume(one.id)
        while True:
            bell.clear()
            downloads = queue.all()
            for one in downloads:
                if one.shape is not None and one.id not in told:
                    told.add(one.id)
                    display.say(_before(one, paths))
            display.show(downloads)
            moving = [one.id for one in downloads if one.state not in RESTING]
            if not moving:
                return tuple(queue.wait(one.id) for one in downloads)
            if bell.wait(1.0):
                queue.wait(moving[0], REDRAW)  # a few drawings a second are enough, but the end shows at once
    except KeyboardInterrupt:
        queue.close()
        for one in queue.all():
            if one.state is State.INTERRUPTED:
                again = f"nanochat models pull {one.repo_id}"
                display.say(f"stopped at {one.fraction:.0%}; every byte is kept, and `{again}` goes on there")
        raise


def _before(one: Download, paths: Paths) -> str:
    """What is about to come, and whether it will fit."""
    ruler = Ruler.of(paths, Settings.load(paths.settings_file))
    fits = ruler.fit(one.repo_id, one.shape)
    commit = (one.commit or "")[:12]
    text = f"{one.repo_id} at {commit}: {size(one.total or 0)} in {one.files_total} files"
    return f"{text}; {fits.text} in the memory of {ruler.memory.name} that is free now" if fits else text

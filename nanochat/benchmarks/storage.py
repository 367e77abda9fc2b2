"""Results on disk: one JSON file for each run, in the data folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nanochat.benchmarks.result import DamagedResult, NoSuchResult, Run
from nanochat.disk_faults import explain
from nanochat.settings import Paths, private_folder


@dataclass(frozen=True, slots=True)
class Results:
    """The folder of results."""

    folder: Path

    @classmethod
    def find(cls) -> Results:
        """The user's."""
        return cls(Paths.find().data / "bench")

    def file(self, run: Run) -> Path:
        """Where a run is kept."""
        return self.folder / f"{run.id}.json"

    def save(self, run: Run) -> Path:
        """Write a run, replacing an earlier state of the same; whole or not at all."""
        private_folder(self.folder)
        target = self.file(run)
        unfinished = target.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as sink:
            json.dump(run.as_dict(), sink, indent=1, ensure_ascii=False, allow_nan=False)
            sink.flush()
            os.fsync(sink.fileno())
        unfinished.replace(target)
        return target

    def keep(self, run: Run) -> str | None:
        """`save` where it can be; else why not, for the user: what was measured is worth more than its file."""
        try:
            self.save(run)
        except OSError as error:
            return f"this run could not be kept: {explain(error, self.folder)}"
        return None

    def names(self) -> list[str]:
        """The ids of all runs, oldest first: an id begins with its time."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def load(self, name: str) -> Run:
        """A run by its id, the beginning of one, `last`, `last-1` (the one before), or a file's path.

        Raises:
            NoSuchResult: there is none, or several begin so.
            DamagedResult: the file is no result.
        """
        path = self._path(name)
        try:
            return Run.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except DamagedResult as error:
            raise DamagedResult(f"{path}: {error}") from error
        except (OSError, ValueError) as error:
            raise DamagedResult(f"{path} cannot be read as a benchmark's result: {error}") from error

    def _path(self, name: str) -> Path:
        names = self.names()
        if name == "last" or name.startswith("last-"):
            back = name.removeprefix("last").removeprefix("-") or "0"
            if back.isdecimal() and int(back) < len(names):
                return self.folder / f"{names[-1 - int(back)]}.json"
            raise NoSuchResult(
                f"{len(names)} runs are kept, so there is no {name}: `nanochat bench list` shows them"
            )
        if name.endswith(".json") or os.sep in name:
            return Path(os.path.expanduser(name))
        found = [each for each in names if each == name] or [each for each in names if each.startswith(name)]
        if len(found) != 1:
            recent = ", ".join(names[-5:]) or "none yet"
            what = "no run is called" if not found else f"{len(found)} runs begin with"
            raise NoSuchResult(f"{what} {name}; the latest are: {recent}")
        return self.folder / f"{found[0]}.json"

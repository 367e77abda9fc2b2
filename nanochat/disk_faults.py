"""What a file or folder that cannot be written means, told to the user: what happened, and what to do next."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nanochat.settings import Paths

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def is_of_the_disk(error: BaseException) -> bool:
    """Whether it is the disk's or the user's rights that are in the way, and no bug of ours."""
    if not isinstance(error, OSError):
        return False
    return error.errno in _FULL or (error.errno in _CLOSED and error.filename is not None) or _no_place(error)


def explain(error: OSError, place: Path | None = None) -> str:
    """One line for `error`, which came while `place` was written; without one, what the error itself names."""
    if _no_place(error):
        return "no folder for temporary files can be written: set TMPDIR to one that can"
    if place is None and isinstance(error.filename, (str, bytes, os.PathLike)):  # it may be a descriptor
        place = Path(os.fsdecode(error.filename))
    if error.errno in _FULL:
        what, remedy = f"no space is left{f' for {place}' if place else ''}", "Make room"
    else:
        what = f"{place or 'a file'} cannot be written: {error.strerror or error}"
        remedy = "Make it writable for you"
    ours = place is None or any(place.is_relative_to(each) for each in _folders())
    return f"{what}. {remedy}{', or set NANOCHAT_HOME to another folder' if ours else ''}"


def why_unwritable(file: Path) -> str:
    """`explain` of why a file could not be added to; empty where it could. Nothing is made or written."""
    try:
        there = next(path for path in (file, *file.parents) if path.exists())
        if there == file:
            os.close(os.open(file, os.O_WRONLY | os.O_APPEND))
        elif not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        elif not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
    except OSError as error:
        return explain(error)
    return ""


def _folders() -> tuple[Path, ...]:
    paths = Paths.find()
    return paths.config, paths.data, paths.cache, paths.log


def _no_place(error: OSError) -> bool:
    """`tempfile` has tried everything, the current folder too."""
    return isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error.strerror)

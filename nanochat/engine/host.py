"""The host's memory, processors and processes: what psutil says, or Linux itself where only the engine is installed."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_PROC = Path("/proc")
_KIB = 1024


def memory_available() -> int:
    """Bytes that new allocations can have without swapping."""
    if _has_psutil():
        import psutil

        return int(psutil.virtual_memory().available)
    return _meminfo("MemAvailable")


def swap_free() -> int:
    """Bytes of swap space that nothing is in."""
    if _has_psutil():
        import psutil

        return int(psutil.swap_memory().free)
    return _meminfo("SwapFree")


def memory_resident() -> int:
    """Bytes of this process that are in memory."""
    if _has_psutil():
        import psutil

        return int(psutil.Process().memory_info().rss)
    pages = (_PROC / "self" / "statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def processor() -> str:
    """The processor's name."""
    try:
        for line in (_PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module's word is all there is
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of processor time since the start: of everything on this machine, and of this process and its children."""

    all: float
    own: float


def work() -> Work:
    """What the processors did so far."""
    return _work_by_psutil() if _has_psutil() else _work_by_linux()


def relatives() -> set[int]:
    """The ids of this process, everything that it started, and everything that it was started by."""
    if _has_psutil():
        import psutil

        me = psutil.Process()
        try:
            return {me.pid, *(p.pid for p in (*me.children(recursive=True), *me.parents()))}
        except psutil.Error:  # one ended while they were counted
            return {me.pid, os.getppid()}
    processes = _processes()
    ids, pid = set(_descendants(processes)), os.getpid()
    while pid in processes:
        ids.add(pid)
        pid = processes[pid].parent
    return ids


@dataclass(frozen=True, slots=True)
class Progress:
    """What a process does.

    Attributes:
        seconds: that it has computed.
        busy: whether it or what it has started computes or waits for a disk now.
        waits: whether for a disk, be it for a page that was swapped out.
    """

    seconds: float
    busy: bool
    waits: bool = False


def progress(pid: int) -> Progress | None:
    """What a process does; None when it is gone."""
    if not _has_psutil():
        processes = _processes()
        if pid not in processes:
            return None
        family = [processes[each] for each in _descendants(processes, pid)]
        states = {each.state for each in family}
        return Progress(family[0].seconds, bool(states & {"R", "D"}), "D" in states)
    import psutil

    working = {psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP}
    try:
        process = psutil.Process(pid)
        seconds = sum(process.cpu_times()[:2])
        states = {process.status()}
        if not states & working:  # whom it has started is looked up only then: that reads all of /proc
            states |= {child.status() for child in process.children(recursive=True)}
        return Progress(seconds, bool(states & working), psutil.STATUS_DISK_SLEEP in states)
    except psutil.Error:
        return None if not psutil.pid_exists(pid) else Progress(0.0, busy=True)  # a child ended meanwhile


def thread_progress(thread: int) -> Progress:
    """What a thread of this process does, by its native id; where nobody says, as if it slept."""
    found = _read_process(_PROC / "self" / "task" / str(thread))
    if found is None:
        return Progress(0.0, busy=False)
    return Progress(found.seconds, found.state in ("R", "D"), found.state == "D")


def is_running(pid: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's: it may not be signalled, but it is there
    return True


def _meminfo(name: str) -> int:
    lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * _KIB for line in lines if line.startswith(f"{name}:"))


def _has_psutil() -> bool:
    return find_spec("psutil") is not None


def _work_by_psutil() -> Work:
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user as well
    me = psutil.Process()
    own = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            each = process.cpu_times()
        except psutil.Error:
            continue  # it ended meanwhile
        own += each.user + each.system
    ended = me.cpu_times()
    return Work(sum(times) - guest - idle, own + ended.children_user + ended.children_system)


@dataclass(frozen=True, slots=True)
class _Process:
    """A line of /proc/PID/stat (man 5 proc)."""

    state: str
    parent: int
    seconds: float


def _work_by_linux() -> Work:
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _waiting, hard, soft, stolen = (
        int(each) for each in (_PROC / "stat").read_text(encoding="ascii").split()[1:9]
    )
    processes = _processes()
    ended = os.times()
    own = sum(processes[pid].seconds for pid in _descendants(processes))
    busy = (user + nice + system + hard + soft + stolen) / ticks
    return Work(busy, own + ended.children_user + ended.children_system)


def _processes() -> dict[int, _Process]:
    folders = (folder for folder in _PROC.iterdir() if folder.name.isdigit())
    read = {int(folder.name): _read_process(folder) for folder in folders}
    return {pid: process for pid, process in read.items() if process is not None}


def _read_process(folder: Path) -> _Process | None:
    """None when it ended meanwhile."""
    try:
        line = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = line.rpartition(")")[2].split()  # the name before it may hold anything
    return _Process(fields[0], int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


def _descendants(processes: dict[int, _Process], pid: int | None = None) -> list[int]:
    """A process, by default this one, and everything that it started."""
    ids = [os.getpid() if pid is None else pid]
    for each in ids:
        ids += [child for child, process in processes.items() if process.parent == each]
    return ids

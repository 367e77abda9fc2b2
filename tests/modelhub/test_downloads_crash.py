"""Deaths, doubles and full disks: the cache holds the old good state or the new good state, and nothing in between."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakehome import QUICK, Home
from fakehub import Hub
from fakerepo import tiny_model

from nanochat.errors import DownloadError
from nanochat.transfer.events import Spec

DEATHS = 100
OLD, NEW = tiny_model(seed=1, shards=2), tiny_model(seed=2, shards=3, rows=4096)


class Forks:
    """The process of forkfetch.py."""

    def __init__(self) -> None:
        here = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [sys.executable, str(here / "forkfetch.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_without_network_settings(), "PYTHONPATH": str(here.parent)},
        )

    def start(self, spec: Spec, when: float | str = 0.0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{when} {os.environ['HF_ENDPOINT']} {spec.to_json()}\n")
        self._process.stdin.flush()

    def join(self) -> list[int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("join\n")
        self._process.stdin.flush()
        return [int(status) for status in self._process.stdout.readline().split()]

    def close(self) -> None:
        self._process.communicate(timeout=20)


def _without_network_settings() -> dict[str, str]:
    left_out = ("HF_", "HUGGING")
    return {
        k: v for k, v in os.environ.items() if not k.startswith(left_out) and not k.lower().endswith("_proxy")
    }


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(OLD) as hub:
        yield hub


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.close()


def test_a_hundred_deaths_at_random_moments_never_break_a_snapshot(
    hub: Hub, home: Home, forks: Forks
) -> None:
    forks.start(home.spec())
    assert forks.join() == [0] and home.is_new(OLD)
    kept = home.root / "kept"
    shutil.copytree(home.cache, kept, symlinks=True)
    hub.add(NEW)
    begun = time.monotonic()
    forks.start(home.spec())
    assert forks.join() == [0]
    whole = time.monotonic() - begun
    draw, deaths, survivals, reach = random.Random(7), 0, 0, whole
    while deaths < DEATHS:
        if home.is_new(NEW):
            survivals += 1
            shutil.rmtree(home.cache)
            shutil.rmtree(home.data)
            shutil.copytree(kept, home.cache, symlinks=True)
        forks.start(home.spec(), draw.uniform(0.0, reach) + 0.001)
        (status,) = forks.join()
        deaths += status < 0
        reach = reach * 1.03 if status < 0 else whole  # the machine may have become slower
        assert home.is_new(OLD) or home.is_new(NEW)
        home.assert_nothing_broken(OLD, NEW)
    assert survivals > 3, "the deaths came so early that nothing was tested"
    forks.start(home.spec())
    assert forks.join() == [0] and home.is_new(NEW)


def test_a_death_before_any_change_on_the_disk_breaks_nothing(hub: Hub, home: Home, forks: Forks) -> None:
    forks.start(home.spec())
    assert forks.join() == [0]
    hub.add(NEW)
    number, status = 0, -1
    while status < 0:  # one change further each time; what was done before a death is kept
        number += 1
        forks.start(home.spec(), f"#{number}")
        (status,) = forks.join()
        assert home.is_new(OLD) or home.is_new(NEW)
        home.assert_nothing_broken(OLD, NEW)
    assert status == 0 and home.is_new(NEW) and number > 20


def test_two_processes_at_once_fetch_each_file_once(hub: Hub, home: Home, forks: Forks) -> None:
    hub.add(NEW)
    hub.rule("*.safetensors* delay=0.3 origin=cdn")
    forks.start(home.spec())
    forks.start(home.spec())
    assert forks.join() == [0, 0]
    assert home.is_new(NEW)
    paths = [seen.path for seen in hub.gets("*.safetensors*", origin="cdn")]
    assert len(paths) == len(set(paths)) == 3


def test_a_waiter_takes_over_when_the_one_that_fetches_dies(hub: Hub, home: Home, forks: Forks) -> None:
    hub.rule("*-00001-of-00002.safetensors* stall=3000 times=1 origin=cdn")
    patient = replace(QUICK, read_timeout=30.0)
    forks.start(replace(home.spec(), policy=patient), when=2.0)
    hub.wait_for("*-00001-of-00002.safetensors*", times=2)
    forks.start(home.spec())
    first, second = forks.join()
    assert first < 0 and second == 0
    assert home.is_new(OLD)


def test_a_lock_that_nobody_works_under_is_given_up_with_its_name(home: Home) -> None:
    lock = home.repository().lock(OLD.files["model-00001-of-00002.safetensors"].etag)
    with lock:
        error = home.fails(replace(home.spec(), policy=replace(QUICK, lock_timeout=0.2)))
    assert isinstance(error, DownloadError) and Path(lock.lock_file).name in str(error)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_before_and_during_and_the_rest_goes_on_later(
    hub: Hub, home: Home, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NEW)  # 1.5 MiB of weights
    spec = replace(home.spec(), cache=str(small_disk))
    before = home.fails(spec)
    assert "not enough disk" in str(before) and not any(small_disk.iterdir())

    usage: Callable[[object], object] = lambda _: type("Usage", (), {"free": 1 << 30})()  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", usage)  # another program fills the disk after the check
    during = home.fails(spec)
    assert isinstance(during, DownloadError) and "disk is full" in str(during)
    parts = list(small_disk.glob("*/blobs/*.incomplete"))
    assert parts and not list(small_disk.glob("*/snapshots/*"))

    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    hub.requests.clear()
    home.fetch(spec)
    assert any(seen.range for seen in hub.gets("*.safetensors*", origin="cdn"))
    Home(home.root).assert_whole(small_disk / "models--org--tiny" / "snapshots" / NEW.commit, NEW)

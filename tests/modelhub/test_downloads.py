"""The queue of downloads: states, pauses, cancels, restarts, and the death of either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from busy import BUSY
from fakehome import QUICK, Home
from fakehub import Hub
from fakerepo import tiny_model

from nanochat.errors import AccessDenied, UsageError
from nanochat.modelhub.downloads import Download, Downloads, Policy, State

BIG = tiny_model("org/big", rows=8192)
WEIGHTS = "*model.safetensors*"
SIZE = BIG.files["model.safetensors"].size
HALF = SIZE // 2
PATIENT = Policy(read_timeout=60.0)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(BIG) as hub:
        yield hub


@pytest.fixture
def downloads(home: Home) -> Iterator[Downloads]:
    downloads = Downloads(home.data, home.cache, policy=PATIENT)
    yield downloads
    downloads.close()


class Bell:
    """Waits for a condition on the queue, woken by its own bell."""

    def __init__(self, home: Home, **options: object) -> None:
        self._rung = threading.Condition()
        self.seen: list[tuple[Download, ...]] = []
        self.queue: Downloads = Downloads(home.data, home.cache, on_change=self.ring, **options)  # type: ignore[arg-type]

    def ring(self) -> None:
        with self._rung:
            if hasattr(self, "queue"):
                self.seen.append(self.queue.all())
            self._rung.notify_all()

    def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        with self._rung:
            assert self._rung.wait_for(condition, timeout), self.queue.all()


@pytest.fixture
def bell(home: Home) -> Iterator[Bell]:
    bell = Bell(home, policy=PATIENT)
    yield bell
    bell.queue.close()


def half_way(bell: Bell, hub: Hub) -> str:
    """Start the big download and let it stall after half of the weights."""
    hub.rule(f"{WEIGHTS} stall={HALF} times=1 origin=cdn")
    name = bell.queue.add("org/big").id
    bell.until(lambda: bell.queue.get(name).done >= HALF)
    return name


def test_a_download_goes_through_its_states_and_its_percentage_never_falls(
    home: Home, bell: Bell, hub: Hub
) -> None:
    hub.rule(f"{WEIGHTS} garbage times=1 origin=cdn")
    begun = bell.queue.add("org/big")
    assert begun.state in (State.QUEUED, State.RESOLVING)
    end = bell.queue.wait(begun.id, 60)
    assert end.state is State.READY and end.folder is not None and end.fraction == 1.0
    assert home.is_new(BIG)
    history = [one for seen in bell.seen for one in seen]
    fractions = [one.fraction for one in history]
    assert fractions == sorted(fractions)
    order = list(dict.fromkeys(one.state for one in history))
    assert order[0] in (State.QUEUED, State.RESOLVING) and order[-1] is State.READY
    assert State.DOWNLOADING in order
    assert end.shape is not None and end.shape.layers == 2
    assert not list((home.data / "downloads").glob("*.json"))


def test_a_pause_takes_effect_within_a_second_and_keeps_every_byte(home: Home, bell: Bell, hub: Hub) -> None:
    name = half_way(bell, hub)
    begun = time.monotonic()
    assert bell.queue.pause(name).state is State.PAUSED
    assert bell.queue.wait(name, 5).state is State.PAUSED
    assert time.monotonic() - begun < BUSY * 1.0
    assert home.repository("org/big").part(BIG.files["model.safetensors"].etag).stat().st_size == HALF
    hub.requests.clear()
    bell.queue.resume(name)
    assert bell.queue.wait(name, 60).state is State.READY
    assert [seen.range for seen in hub.gets(WEIGHTS, origin="cdn")] == [f"bytes={HALF}-"]


def test_a_cancel_takes_effect_within_a_second_and_leaves_no_file(home: Home, bell: Bell, hub: Hub) -> None:
    name = half_way(bell, hub)
    begun = time.monotonic()
    bell.queue.cancel(name)
    assert bell.queue.wait(name, 5).state is State.CANCELLED
    assert time.monotonic() - begun < BUSY * 1.0
    assert not (home.cache / "models--org--big").exists()
    assert not [file for file in home.files() if not file.startswith("nanochat/data/verified")]


def test_cancelling_a_second_version_keeps_the_first(home: Home, bell: Bell, hub: Hub) -> None:
    old = hub.add(tiny_model("org/big", seed=5))
    home.fetch(home.spec("org/big"))
    hub.add(BIG)
    name = half_way(bell, hub)
    bell.queue.cancel(name)
    bell.queue.wait(name, 5)
    assert home.is_new(old)
    home.assert_nothing_broken(old, BIG)
    assert home.repository("org/big").growth(BIG.files["model.safetensors"].etag) == 0


def test_quitting_keeps_the_bytes_and_the_next_start_goes_on(home: Home, bell: Bell, hub: Hub) -> None:
    name = half_way(bell, hub)
    bell.queue.close()
    assert bell.queue.get(name).state is State.INTERRUPTED
    listing = Downloads(home.data, home.cache)  # as `models list` looks, without going on
    assert [one.state for one in listing.restore(start=False)] == [State.INTERRUPTED]
    listing.close()
    hub.requests.clear()
    queue = Downloads(home.data, home.cache, policy=PATIENT)
    (restored,) = queue.restore()
    assert restored.id == name and restored.done >= HALF and restored.total is not None
    assert queue.wait(name, 60).state is State.READY
    assert [seen.range for seen in hub.gets(WEIGHTS, origin="cdn")] == [f"bytes={HALF}-"]
    queue.close()


def test_what_the_user_paused_stays_paused_after_a_restart(home: Home, bell: Bell, hub: Hub) -> None:
    name = half_way(bell, hub)
    bell.queue.pause(name)
    bell.queue.close()
    listing = Downloads(home.data, home.cache)
    assert [one.state for one in listing.restore(start=False)] == [State.PAUSED]
    listing.close()
    queue = Downloads(home.data, home.cache)
    (restored,) = queue.restore()
    assert restored.state is State.PAUSED and restored.fraction > 0.4
    queue.cancel(name)
    assert queue.wait(name, 5).state is State.CANCELLED
    assert not (home.cache / "models--org--big").exists()
    queue.close()
    assert Downloads(home.data, home.cache).restore() == ()


PARENT = """
import sys
from pathlib import Path
from nanochat.modelhub.downloads import Downloads, Policy
queue = Downloads(Path(sys.argv[1]), Path(sys.argv[2]), policy=Policy(read_timeout=60.0))
queue.add("org/big")
print("on its way", flush=True)
queue.wait(queue.all()[0].id)
"""


def test_kill_9_of_the_program_ends_its_child_and_the_next_start_goes_on(home: Home, hub: Hub) -> None:
    hub.rule(f"{WEIGHTS} stall={HALF} times=1 origin=cdn")
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", PARENT, str(home.data), str(home.cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}) as parent:
        hub.wait_for(WEIGHTS, times=2)
        part = home.repository("org/big").part(BIG.files["model.safetensors"].etag)
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size == HALF):
            assert time.monotonic() < deadline
            hub.closing.wait(0.01)
        parent.send_signal(signal.SIGKILL)
    queue = Downloads(home.data, home.cache, policy=PATIENT)
    (restored,) = queue.restore()
    assert queue.wait(restored.id, 60).state is State.READY  # the dead child holds no lock any more
    assert [seen.range for seen in hub.gets(WEIGHTS, origin="cdn")] == [None, f"bytes={HALF}-"]
    assert home.is_new(BIG)
    queue.close()


def test_a_child_that_dies_is_a_failure_that_can_go_on(home: Home, bell: Bell, hub: Hub) -> None:
    name = half_way(bell, hub)
    os.kill(_child(bell.queue), signal.SIGKILL)
    end = bell.queue.wait(name, 10)
    assert end.state is State.FAILED and "signal 9" in end.note
    bell.queue.resume(name)
    assert bell.queue.wait(name, 60).state is State.READY


def _child(queue: Downloads) -> int:
    (job,) = queue._jobs.values()  # the process id is nobody's business but this test's
    assert job.child is not None
    return job.child.pid


def test_two_run_at_once_and_the_third_waits_its_turn(home: Home, bell: Bell, hub: Hub) -> None:
    for name in ("org/one", "org/two", "org/three"):
        hub.add(tiny_model(name))
    hub.rule("/org/one/model.safetensors* stall=100 times=1 origin=cdn")
    hub.rule("/org/two/model.safetensors* stall=100 times=1 origin=cdn")
    one, two, three = (bell.queue.add(name).id for name in ("org/one", "org/two", "org/three"))
    hub.wait_for("/org/one/model.safetensors*")
    hub.wait_for("/org/two/model.safetensors*")
    assert bell.queue.get(three).state is State.QUEUED
    bell.queue.pause(one)
    assert bell.queue.wait(three, 60).state is State.READY
    assert bell.queue.get(two).state in (State.DOWNLOADING, State.VERIFYING)
    assert hub.gets("/org/three/model.safetensors*")


def test_a_refusal_keeps_its_type_and_its_next_step_and_leaves_nothing(
    home: Home, bell: Bell, hub: Hub
) -> None:
    hub.add(tiny_model("org/gated", gated="auto"))
    name = bell.queue.add("org/gated").id
    end = bell.queue.wait(name, 30)
    assert end.state is State.FAILED and isinstance(end.error, AccessDenied) and "hf auth login" in end.note
    assert not list((home.data / "downloads").glob("*.json")) and not home.cache.exists()


def test_an_unknown_name_and_a_name_that_is_none_are_usage_errors(downloads: Downloads) -> None:
    with pytest.raises(UsageError, match="no download"):
        downloads.pause("org--none@main")
    for name in ("../../x", "a/b/c", "", "-x", "a b"):
        with pytest.raises(UsageError, match="not the name"):
            downloads.add(name)
    assert downloads.all() == ()


def test_a_damaged_journal_entry_is_left_out(home: Home, downloads: Downloads) -> None:
    folder = home.data / "downloads"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{not json")
    (folder / "y.json").write_text('{"repo_id": "../../x", "revision": "main"}')
    (folder / "z.json").write_text('{"repo_id": "org/z", "revision": "main", "paused": true}')
    assert [one.repo_id for one in downloads.restore()] == ["org/z"]


def test_a_second_program_leaves_a_running_download_to_the_first(home: Home, bell: Bell, hub: Hub) -> None:
    name = half_way(bell, hub)
    other = Downloads(home.data, home.cache)
    assert other.restore() == ()
    other.close()
    bell.queue.pause(name)


def test_no_token_is_in_the_journal_the_notes_or_the_command_line(
    home: Home, bell: Bell, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.accounts["hf_canary"] = {"org/big"}
    half_way(bell, hub)
    if sys.platform == "linux":
        assert b"hf_canary" not in Path(f"/proc/{_child(bell.queue)}/cmdline").read_bytes()
    for path in home.root.rglob("*"):
        assert not path.is_file() or b"hf_canary" not in path.read_bytes()
    assert "hf_canary" not in repr(bell.queue.all())


def test_the_speed_is_that_of_the_last_ten_seconds() -> None:
    from nanochat.transfer.pace import Pace

    pace = Pace()
    assert pace.speed(0.0) is None
    for second in range(31):
        pace.add(float(second), min(second, 20) * 1000)
        if second == 20:
            assert pace.speed(20.0) == pytest.approx(1000.0)
    assert pace.speed(30.0) == pytest.approx(0.0)
    assert pace.seconds_left(30.0, 500) is None
    quick = Pace()
    quick.add(0.0, 0)
    quick.add(2.0, 4000)
    assert quick.speed(2.0) == 2000 and quick.seconds_left(2.0, 1000) == 0.5


def test_quick_policies_are_only_for_tests() -> None:
    assert Policy().tries > QUICK.tries and Policy().first_delay > QUICK.first_delay

"""Whether sums go in one shot is agreed on by all ranks, whatever goes wrong on one; the driver and the GPUs are fakes."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from nanochat.engine.parallel import one_shot
from nanochat.engine.parallel.collectives import Collectives
from nanochat.engine.parallel.one_shot import Sums, connect
from nanochat.kernels.nvrtc import DriverError

pytest.importorskip("triton", reason="Triton runs on Linux only")

CPU = torch.device("cpu")
RANKS, WIDTH = 3, 64


class Meeting:
    """Where ranks, which are threads here, put what they exchange."""

    def __init__(self) -> None:
        self.there, self.barrier = [torch.empty(0)] * RANKS, threading.Barrier(RANKS, timeout=20)

    def exchange(self, rank: int, x: torch.Tensor) -> torch.Tensor:
        self.there[rank] = x
        self.barrier.wait()
        together = torch.stack(self.there)
        self.barrier.wait()
        return together


class Memory:
    """Stands for `PeerMemory`."""

    made: list[Memory]
    cannot_map: set[int]

    def __init__(self, size: int, device: torch.device) -> None:
        self.number = len(Memory.made)
        self.address, self.handle, self.closed = 1000 + self.number, bytes([self.number] * 64), False
        self.mapped: set[int] = set()
        Memory.made.append(self)

    def map(self, handle: bytes) -> int:
        if self.number in Memory.cannot_map:
            raise DriverError("peer access is not supported")
        self.mapped.add(handle[0])
        return 1000 + handle[0]

    def unmap(self) -> None:
        self.mapped.clear()

    def close(self) -> None:
        assert not any(self.number in other.mapped for other in Memory.made), (
            "freed while others have it mapped"
        )
        self.closed = True


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory.made, Memory.cannot_map = [], set()
    monkeypatch.setattr(one_shot, "PeerMemory", Memory)
    monkeypatch.setattr(one_shot, "_reaches_all", lambda device, rank, ranks: True)
    monkeypatch.setattr(one_shot, "_sound", lambda *_: True)
    monkeypatch.setattr(one_shot, "_sound_products", lambda *_: True)
    monkeypatch.setattr(one_shot, "_measure", lambda *_: (8, "measured"))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=60)
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)


def connected() -> tuple[list[Sums | None], list[str]]:
    """(the sums of each rank, what each says was found)."""
    meeting, found, compared = Meeting(), list[Sums | None]([None] * RANKS), [""] * RANKS

    def rank_is(rank: int) -> None:
        collectives = SimpleNamespace(rank=rank, ranks=RANKS, exchange=lambda x: meeting.exchange(rank, x))
        found[rank] = connect(collectives, CPU, WIDTH, torch.bfloat16)  # type: ignore[arg-type]
        compared[rank] = collectives.compared

    threads = [threading.Thread(target=rank_is, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return found, compared


def test_every_rank_maps_the_inboxes_of_all_in_their_order() -> None:
    found, compared = connected()
    assert compared == ["measured, small ones sent by the products"] * RANKS
    inboxes = {tuple(sums._end._inboxes.tolist()) for sums in found if sums is not None}
    assert len(inboxes) == 1 and sorted(*inboxes) == [1000, 1001, 1002]
    assert [sums._end.rank for sums in found if sums is not None] == [0, 1, 2]
    assert {sums._end.rows for sums in found if sums is not None} == {60}
    assert not any(memory.closed for memory in Memory.made)


def test_one_rank_that_does_not_reach_another_leaves_all_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot, "_reaches_all", lambda device, rank, ranks: rank != 1)
    assert connected() == ([None] * RANKS, ["no GPU memory that the ranks share"] * RANKS)
    assert len(Memory.made) == 2 and all(memory.closed for memory in Memory.made)


def test_one_rank_that_cannot_map_an_inbox_leaves_all_with_nccl() -> None:
    Memory.cannot_map = {2}
    assert connected() == ([None] * RANKS, ["no GPU memory that the ranks share"] * RANKS)
    assert len(Memory.made) == RANKS and all(memory.closed for memory in Memory.made)


def test_one_rank_whose_sums_are_wrong_leaves_all_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot, "_sound", lambda collectives, *_: collectives.rank != 2)
    assert connected() == ([None] * RANKS, ["sums in one shot did not come out right"] * RANKS)
    assert all(memory.closed for memory in Memory.made)


def test_products_send_by_themselves_only_where_that_is_sound_on_every_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.zeros(1, WIDTH, dtype=torch.bfloat16)
    assert all(sums is not None and sums.outlet(x) is not None for sums in connected()[0])
    monkeypatch.setattr(one_shot, "_sound_products", lambda collectives, *_: collectives.rank != 1)
    assert all(sums is not None and sums.outlet(x) is None and sums.takes(x) for sums in connected()[0])


def test_what_is_not_faster_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot, "_measure", lambda *_: (0, "no sums in one shot (slow)"))
    assert connected() == ([None] * RANKS, ["no sums in one shot (slow)"] * RANKS)
    assert all(memory.closed for memory in Memory.made)


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ({1: (5e-6, 9e-6), 8: (6e-6, 9e-6), 32: (12e-6, 11e-6), 128: (1e-6, 2e-6)}, 8),
        ({1: (9e-6, 5e-6), 8: (1e-6, 9e-6)}, 0),
        ({1: (1e-6, 5e-6), 8: (1e-6, 9e-6), 32: (1e-6, 9e-6), 128: (1e-6, 9e-6)}, 128),
    ],
)
def test_the_slowest_rank_says_up_to_which_size_one_shot_is_faster(
    times: dict[int, tuple[float, float]], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    taken = iter([seconds for pair in times.values() for seconds in pair])
    monkeypatch.setattr(one_shot, "_seconds", lambda step, device: next(taken) / 2)
    collectives = SimpleNamespace(exchange=lambda x: torch.stack([x, 2 * x, x]), measured={})
    end = SimpleNamespace(rows=128)
    found, about = one_shot._measure(collectives, end, CPU, WIDTH, torch.float32)  # type: ignore[arg-type]
    assert found == most
    assert "one row in" in about and (f"up to {most} rows" if most else "no sums") in about
    assert collectives.measured == pytest.approx({rows: times[rows] for rows in collectives.measured})


class Asked:
    """An end, or the collectives, that notes what it was asked."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def takes(self, x: torch.Tensor) -> bool:
        return True

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self.said.append("one shot")
        return x

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.said.append("NCCL")
        return x

    @contextmanager
    def counted(self):
        self.said.append("counted")
        yield

    @contextmanager
    def timed(self):
        self.said.append("timed")
        yield


def test_large_sums_go_the_old_way_and_small_ones_are_counted() -> None:
    asked = Asked()
    sums = Sums(asked, asked, None, 8)  # type: ignore[arg-type]
    sums(torch.zeros(9, WIDTH))
    sums(torch.zeros(8, WIDTH))
    assert asked.said == ["timed", "NCCL", "counted", "one shot"]
    assert not sums.takes(torch.zeros(9, WIDTH)) and sums.takes(torch.zeros(1, 8, WIDTH))


def test_few_words_are_exchanged_in_one_shot_too() -> None:
    collectives = Collectives(None, 0, 2, CPU, None)  # type: ignore[arg-type]
    words = torch.arange(6).view(2, 3)
    collectives.one_shot = SimpleNamespace(gathers=lambda x: x is words, gather=lambda x: torch.stack([x, x]))  # type: ignore[assignment]
    assert torch.equal(collectives.exchange(words), torch.stack([words, words]))


def test_a_lost_rank_ends_the_waiting_in_sums_too() -> None:
    class Group:
        def abort(self) -> None:
            ended.append("group")

    ended: list[str] = []
    collectives = Collectives(Group(), 0, 2, CPU, None)  # type: ignore[arg-type]
    collectives.one_shot = SimpleNamespace(give_up=lambda: ended.append("sums"))  # type: ignore[assignment]
    collectives.abort()
    assert ended == ["sums", "group"]


def test_a_lost_rank_that_nccl_waits_for_holds_nobody_up() -> None:
    """Its abort waits for the other ranks; a group that is destroyed meanwhile would wait too."""
    done, destroyed = threading.Event(), []

    class Group:
        def abort(self) -> None:
            done.wait(20)

        def __del__(self) -> None:
            destroyed.append(True)

    collectives = Collectives(Group(), 0, 2, torch.device("cuda", 0), None)  # type: ignore[arg-type]
    collectives.abort()
    parting = collectives._parting
    assert parting is not None and parting.daemon
    collectives.abort()
    assert collectives._parting is parting
    collectives.close()
    gc.collect()
    assert parting.is_alive() and not destroyed
    done.set()
    parting.join(20)
    gc.collect()
    assert destroyed


def test_who_parts_waits_until_nccl_has_let_go() -> None:
    class Group:
        def abort(self) -> None:
            released.wait(0.2)
            parted.append(True)

    released, parted = threading.Event(), []
    collectives = Collectives(Group(), 0, 2, torch.device("cuda", 0), None)  # type: ignore[arg-type]
    collectives.part()
    assert parted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_sums_are_found_sound_and_wrong_ones_are_not(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum by NCCL ends in the place of what was summed."""
    monkeypatch.undo()
    collectives = SimpleNamespace(rank=0, reduce=lambda x: x.mul_(2))
    end = SimpleNamespace(
        rows=8, looks=1, takes=lambda x: True, sum=lambda x: 2 * x, failed=torch.zeros(1, dtype=torch.int32)
    )
    assert one_shot._sound(collectives, end, CPU, WIDTH, dtype)  # type: ignore[arg-type]
    end.sum = lambda x: 3 * x
    assert not one_shot._sound(collectives, end, CPU, WIDTH, dtype)  # type: ignore[arg-type]

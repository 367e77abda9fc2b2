"""Whether sums go in one shot is agreed on by all ranks, whatever goes wrong on one; the driver and the GPUs are fakes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from nanochat.engine.parallel import one_shot
from nanochat.engine.parallel.collectives import Collectives
from nanochat.engine.parallel.one_shot import Sums, connect
from nanochat.engine.parallel.trial import Limits
from nanochat.kernels.driver import DriverError

pytest.importorskip("triton", reason="Triton runs on Linux only")

from nanochat.kernels.triton_one_shot import OneShot, inbox_bytes
from nanochat.kernels.triton_row_inbox import LINE
from nanochat.kernels.triton_wide_sum import WideSum, wide_bytes, wide_rows

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
        self.number, self.size = len(Memory.made), size
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
    monkeypatch.setattr(one_shot, "sound", lambda *_: True)
    monkeypatch.setattr(one_shot, "sound_in_two_shots", lambda *_: True)
    monkeypatch.setattr(one_shot, "sound_flagless", lambda *_: True)
    monkeypatch.setattr(one_shot, "sound_products", lambda *_: True)
    monkeypatch.setattr(one_shot, "measure_products", lambda *_: (1e-5, 2e-5))
    monkeypatch.setattr(one_shot, "measure", lambda *_, in_two, flagless: Limits(8, 32, 8))
    monkeypatch.setattr(one_shot, "describe", lambda limits, _: str(tuple(limits[:3])))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=60)
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 36, 1 << 37))


SENDING = "half a layer in 10.0 us where products send, else in 20.0"


def connected() -> tuple[list[Sums | None], list[str]]:
    """(the sums of each rank, what each says was found)."""
    meeting, found, compared = Meeting(), list[Sums | None]([None] * RANKS), [""] * RANKS

    def rank_is(rank: int) -> None:
        collectives = SimpleNamespace(
            rank=rank, ranks=RANKS, exchange=lambda x: meeting.exchange(rank, x), measured={}
        )
        found[rank] = connect(collectives, CPU, WIDTH, torch.bfloat16, 8192)  # type: ignore[arg-type]
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
    assert compared == [f"(8, 32, 8); {SENDING}"] * RANKS
    inboxes = {tuple(sums._end._inboxes.tolist()) for sums in found if sums is not None}
    assert len(inboxes) == 1 and sorted(*inboxes) == [1000, 1001, 1002]
    for sums in found:
        assert sums is not None
        begins = sums._wide._inboxes - sums._end._inboxes
        assert (
            len(set(begins.tolist())) == 1
            and begins[0] >= inbox_bytes(RANKS, 60, WIDTH)
            and begins[0] % LINE == 0
        )
        assert Memory.made[0].size >= begins[0] + wide_bytes(RANKS, sums._wide.rows, WIDTH * 2)
        assert sums._wide.rows == wide_rows(RANKS, WIDTH * 2)
        assert sums._wide.failed is sums._end.failed
    assert [sums._end.rank for sums in found if sums is not None] == [0, 1, 2]
    assert {sums._end.rows for sums in found if sums is not None} == {60}
    assert not any(memory.closed for memory in Memory.made)


def test_ranks_with_unlike_chips_lay_their_inboxes_out_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((120, 60, 90))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=next(counts))
    )
    assert [sums._end.rows for sums in connected()[0] if sums is not None] == [60] * RANKS


def test_one_rank_that_does_not_reach_another_leaves_all_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot, "_reaches_all", lambda device, rank, ranks: rank != 1)
    assert connected() == ([None] * RANKS, ["no GPU memory that the ranks share"] * RANKS)
    assert len(Memory.made) == 2 and all(memory.closed for memory in Memory.made)


def test_one_rank_that_cannot_map_an_inbox_leaves_all_with_nccl() -> None:
    Memory.cannot_map = {2}
    assert connected() == ([None] * RANKS, ["no GPU memory that the ranks share"] * RANKS)
    assert len(Memory.made) == RANKS and all(memory.closed for memory in Memory.made)


def wrong_on_rank_2(*kinds: type) -> Callable[..., bool]:
    return lambda collectives, end, *_: not (collectives.rank == 2 and isinstance(end, kinds))


def test_one_rank_whose_sums_are_wrong_leaves_all_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot, "sound", wrong_on_rank_2(OneShot, WideSum))
    said = "sums in one shot did not come out right; wide sums did not come out right"
    assert connected() == ([None] * RANKS, [said] * RANKS)
    assert all(memory.closed for memory in Memory.made)


@pytest.mark.parametrize("wrong", [OneShot, WideSum])
def test_the_way_that_is_right_on_every_rank_is_used_alone(
    wrong: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, bool]] = []

    def measured(
        collectives: object, small: OneShot | None, wide: WideSum | None, *_: object, in_two: bool, flagless: bool
    ) -> Limits:  # fmt: skip
        assert in_two == flagless == (wide is not None)
        asked.append((small is not None, wide is not None))
        return Limits(0, 32) if wide else Limits(8, 8, 8)

    monkeypatch.setattr(one_shot, "sound", wrong_on_rank_2(wrong))
    monkeypatch.setattr(one_shot, "measure", measured)
    found, compared = connected()
    assert asked == [(wrong is WideSum, wrong is OneShot)] * RANKS
    name = "sums in one shot" if wrong is OneShot else "wide sums"
    way = "(0, 32, 0)" if wrong is OneShot else f"(8, 8, 8); {SENDING}"
    assert compared == [f"{way}; {name} did not come out right"] * RANKS
    for sums in found:
        assert sums is not None
        assert sums.takes(torch.zeros(1, WIDTH)[:, : WIDTH // 2]) == (wrong is WideSum)
        assert sums.gathers(torch.zeros(1, 3, dtype=torch.int32)) == (wrong is WideSum)
        assert sums.norms(torch.zeros(32, WIDTH // 2)) == (wrong is OneShot)


def test_two_shots_are_tried_only_where_they_are_right_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        one_shot, "measure", lambda *_, in_two, flagless: Limits(8, 32, 8, two_shots=16 if in_two else 0)
    )
    assert [sums._wide.two_shots for sums in connected()[0] if sums is not None] == [16] * RANKS
    monkeypatch.setattr(one_shot, "sound_in_two_shots", wrong_on_rank_2(WideSum))
    assert [sums._wide.two_shots for sums in connected()[0] if sums is not None] == [0] * RANKS


def test_products_send_by_themselves_only_where_that_is_faster_and_sound_on_every_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.zeros(1, WIDTH, dtype=torch.bfloat16)
    assert all(sums is not None and sums.outlet(x) is not None for sums in connected()[0])
    assert all(sums is not None and sums.outlet(x.expand(2, -1)) is None for sums in connected()[0]), (
        "what is tuned for two rows may be cuBLAS on one rank and not on another"
    )
    with monkeypatch.context() as patch:
        patch.setattr(one_shot, "measure_products", lambda *_: (2e-5, 1e-5))
        assert all(sums is not None and sums.outlet(x) is None and sums.takes(x) for sums in connected()[0])
    monkeypatch.setattr(one_shot, "sound_products", lambda collectives, *_: collectives.rank != 1)
    assert all(sums is not None and sums.outlet(x) is None and sums.takes(x) for sums in connected()[0])


def test_what_goes_without_flags_must_come_out_right_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        one_shot, "measure", lambda *_, in_two, flagless: Limits(8, 32, 8, flagless=32 if flagless else 0)
    )
    assert [sums._wide.flagless for sums in connected()[0] if sums is not None] == [32] * RANKS
    monkeypatch.setattr(one_shot, "sound_flagless", lambda collectives, *_: collectives.rank != 2)
    assert [sums._wide.flagless for sums in connected()[0] if sums is not None] == [0] * RANKS


def test_no_message_is_measured_for_which_one_rank_lacks_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def measured(
        collectives, small, wide, device, width, dtype, sizes, *, in_two: bool, flagless: bool
    ) -> Limits:
        asked.append(sizes)
        return Limits(8, 32, 8)

    monkeypatch.setattr(one_shot, "measure", measured)
    connected()
    assert [sizes[-1] for sizes in asked] == [8192] * RANKS
    asked.clear()
    frees = iter([1 << 36, 16 * 2 * WIDTH * 300, 1 << 30])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (next(frees), 1 << 37))
    connected()
    assert asked == [[1, 8, 32, 128, 256, 300]] * RANKS


def test_what_is_not_faster_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_shot, "measure", lambda *_, in_two, flagless: Limits(0, 0))
    assert connected() == ([None] * RANKS, ["(0, 0, 0)"] * RANKS)
    assert all(memory.closed for memory in Memory.made)


class Asked:
    """An end, or the collectives, that notes what it was asked."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said
        self.clock = self

    def takes(self, x: torch.Tensor) -> bool:
        return True

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self.said.append(self.name)
        return x

    reduce = sum

    @contextmanager
    def timed(self, times: int):
        self.said.append(f"timed for {times}")
        yield

    def add_norm(self, delta: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        self.said.append(f"{self.name}, norm")
        return delta, delta

    @contextmanager
    def counted(self):
        self.said.append("counted")
        yield


def test_rows_choose_the_way_and_what_nccl_does_not_do_is_counted() -> None:
    said: list[str] = []
    ends = [Asked(name, said) for name in ("NCCL", "one shot", "wide")]
    sums = Sums(*ends, None, Limits(8, 32, 8))  # type: ignore[arg-type]
    rows = [torch.zeros(1, count, WIDTH) for count in (8, 9, 32, 33)]
    for x in rows:
        sums(x)
    assert said == ["counted", "one shot", "counted", "wide", "counted", "wide", "timed for 7", "NCCL"]
    assert [sums.takes(x) for x in rows] == [True, False, False, False]
    assert [sums.norms(x) for x in rows] == [True, True, True, False]
    said.clear()
    for x in rows[:3]:
        sums.add_norm(x, x, x[0, 0], 1e-6)
    assert said[1::2] == ["one shot, norm", "wide, norm", "wide, norm"]
    said.clear()
    for _ in range(14):
        sums(rows[3])
    assert said == [*["NCCL"] * 6, "timed for 7", "NCCL"] * 2, "one of seven, for all"


def test_sums_without_a_norm_go_in_one_shot_also_where_those_with_one_are_faster_in_wide_ones() -> None:
    said: list[str] = []
    ends = [Asked(name, said) for name in ("NCCL", "one shot", "wide")]
    sums, x = Sums(*ends, None, Limits(0, 32, 8)), torch.zeros(8, WIDTH)  # type: ignore[arg-type]
    sums(x)
    sums.add_norm(x, x, x[0], 1e-6)
    assert said[1::2] == ["one shot", "wide, norm"]
    assert sums.takes(x) and sums.norms(x)


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


def test_what_is_tried_is_given_up_when_a_rank_is_lost_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[bool] = []

    def tried(collectives: Collectives, end: OneShot, *_: object) -> bool:
        assert collectives.trial is not None
        monkeypatch.setattr(collectives.trial, "give_up", lambda: given_up.append(True))
        monkeypatch.setattr(collectives, "_group", SimpleNamespace(abort=lambda: None))
        collectives.abort()
        raise RuntimeError("aborted")

    collectives = Collectives(None, 0, 1, CPU, None)  # type: ignore[arg-type]
    monkeypatch.setattr(collectives, "exchange", lambda x: x[None])
    monkeypatch.setattr(one_shot, "sound", tried)
    with pytest.raises(RuntimeError, match="aborted"):
        connect(collectives, CPU, WIDTH, torch.bfloat16, 8192)
    assert given_up == [True] and collectives.trial is None


def test_an_interpreter_that_begins_no_more_threads_leaves_without_nccl(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    destroyed: list[bool] = []

    class Group:
        def abort(self) -> None: ...

        def __del__(self) -> None:
            destroyed.append(True)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    collectives = Collectives(Group(), 0, 2, torch.device("cuda", 0), None)  # type: ignore[arg-type]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    collectives.part()
    collectives.close()
    gc.collect()
    assert not destroyed

"""What the device is told of a batch: only what changed, as a whole or not at all, and right whoever comes and goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton runs on Linux only")

from graphed import Driver

from nanochat.engine import device_copies, device_state
from nanochat.engine.cuda_graphs import batch_sizes
from nanochat.engine.device_state import DeviceRows, first_rows
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.engine.sequence import Sequence
from nanochat.kernels.stream_calls import Staging, StreamCalls

BLOCKS = 8  # of a table
SEATS = 6


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9]), (17, [1, 2, 4, 8, 16, 17]),
        (64, [1, 2, 4, *range(8, 65, 8)]), (65, [1, 2, 4, *range(8, 65, 8), 65]),
        (100, [1, 2, 4, *range(8, 65, 8), 80, 96, 100]), (256, [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16)]),
    ],
)  # fmt: skip
def test_graphs_are_made_for_small_batches_and_for_steps_up_to_the_largest(
    largest: int, sizes: list[int]
) -> None:
    assert batch_sizes(largest) == sizes


class Short(TorchDispatchMode):
    """Memory runs out in the allocation `place`."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = self.left = place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            if self.left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.left -= 1
        return out


class Batch:
    """Sequences that decode, and the rows that know them. Their tokens are 100, 101, ... by position, and more by seat."""

    def __init__(self, most: int = 64) -> None:
        self.last_ids = torch.arange(SEATS) * 111
        self.staging = Staging(StreamCalls(Driver()), 8, most)
        self.rows = DeviceRows(SEATS, BLOCKS, self.last_ids, self.staging)
        self.made = 0

    def sequence(self, length: int, blocks: list[int], known: bool = False, **params: Any) -> Sequence:
        """It has `length` tokens and decodes the last of them, which the host knows if `known`."""
        text = tuple(range(100, 99 + length))
        self.made += 1
        sequence = Sequence(
            request_id=str(self.made), index=0, prompt=text, params=SamplingParams(**params), seed=2**64 - self.made,
            priority=0, arrival=self.made, submitted=0.0, max_tokens=99, root=b"", eos_ids=frozenset({7}),
        )  # fmt: skip
        sequence.blocks, sequence.seat = blocks, self.made - 1
        if known:
            sequence.tokens.append(99 + length)
        return sequence

    def run(self, chunks: list[Chunk]) -> list[Sequence]:
        """A step as the device does it: every row's next id is its id and one."""
        ordered = self.rows.upload(chunks)
        rows, _ = first_rows(self.rows.decode, self.rows.sampling, len(chunks))
        for tensor in (rows.ids, rows.positions, rows.context_lens, rows.counter):
            tensor.add_(1)
        tables, positions = rows.block_tables.long(), rows.positions[:, None]
        rows.slots.copy_((tables.gather(1, positions // 16) * 16 + positions % 16)[:, 0])
        return [chunk.sequence for chunk in ordered]

    def state(self) -> dict[str, Any]:
        """All that the device knows of the batch; tables as far as they are read."""
        named: dict[str, Any] = {}
        for group in (self.rows.decode, self.rows.sampling):
            named |= {name: getattr(group, name).tolist() for name in group.__slots__}
        contexts, tables = named["context_lens"], named["block_tables"]
        alive = [row for row, context in enumerate(contexts) if context]
        named = {name: [values[row] for row in alive] for name, values in named.items()}
        named["block_tables"] = [tables[row][: -(-contexts[row] // 16)] for row in alive]
        return named | {
            "contexts": contexts,
            "slots of empty rows": set(self.rows.decode.slots.tolist()[len(alive) :]),
        }


def decode(sequence: Sequence, ahead: int = 0) -> Chunk:
    return Chunk(sequence, len(sequence.prompt) + ahead, 1, True)


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        cuda_stream = 0

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream)


def test_a_newcomer_is_told_whole_and_rows_beyond_it_are_empty() -> None:
    batch = Batch()
    batch.sequence(1, [])  # takes seat 0
    params = {"temperature": 0.5, "top_k": 9, "top_p": 0.75, "min_p": 0.25, "stop_token_ids": [5]}
    first, second = batch.sequence(18, [3, 4], **params), batch.sequence(3, [5], known=True, temperature=0.0)
    assert batch.rows.upload([decode(first), decode(second)]) == [decode(first), decode(second)]
    rows, draw = batch.rows.decode, batch.rows.sampling
    assert rows.ids.tolist()[:2] == [111, 102], "from its seat, or as the host knows it"
    assert rows.positions.tolist()[:2] == [17, 2]
    assert rows.context_lens.tolist() == [18, 3, 0, 0, 0, 0]
    assert rows.slots.tolist() == [4 * 16 + 1, 5 * 16 + 2, -1, -1, -1, -1]
    assert rows.block_tables[0, :2].tolist() == [3, 4] and rows.block_tables[1, 0] == 5
    assert sorted(rows.stop_ids[0].tolist()) == [-1] * 6 + [5, 7]
    assert [x[0].item() for x in (draw.temperature, draw.top_k, draw.top_p, draw.min_p)] == [
        0.5,
        9,
        0.75,
        0.25,
    ]
    assert [x[1].item() for x in (draw.temperature, draw.top_k, draw.top_p, draw.min_p)] == [0.0, 0, 1.0, 0.0]
    assert draw.seed.tolist()[:2] == [-2, -3]


def test_who_stays_is_moved_on_the_device_and_who_comes_fills_up() -> None:
    batch = Batch()
    a, b, c = (batch.sequence(4, [i]) for i in range(3))
    assert batch.run([decode(a), decode(b), decode(c)]) == [a, b, c]
    late = batch.sequence(9, [5])
    assert batch.run([decode(c, 1), decode(late), decode(a, 1)]) == [a, c, late]
    assert batch.rows.decode.ids.tolist()[:3] == [0 + 2, 222 + 2, 333 + 1]
    assert batch.rows.decode.context_lens.tolist()[:4] == [6, 6, 10, 0]
    assert batch.run([decode(c, 2)]) == [c]
    assert batch.rows.decode.context_lens.tolist() == [7, 0, 0, 0, 0, 0]
    assert batch.rows.decode.slots.tolist()[1:] == [-1] * 5


def test_a_sequence_that_was_elsewhere_meanwhile_is_a_newcomer() -> None:
    batch = Batch()
    a, b = (batch.sequence(4, [i]) for i in range(2))
    batch.run([decode(a), decode(b)])
    assert batch.run([decode(a, 3), decode(b, 1)]) == [b, a]
    assert batch.rows.decode.positions.tolist()[:2] == [5, 7]
    assert batch.rows.decode.ids.tolist()[:2] == [111 + 2, 0 + 1]


def test_what_is_handed_back_is_the_token_that_each_row_drew_last() -> None:
    batch = Batch()
    a, b = (batch.sequence(4, [i]) for i in range(2))
    batch.run([decode(a), decode(b)])
    b.seat = -1  # preempted: its seat is another's
    batch.rows.hand_back()
    assert batch.last_ids.tolist() == [1, 111, 222, 333, 444, 555]
    assert not batch.rows.decode.context_lens.any() and (batch.rows.decode.slots == -1).all()


def test_a_row_whose_step_did_not_run_is_not_taken_for_another() -> None:
    """Its last token is on the device alone: what its seat holds is that of long ago."""
    batch = Batch()
    batch.sequence(1, [])
    a = batch.sequence(4, [1])
    batch.run([decode(a)])
    batch.rows.decode.ids[0] = 222
    batch.rows.step_back(batch.rows.upload([decode(a, 1)]))
    batch.rows.upload([decode(a, 1)])
    assert batch.rows.decode.ids[0] == 222, "not the 111 of its seat"


@pytest.mark.parametrize("most", [64, 0], ids=["staged", "sent"])
def test_tables_follow_blocks_that_come_and_that_are_exchanged(most: int) -> None:
    batch = Batch(most)
    a, b = batch.sequence(20, [1, 2]), batch.sequence(20, [3, 4])
    batch.run([decode(a), decode(b)])
    a.blocks += [5, 6]
    b.blocks[0], b.table_changed = 7, True
    batch.run([decode(a, 1), decode(b, 1)])
    tables = batch.rows.decode.block_tables
    assert tables[0, :4].tolist() == [1, 2, 5, 6] and tables[1, :2].tolist() == [7, 4]
    assert not b.table_changed


def later(batch: Batch) -> list[Chunk]:
    """A batch after three others: one row leaves in front, one joins, one has new blocks, one's were exchanged."""
    a, b, c = (batch.sequence(20, [4 * i + 1, 4 * i + 2]) for i in range(3))
    batch.run([decode(a), decode(b), decode(c)])
    b.blocks += [20, 21]
    c.blocks[0], c.table_changed = 22, True
    late = batch.sequence(9, [23])
    return [decode(b, 1), decode(late), decode(c, 1)]


@pytest.mark.parametrize("ended", [None, 0, 1, 2])
@pytest.mark.parametrize("most", [64, 0], ids=["staged", "sent"])
def test_rows_change_as_a_whole_or_not_at_all_wherever_memory_runs_out(most: int, ended: int | None) -> None:
    """What follows is the same step, or one without a reply that was ended for it."""
    right = Batch(most)
    right.rows.upload([chunk for place, chunk in enumerate(later(right)) if place != ended])
    places = 0
    while True:
        batch, short = Batch(most), Short(places)
        chunks = later(batch)
        try:
            with short:
                batch.rows.upload(chunks)
        except torch.OutOfMemoryError:
            places += 1
        else:
            break
        contexts, slots = batch.rows.decode.context_lens, batch.rows.decode.slots
        assert set(slots[contexts == 0].tolist()) <= {-1}, "an empty row writes nothing"
        batch.rows.upload([chunk for place, chunk in enumerate(chunks) if place != ended])
        assert batch.state() == right.state(), f"memory ran out in allocation {short.place}"
    assert places >= 20


def test_host_values_reach_a_device_as_they_are() -> None:
    assert device_copies.send([(1, 2)], torch.int64, torch.device("cpu")).tolist() == [[1, 2]]
    assert [device_state.signed(seed) for seed in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [
        0,
        2**63 - 1,
        -(2**63),
        -1,
    ]

"""Decode steps of several ranks, fused where a model is dense, in the interpreter: their logits side by side are those of the whole model.

Triton's interpreter runs one kernel at a time, so ranks are threads that pass each other a baton when they exchange.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch

from nanochat.engine import models
from nanochat.engine.fused_step import fused_decoder
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.decoder import Decoder
from nanochat.kernels.bundle import FusedReduce
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.reference import ReferenceKernels
from nanochat.kernels.triton_one_shot import OneShot, inbox_bytes
from nanochat.kernels.triton_step import DecodeRows

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CPU = torch.device("cpu")
CHIP = SimpleNamespace(
    name="none", major=8, minor=0, multi_processor_count=4, shared_memory_per_block_optin=100_000
)
IDS = [5, 99, 130]  # the first rank's tokens and the last one's
WORDS = 64


class Baton:
    """Lets one rank compute at a time; `exchange` sends, lets the others come so far, and receives."""

    def __init__(self, ranks: int) -> None:
        self._turn, self._here = threading.Lock(), threading.Barrier(ranks, timeout=120)

    def run(self, compute: Callable[[], object]) -> None:
        try:
            with self._turn:
                compute()
        except BaseException:
            self._here.abort()
            raise

    def exchange(self, launch: Callable[..., object]) -> object:
        launch(receive=False)
        self._turn.release()
        try:
            self._here.wait()
        finally:
            self._turn.acquire()
        return launch(send=False)


class Passing(FusedReduce):
    """A rank's sums; `deaf` to the exchange with this number, it goes on with what it has itself."""

    def __init__(self, baton: Baton, end: OneShot, deaf: int = -1, sends: bool = True) -> None:
        self._baton, self._end, self._deaf, self.count, self._sends = baton, end, deaf, 0, sends

    def _exchange(self, delta, x, weight, eps):
        self.count += 1
        if self.count - 1 == self._deaf:
            return (delta if x is None else delta + x), None
        return self._baton.exchange(lambda **ways: self._end._launch(delta, x, weight, eps, **ways))

    def __call__(self, x):
        return self._exchange(x, None, None, 0.0)[0]

    def takes(self, x):
        return self._end.takes(x)

    norms = takes

    def add_norm(self, delta, x, weight, eps):
        return self._exchange(delta, x, weight, eps)

    def add(self, delta, x, *, pdl=False):
        return self._exchange(delta, x, None, 0.0)[0]

    def outlet(self, x):
        return self._end.outlet(x) if self._sends else None

    def collect(self, x, *, pdl=False):
        self.count += 1
        if self.count - 1 == self._deaf:
            return x
        return self._baton.exchange(lambda **ways: None if "receive" in ways else self._end.collect(x))


def decode_rows(ids: list[int]) -> DecodeRows:
    count = len(ids)
    return DecodeRows(
        ids=torch.tensor(ids), positions=torch.zeros(count, dtype=torch.int64),
        context_lens=torch.ones(count, dtype=torch.int32), slots=torch.arange(count) * 16,
        block_tables=torch.arange(count, dtype=torch.int32)[:, None], counter=torch.zeros(count, dtype=torch.int64),
        stop_ids=torch.full((count, 2), -1, dtype=torch.int32),
    )  # fmt: skip


def cache_of(model: Decoder) -> list[tuple[torch.Tensor, torch.Tensor]]:
    shape = (len(IDS), 16, model.num_kv_heads, model.config.head_dim)
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(model.config.num_layers)]


def load(folder, monkeypatch, kernels, rank=0, ranks=1, reduce=None) -> Decoder:
    monkeypatch.setattr(models, "pick", lambda device, **_: kernels)
    model = models.load_model(
        folder, ModelConfig.from_folder(folder), dtype=torch.float32, device=CPU, rank=rank, world_size=ranks,
        reduce=reduce, gather=lambda share: share,
    )  # fmt: skip
    assert isinstance(model, Decoder)
    return model


def plain_hidden(model: Decoder, ids: list[int]) -> torch.Tensor:
    rows = decode_rows(ids)
    layout = AttentionLayout(
        slots=rows.slots, block_tables=rows.block_tables,
        query_start=torch.arange(len(ids) + 1, dtype=torch.int32), context_lens=rows.context_lens,
        query_lens=[1] * len(ids), contexts=[1] * len(ids), tables=[[row] for row in range(len(ids))],
        max_context=1,
    )  # fmt: skip
    return model.forward(rows.ids, rows.positions, layout, cache_of(model))


def whole_logits(folder, monkeypatch, ids: list[int]) -> torch.Tensor:
    model = load(folder, monkeypatch, ReferenceKernels(CPU))
    return model.logits(plain_hidden(model, ids))


def divided_logits(
    folder, monkeypatch, ids: list[int], ranks: int, deaf: int = -1, sends: bool = True
) -> tuple[torch.Tensor, int]:
    """(the ranks' logits side by side, exchanges); every rank is deaf to the exchange `deaf`; products send, or do not."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: CHIP)
    memory = [torch.zeros(inbox_bytes(ranks, 8, WORDS) // 8, dtype=torch.int64) for _ in range(ranks)]
    inboxes, baton = [each.data_ptr() for each in memory], Baton(ranks)
    sums = [
        Passing(baton, OneShot(inboxes, rank, 8, WORDS, CPU, 2, parts=2), deaf, sends)
        for rank in range(ranks)
    ]
    parts = [torch.empty(0)] * ranks

    def step(rank: int, model: Decoder) -> None:
        fused = fused_decoder(model)
        assert (fused is None) == (model.config.experts is not None)
        starts = torch.arange(len(ids) + 1, dtype=torch.int32)
        with torch.inference_mode():
            if fused is None:
                parts[rank] = model.share_of_logits(plain_hidden(model, ids))
            else:
                parts[rank] = fused.logits(decode_rows(ids), starts, cache_of(model))

    threads = []
    for rank in range(ranks):
        model = load(folder, monkeypatch, CudaKernels(CPU), rank, ranks, sums[rank])
        threads.append(
            threading.Thread(target=baton.run, args=(lambda rank=rank, model=model: step(rank, model),))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({end.count for end in sums}) == 1
    return torch.cat(parts, dim=1), sums[0].count


@pytest.mark.parametrize(
    ("ids", "sends"), [(IDS[2:], True), (IDS[2:], False), (IDS, True)], ids=["sent", "exchanged", "many rows"]
)
def test_ranks_in_fused_steps_give_the_whole_model_and_every_exchange_counts(
    ids: list[int], sends: bool, tiny_folder, monkeypatch
) -> None:
    folder = tiny_folder("qwen3")
    whole = whole_logits(folder, monkeypatch, ids)
    divided, exchanges = divided_logits(folder, monkeypatch, ids, 2, sends=sends)
    assert divided.shape == whole.shape
    assert (divided - whole).abs().max() < 1e-3 * whole.abs().max()
    assert exchanges == 1 + 2 * 3, "the embedding, and two in each of three layers"
    for deaf in (0, 2) if sends and len(ids) == 1 else ():
        found, _ = divided_logits(folder, monkeypatch, ids, 2, deaf, sends)
        assert (found - whole).abs().max() > 1e-2 * whole.abs().max(), deaf


def test_ranks_of_a_mixture_give_the_whole_model_and_every_exchange_counts(tiny_folder, monkeypatch) -> None:
    """In plain steps: the sum over the experts' columns is exchanged with what follows it."""
    folder = tiny_folder("qwen3_moe")
    whole = whole_logits(folder, monkeypatch, IDS)
    normed: list[int] = []
    add_norm = Passing.add_norm

    def counted(self: Passing, *args: torch.Tensor) -> object:
        normed.append(1)
        return add_norm(self, *args)

    monkeypatch.setattr(Passing, "add_norm", counted)
    divided, exchanges = divided_logits(folder, monkeypatch, IDS, 2)
    assert (divided - whole).abs().max() < 1e-3 * whole.abs().max()
    assert exchanges == 1 + 2 * 3, "the embedding, and two in each of three layers"
    assert len(normed) == 2 * 2 * 3, "all but the embedding's, of both ranks"
    found, _ = divided_logits(folder, monkeypatch, IDS, 2, deaf=2)
    assert (found - whole).abs().max() > 1e-2 * whole.abs().max()

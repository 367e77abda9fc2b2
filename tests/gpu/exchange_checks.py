"""What each rank checks of sums in one shot and of wide ones: the ranks are processes that `test_one_shot` starts.

A check gets this rank's end, a store that all ranks have, and which of how many this one is; it says what it found.
"""

from __future__ import annotations

import time
from functools import reduce
from typing import Any

import torch

ROWS, WIDTH, CAPACITY = 8, 2048, 4096
WIDE_ROWS, WIDE = (1, 3, 300, 512, 1300), 4096  # of bfloat16
WAYS = (
    (0, 0),
    (1, 0),
    (0, 512),
    (0, 512),
    (1, 0),
    (0, 0),
    (0, 512),
)  # two shots from, without flags up to so many rows
WIDE_ROOM = 512  # rows in a launch: the last ones take three


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank % torch.cuda.device_count())


def shared(store, rank: int, ranks: int, looks: int):
    """(this rank's end, its memory): inboxes are made, handed around and mapped."""
    from nanochat.kernels.peer_memory import PeerMemory
    from nanochat.kernels.triton_one_shot import OneShot, inbox_bytes
    from nanochat.kernels.triton_wide_sum import wide_bytes

    size = inbox_bytes(ranks, ROWS, CAPACITY) + wide_bytes(ranks, WIDE_ROOM, 2 * WIDE)
    memory = PeerMemory(size, device_of(rank))
    store.set(f"handle {rank}", memory.handle.hex())
    handles = [bytes.fromhex(store.get(f"handle {other}").decode()) for other in range(ranks)]
    inboxes = [memory.address if other == rank else memory.map(handles[other]) for other in range(ranks)]
    return OneShot(inboxes, rank, ROWS, CAPACITY, device_of(rank), looks), memory


def wide_of(end):
    """The rank's end of wide sums, whose inbox is behind the other."""
    from nanochat.kernels.triton_one_shot import inbox_bytes
    from nanochat.kernels.triton_wide_sum import WideSum

    begin = inbox_bytes(end.ranks, ROWS, CAPACITY)
    return WideSum([inbox + begin for inbox in end._inboxes.tolist()], WIDE_ROOM, 2 * WIDE, end)


def meet(store, name: str, rank: int, ranks: int) -> None:
    """Wait until every rank is here: none may be compiling while another waits on the GPU."""
    torch.cuda.synchronize()
    store.set(f"{name} {rank}", "here")
    for other in range(ranks):
        store.get(f"{name} {other}")


def numbers(
    round_: int, ranks: int, rows: int, dtype: torch.dtype, width: int = WIDTH
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What every rank knows that all ranks have: (deltas, x)."""
    draw = torch.Generator().manual_seed(1000 * round_ + rows)
    *deltas, x = (torch.randn(rows, width, generator=draw).to(dtype).cuda() for _ in range(ranks + 1))
    return deltas, x


def worst(found: tuple[torch.Tensor, torch.Tensor], deltas, x, weight) -> float:
    """The largest difference from the same in float64, in units of the dtype's precision (2 and less is rounding)."""
    total = sum(delta.double() for delta in deltas) + x.double()
    stored = found[1].double()
    normed = stored / (stored.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    step = torch.finfo(x.dtype).eps
    return max(
        float(((found[1].double() - total).abs() / (total.abs() + 1)).max()) / step,
        float(((found[0].double() - normed).abs() / (normed.abs() + 1)).max()) / step,
    )


def check_launched(end, store, rank: int, ranks: int) -> dict[str, Any]:
    weight, found = torch.rand(WIDTH, generator=torch.Generator().manual_seed(1)).cuda(), {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        deltas, x = numbers(0, ranks, ROWS, dtype)
        end._launch(deltas[rank], x, weight.to(dtype), 1e-6, receive=False)  # compiled before anybody waits
        end._launch(deltas[rank], None, None, 0.0, receive=False)
        meet(store, f"warm {dtype}", rank, ranks)
        for round_ in range(4):
            rows = (ROWS, 1, 3, ROWS)[round_]
            deltas, x = numbers(round_, ranks, rows, dtype)
            pair = end.add_norm(deltas[rank], x, weight.to(dtype), 1e-6)
            only = end.sum(deltas[rank])
            words = torch.arange(3 * rows, dtype=torch.int32, device="cuda").view(rows, 3) + 1000 * round_
            beside = end.gather(words + 100 * rank)
            added = end.add(deltas[rank], x, pdl=torch.cuda.get_device_capability() >= (9, 0))
            torch.cuda.synchronize()
            assert torch.equal(beside, torch.stack([words + 100 * other for other in range(ranks)])), beside
            assert torch.equal(added, pair[1]), (added - pair[1]).abs().max()
            off = worst(pair, deltas, x, weight.to(dtype))
            whole = sum(delta.double() for delta in deltas)
            off = max(
                off, float(((only.double() - whole).abs() / (whole.abs() + 1)).max()) / torch.finfo(dtype).eps
            )
            found[f"{dtype} {round_} rows {rows}"] = round(off, 2)
            store.set(f"bits {dtype} {round_} {rank}", str(pair[1].double().sum().item()))
            bits = {store.get(f"bits {dtype} {round_} {other}") for other in range(ranks)}
            assert len(bits) == 1, f"ranks disagree: {bits}"
    before = end.clock.seconds()
    with end.clock.timed():
        torch.cuda._sleep(2_000_000)  # cycles: a millisecond or so
    torch.cuda.synchronize()
    assert 3e-4 < end.clock.seconds() - before < 0.1, end.clock.seconds() - before
    return {"off": found, "ms in exchanges": round(1e3 * end.clock.seconds(), 1)}


def check_replayed(end, store, rank: int, ranks: int) -> dict[str, Any]:
    """Six exchanges in a graph, replayed over inputs that change."""
    dtype = torch.bfloat16
    weight = torch.ones(WIDTH, dtype=dtype, device="cuda")
    delta, x = (
        torch.zeros(2, WIDTH, dtype=dtype, device="cuda"),
        torch.zeros(2, WIDTH, dtype=dtype, device="cuda"),
    )

    def step() -> torch.Tensor:
        h, total = delta, x
        for _ in range(6):
            h, total = end.add_norm(h, total, weight, 1e-6)
        return total

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    found = {}
    for replay in range(4):
        meet(store, f"replay {replay}", rank, ranks)
        deltas, start = numbers(replay, ranks, 2, dtype)
        delta.copy_(deltas[rank])
        x.copy_(start)
        graph.replay()
        torch.cuda.synchronize()
        total = start.double()
        hs = [d.double() for d in deltas]
        for _ in range(6):  # after the first exchange all ranks hold the same
            total = total + sum(hs)
            normed = total / (total.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
            hs = [normed] * ranks
        found[f"replay {replay}"] = round(float(((out.double() - total).abs() / (total.abs() + 1)).max()), 4)
        store.set(f"replayed {replay} {rank}", str(out.double().sum().item()))
        bits = {store.get(f"replayed {replay} {other}") for other in range(ranks)}
        assert len(bits) == 1, f"ranks disagree: {bits}"
    return {"off": found, "rounds": end._rounds.tolist()}


def check_products(end, store, rank: int, ranks: int) -> dict[str, Any]:
    """Chains of products of one row that send their results, and of such whose results are exchanged; and us a product."""
    from nanochat.kernels.gemv_config import GemvConfig
    from nanochat.kernels.triton_gemv import gemv

    pdl, dtype = torch.cuda.get_device_capability() >= (9, 0), torch.bfloat16
    config = GemvConfig(4, 256, prefetch=12)
    draw = torch.Generator().manual_seed(1)
    whole = [(torch.randn(WIDTH, ranks * 512, generator=draw) / 32).to(dtype) for _ in range(4)]
    weights = [each[:, rank * 512 : (rank + 1) * 512].contiguous().cuda() for each in whole]
    inputs = torch.randn(1, ranks * 512, generator=draw).to(dtype)
    x = torch.randn(1, WIDTH, generator=draw).to(dtype)
    expected = x.double() + sum(inputs.double() @ each.double().T for each in whole)
    found: dict[str, float] = {}
    times: dict[str, float] = {}
    y, start = inputs[:, rank * 512 : (rank + 1) * 512].contiguous().cuda(), x.cuda()

    def sent(x, weight, y=y):
        gemv(y, weight, pdl=pdl, late=True, to=end.outlet(x), config=config)
        return end.collect(x, pdl=pdl)

    def exchanged(x, weight, y=y):
        return end.add(gemv(y, weight, pdl=pdl, config=config), x, pdl=pdl)

    def mixed(x, weight, y=y):
        end.sum(x)  # rounds that are nobody's business
        end.add_norm(x, x, x[0], 1e-6)
        return (sent if weight is weights[0] or weight is weights[3] else exchanged)(x, weight)

    for name, step in (("sent", sent), ("exchanged", exchanged), ("mixed", mixed)):
        meet(store, name, rank, ranks)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for weight in weights:
                step(start, weight)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outs = [reduce(step, weights, start) for _ in range(5)]  # each x is what came out before
        meet(store, f"{name} captured", rank, ranks)
        for turn in range(3):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            graph.replay()
            ended.record()
            torch.cuda.synchronize()
            times[name] = round(1e3 * began.elapsed_time(ended) / 20, 2)
            assert all(torch.equal(out, outs[0]) for out in outs), (name, turn)
        off = ((outs[0].cpu().double() - expected).abs() / (expected.abs() + 1)).max()
        found[name] = round(float(off) / torch.finfo(dtype).eps, 2)
        store.set(f"bits {name} {rank}", str(outs[-1].double().sum().item()))
        bits = {store.get(f"bits {name} {other}") for other in range(ranks)}
        assert len(bits) == 1, f"ranks disagree: {bits}"
    return {"off": found, "us": times}


def check_wide(end, store, rank: int, ranks: int) -> dict[str, Any]:
    """A message of each size, by turns in one shot, in two and without flags: launched, then in a graph that is replayed over
    inputs that change."""
    wide, graph, found = wide_of(end), torch.cuda.CUDAGraph(), {}
    inputs = [tuple(torch.zeros(2, rows, WIDE, dtype=torch.bfloat16, device="cuda")) for rows in WIDE_ROWS]
    weight = torch.rand(WIDE, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).cuda()

    def step() -> list[tuple[torch.Tensor, torch.Tensor]]:
        out = []
        for wide.two_shots, wide.flagless in WAYS:
            out += [wide.add_norm(delta, x, weight, 1e-6) for delta, x in inputs]
        return out

    for turn in range(4):
        drawn = [numbers(turn, ranks, rows, torch.bfloat16, WIDE) for rows in WIDE_ROWS]
        for (delta, x), (deltas, start) in zip(inputs, drawn, strict=True):
            delta.copy_(deltas[rank])
            x.copy_(start)
        if turn == 1:
            with torch.cuda.graph(graph):
                out = step()
        meet(store, f"turn {turn}", rank, ranks)
        if turn == 0:
            out = step()
            for delta in (delta for delta, _ in inputs if end.takes(delta)):
                sums = [end.sum(delta)]
                for wide.two_shots, wide.flagless in WAYS:
                    sums.append(wide.sum(delta))
                assert all(torch.equal(each, sums[0]) for each in sums), "all add in the same order"
        else:
            graph.replay()
        torch.cuda.synchronize()
        for at, (pair, (deltas, start)) in enumerate(zip(out, drawn * len(WAYS), strict=True)):
            assert torch.equal(pair[0], out[at % len(drawn)][0]), "whichever way"
            found[f"turn {turn}, {at}, rows {len(start)}"] = round(worst(pair, deltas, start, weight), 2)
            store.set(f"bits {turn} {at} {rank}", str(pair[0].double().sum().item()))
            bits = {store.get(f"bits {turn} {at} {other}") for other in range(ranks)}
            assert len(bits) == 1, f"ranks disagree: {bits}"
    seconds = end.clock.seconds()
    assert 0 < seconds < 60, seconds
    return {"off": found, "ms in exchanges": round(1e3 * seconds, 1)}


def check_lost(end, store, rank: int, ranks: int) -> dict[str, Any]:
    """The last rank does not come; afterwards nobody waits again."""
    x = torch.ones(1, WIDTH, dtype=torch.bfloat16, device="cuda")
    end._launch(x, x, x[0], 1e-6, receive=False)
    meet(store, "warm", rank, ranks)
    if rank == ranks - 1:
        return {}
    end.add_norm(x, x, x[0], 1e-6)  # what the last rank sent when it was compiled is there
    torch.cuda.synchronize()
    began = time.perf_counter()
    first = end.add_norm(x, x, x[0], 1e-6)[0]
    torch.cuda.synchronize()
    waited = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(50):
        end.add_norm(x, x, x[0], 1e-6)
    torch.cuda.synchronize()
    again = time.perf_counter() - began
    wide = wide_of(end).sum(torch.ones(512, WIDTH, dtype=torch.bfloat16, device="cuda"))
    nan = bool(first.isnan().all() & wide.isnan().all())
    return {"nan": nan, "failed": end.failed.item(), "waited": waited, "again": again}


def check_told(end, store, rank: int, ranks: int) -> dict[str, Any]:
    """The last rank does not come, and the others are told so while they wait."""
    x = torch.ones(1, WIDTH, dtype=torch.bfloat16, device="cuda")
    end._launch(x, x, x[0], 1e-6, receive=False)
    meet(store, "warm", rank, ranks)
    if rank == ranks - 1:
        return {}
    end.add_norm(x, x, x[0], 1e-6)  # what the last rank sent when it was compiled is there
    torch.cuda.synchronize()
    first = end.add_norm(x, x, x[0], 1e-6)[0]
    done = torch.cuda.Event()
    done.record()
    waits = not done.query()
    end.give_up()
    torch.cuda.synchronize()
    return {"waits": waits, "nan": bool(first.isnan().all())}


CHECKS = {
    "launched": check_launched, "replayed": check_replayed, "products": check_products, "wide": check_wide,
    "lost": check_lost, "told": check_told,
}  # fmt: skip

"""Sums in one shot between processes: two that share one GPU, or one for each GPU where there are several.

Each rank is this file run as a script, once for all checks. Ranks meet in a folder (a file store), look at every result
themselves and end with one line of JSON. Processes that share a GPU take turns of milliseconds: rounds are few.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

ROWS, WIDTH, CAPACITY = 8, 2048, 4096
WAIT = 45.0


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank % torch.cuda.device_count())


def shared(store, rank: int, ranks: int, looks: int):
    """(this rank's end, its memory): inboxes are made, handed around and mapped."""
    from nanochat.kernels.peer_memory import PeerMemory
    from nanochat.kernels.triton_one_shot import OneShot, inbox_bytes

    memory = PeerMemory(inbox_bytes(ranks, ROWS, CAPACITY), device_of(rank))
    store.set(f"handle {rank}", memory.handle.hex())
    handles = [bytes.fromhex(store.get(f"handle {other}").decode()) for other in range(ranks)]
    inboxes = [memory.address if other == rank else memory.map(handles[other]) for other in range(ranks)]
    return OneShot(inboxes, rank, ROWS, CAPACITY, device_of(rank), looks), memory


def meet(store, name: str, rank: int, ranks: int) -> None:
    """Wait until every rank is here: none may be compiling while another waits on the GPU."""
    torch.cuda.synchronize()
    store.set(f"{name} {rank}", "here")
    for other in range(ranks):
        store.get(f"{name} {other}")


def numbers(
    round_: int, ranks: int, rows: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What every rank knows that all ranks have: (deltas, x)."""
    draw = torch.Generator().manual_seed(1000 * round_ + rows)
    return [torch.randn(rows, WIDTH, generator=draw).to(dtype).cuda() for _ in range(ranks)], torch.randn(
        rows, WIDTH, generator=draw
    ).to(dtype).cuda()


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
    before = end.seconds()
    with end.timed():
        torch.cuda._sleep(2_000_000)  # cycles: a millisecond or so
    torch.cuda.synchronize()
    assert 3e-4 < end.seconds() - before < 0.1, end.seconds() - before
    return {"off": found, "ms in exchanges": round(1e3 * end.seconds(), 1)}


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
    """Products that send their results by themselves, and those whose results are exchanged: the same; and us a product."""
    from nanochat.kernels.gemv_config import GemvConfig
    from nanochat.kernels.triton_gemv import gemv

    pdl, dtype = torch.cuda.get_device_capability() >= (9, 0), torch.bfloat16
    draw = torch.Generator().manual_seed(1)
    whole = (torch.randn(WIDTH, ranks * 512, generator=draw) / 32).to(dtype)
    weights = [whole[:, rank * 512 : (rank + 1) * 512].contiguous().cuda() for _ in range(4)]
    inputs = torch.randn(ROWS, ranks * 512, generator=draw).to(dtype)
    x = torch.randn(ROWS, WIDTH, generator=draw).to(dtype)
    expected = x.double() + inputs.double() @ whole.double().T
    found: dict[str, float] = {}
    times: dict[str, float] = {}
    for rows in (1, 3, ROWS):
        y, start = inputs[:rows, rank * 512 : (rank + 1) * 512].contiguous().cuda(), x[:rows].cuda()

        def sent(weight, y=y, start=start):
            gemv(y, weight, pdl=pdl, late=True, to=end.outlet(start), config=GemvConfig(4, 256, prefetch=12))
            return end.collect(start, pdl=pdl)

        def exchanged(weight, y=y, start=start):
            delta = gemv(y, weight, pdl=pdl, config=GemvConfig(4, 256, prefetch=12))
            return end.add(delta, start, pdl=pdl)

        for name, step in (("sent", sent), ("exchanged", exchanged)):
            meet(store, f"{name} {rows}", rank, ranks)
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                step(weights[0])
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outs = [step(weight) for weight in weights * 5]
            meet(store, f"{name} {rows} captured", rank, ranks)
            for turn in range(3):
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                graph.replay()
                ended.record()
                torch.cuda.synchronize()
                times[f"{name} {rows}"] = round(1e3 * began.elapsed_time(ended) / len(outs), 2)
                assert all(torch.equal(out, outs[0]) for out in outs), (name, rows, turn)
            off = ((outs[0].cpu().double() - expected[:rows]).abs() / (expected[:rows].abs() + 1)).max()
            found[f"{name} {rows}"] = round(float(off) / torch.finfo(dtype).eps, 2)
            store.set(f"{name} {rows} {rank}", str(outs[-1].double().sum().item()))
            assert len({store.get(f"{name} {rows} {other}") for other in range(ranks)}) == 1
    return {"off": found, "us": times}


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
    return {"nan": bool(first.isnan().all()), "failed": end.failed.item(), "waited": waited, "again": again}


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
    "launched": check_launched,
    "replayed": check_replayed,
    "products": check_products,
    "lost": check_lost,
    "told": check_told,
}


def main(rank: int, ranks: int, folder: Path) -> None:
    from datetime import timedelta

    from torch._C._distributed_c10d import FileStore, PrefixStore

    torch.cuda.set_device(device_of(rank))
    base = FileStore(str(folder / "store"), ranks)
    base.set_timeout(timedelta(seconds=WAIT))
    said: dict[str, Any] = {}
    for name, check in CHECKS.items():
        store, began = PrefixStore(name, base), time.perf_counter()
        try:
            end, memory = shared(store, rank, ranks, 1 << 20 if name == "lost" else 1 << 27)
            said[name] = check(end, store, rank, ranks)
            meet(store, "end", rank, ranks)
            said[name] |= {"failed": end.failed.item(), "seconds": round(time.perf_counter() - began, 2)}
            memory.close()
        except Exception:  # told, with what went before
            said[name] = {"error": traceback.format_exc()[-2000:]}
            break
    print(json.dumps(said), flush=True)


@pytest.fixture(scope="module")
def said() -> list[dict[str, Any]]:
    """What each rank said of each check; printed, so that a failure shows all of it."""
    ranks = max(2, torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank), str(ranks), folder],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        heard = []
        for process in started:
            try:
                out, errors = process.communicate(timeout=WAIT)
            except subprocess.TimeoutExpired:
                for other in started:
                    other.kill()
                out, errors = process.communicate()
                errors += f"\nit was ended after {WAIT} s"
            heard.append((process.returncode, out, errors[-3000:]))
    words = "\n".join(
        f"rank {rank}, code {code}:\n{out}\n{errors}" for rank, (code, out, errors) in enumerate(heard)
    )
    print(words)
    assert all(code == 0 for code, _, _ in heard), words
    return [json.loads(out.strip().splitlines()[-1]) for _, out, _ in heard]


@pytest.mark.parametrize(("check", "limit"), [("launched", 3.0), ("replayed", 0.1), ("products", 3.0)])
def test_every_rank_gets_the_sum(check: str, limit: float, said: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(said):
        assert "off" in one.get(check, {}), (rank, one)
        assert not one[check]["failed"], (rank, one)
        assert all(off < limit for off in one[check]["off"].values()), (rank, one)


def test_a_rank_that_does_not_come_ends_in_nan_and_not_in_waiting(said: list[dict[str, Any]]) -> None:
    first = said[0].get("lost", {})
    assert first.get("nan") and first["failed"] == 1, said[0]
    assert first["again"] < max(first["waited"], 1.0), said[0]


def test_who_waits_can_be_told_that_nobody_comes(said: list[dict[str, Any]]) -> None:
    first = said[0].get("told", {})
    assert first.get("waits") and first["nan"] and first["failed"] == 1, said[0]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

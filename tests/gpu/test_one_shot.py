"""Sums in one shot, and wide ones, between processes: two that share one GPU, or one for each GPU where there are several.

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

WAIT = 45.0


def main(rank: int, ranks: int, folder: Path) -> None:
    from datetime import timedelta

    from exchange_checks import CHECKS, device_of, meet, shared
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


@pytest.mark.parametrize(
    ("check", "limit"), [("launched", 3.0), ("replayed", 0.1), ("products", 6.0), ("wide", 3.0)]
)
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

"""What other threads of the program cost a reply: one spins in pure Python, one holds the interpreter lock for 20 ms every 50.

    python tests/gpu/interference.py --shape qwen3-0.6b [--device cuda] [--tokens 2000]

Decode must lose at most 3 %, and of 20 new requests 19 must start within 10 ms, of 20 stops 19 be there within 20: while the
lock is held for 20, nobody can see one. The interpreter is asked for its lock as often as in the application (`--switch`). Prints
one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from nanochat.benchmarks.known_shapes import write_shape
from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import CompletionOutput
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService

MOST_LOST, MOST_TO_START, MOST_TO_STOP = 0.03, 10.0, 20.0  # a share; milliseconds
_BEGAN = time.perf_counter()
HELD, EVERY = 0.020, 0.050
_LIBRARY = ctypes.PyDLL(None)  # its calls keep the lock


def spin(stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        for _ in range(1000):
            number = (number * 31 + 7) % 1_000_003


def hold(stop: threading.Event) -> None:
    while not stop.wait(EVERY - HELD):
        _LIBRARY.usleep(int(HELD * 1e6))


@contextmanager
def beside(work: Callable[[threading.Event], None] | None) -> Iterator[None]:
    """With a thread that does `work`."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True) if work is not None else None
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread is not None:
            thread.join()


class Engine:
    """A service with a model of random weights."""

    def __init__(self, folder: Path, device: str, longest: int) -> None:
        self.service = EngineService()
        config = EngineConfig(
            model=folder, device=device, dtype="bfloat16", max_num_seqs=4, skip_tokenizer=True, random_weights=True,
            max_model_len=longest, enable_prefix_caching=False,
        )  # fmt: skip
        self.service.load(config).wait()
        self._draw = random.Random(0)

    def submit(self, tokens: int, prompt: int = 32) -> Any:
        ids = tuple(self._draw.randrange(1000) for _ in range(prompt))
        return self.service.submit(
            Request(ids, SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.6))
        )

    def rate(self, tokens: int) -> float:
        """Tokens a second of one reply after its first."""
        metrics = finished(self.submit(tokens)).metrics
        return (metrics.output_tokens - 1) / metrics.decode_time

    def starts(self, count: int, tokens: int) -> list[float]:
        """Milliseconds from submit to the start of requests that come while a reply runs."""
        running = self.submit(tokens)
        next(iter(running))
        waits = [1e3 * finished(self.submit(1)).metrics.queue_time for _ in range(count)]
        running.cancel()
        finished(running)
        return waits

    def stops(self, count: int, tokens: int) -> list[float]:
        """Milliseconds from the wish to stop a running reply to its end."""
        waits: list[float] = []
        for _ in range(count):
            running = self.submit(tokens)
            next(iter(running))
            asked = time.perf_counter()
            running.cancel()
            finished(running)
            waits.append(1e3 * (time.perf_counter() - asked))
        return waits


def finished(stream: Any) -> CompletionOutput:
    for delta in stream:
        if delta.finished is not None:
            return delta.finished
    raise RuntimeError("the stream ended without a result")


def measure(engine: Engine, tokens: int, repeats: int, requests: int) -> dict[str, Any]:
    """Rates in turns, so that a drift of the machine's own speed falls on all alike; then starts and stops."""
    kinds = {"alone": None, "spinning": spin, "holding": hold}
    engine.rate(tokens)
    while (core := engine.service.core) is not None and core.unprepared:
        time.sleep(0.1)
    say("warm")
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, work in kinds.items():
            with beside(work):
                rates[name].append(engine.rate(tokens))
                say(f"{name}: {rates[name][-1]:.0f} tok/s")
    found: dict[str, Any] = {"part": "interference", "ok": True}
    alone = statistics.median(rates["alone"])
    for name, work in kinds.items():
        with beside(work):
            starts, stops = engine.starts(requests, tokens), engine.stops(requests, tokens)
        say(f"{name}: starts {spread(starts)}, stops {spread(stops)}")
        rate = statistics.median(rates[name])
        found[name] = {
            "tok/s": round(rate, 1), "lost": round(1 - rate / alone, 4), "start ms": spread(starts),
            "stop ms": spread(stops),
        }  # fmt: skip
        found["ok"] = (
            found["ok"] and 1 - rate / alone <= MOST_LOST
            and most_of(starts) <= MOST_TO_START and most_of(stops) <= MOST_TO_STOP
        )  # fmt: skip
    return found


def say(text: str) -> None:
    """How far it is, for who reads the log of a run that was cut off."""
    print(f"{time.perf_counter() - _BEGAN:.1f} s: {text}", flush=True)


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2), "most": round(most_of(values), 2), "worst": round(max(values), 2)
    }  # fmt: skip


def most_of(values: list[float]) -> float:
    """What 95 of 100 do not exceed."""
    return sorted(values)[-(-95 * len(values) // 100) - 1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--switch", type=float, default=0.0005, help="seconds; Python's own is 0.005")
    options = parser.parse_args()
    sys.setswitchinterval(options.switch)
    with tempfile.TemporaryDirectory() as made:
        say("loading")
        engine = Engine(write_shape(options.shape, Path(made)), options.device, options.tokens + 64)
        result = measure(engine, options.tokens, options.repeats, options.requests)
        engine.service.close()
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

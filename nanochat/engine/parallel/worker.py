"""A worker process: one rank of a model, from its start to its end. Run by `processes.py`, never by hand.

It loads its share, then does every step that rank 0 does, on the same data and in the same order. It ends when rank 0
closes its socket, and at once when rank 0's process is gone.
"""

from __future__ import annotations

import gc
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.engine import garbage
from nanochat.engine.config import EngineConfig
from nanochat.engine.parallel.channel import Pulse, Receiver, SharedMemory
from nanochat.engine.parallel.line import Line
from nanochat.errors import EngineDead, NanochatError, OutOfMemory
from nanochat.kernels.headway import DEVICE, IMPORTING, JOINING, longer, witnessed

if TYPE_CHECKING:
    import torch

    from nanochat.engine.parallel.collectives import Collectives
    from nanochat.engine.parallel.messages import StepReader
    from nanochat.engine.runner import ModelRunner

_BEAT = 0.2  # seconds
_ASKED_SECONDS = (
    1.0  # between two looks at whether the device waited in vain, each of which waits for the device
)


def main(arguments: list[str]) -> None:
    """Arguments: rank, ranks, descriptors of the memory, the socket and the lifeline, rank 0's process, the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    rank, ranks, memory, end, lifeline, parent = map(int, arguments[:6])
    shared = SharedMemory(memory, ranks)
    folder = Path(arguments[6])
    threading.Thread(target=_live, args=(lifeline, parent, shared.pulse(rank), folder), daemon=True).start()
    work(rank, ranks, shared, Line(socket.socket(fileno=end)), folder, settle=garbage.settle)
    os._exit(0)  # libraries' threads may be in a collective that will never end


def work(
    rank: int, ranks: int, shared: SharedMemory, line: Line, folder: Path, *, settle: Callable[[], None] = lambda: None
) -> None:  # fmt: skip
    """Be a rank until rank 0 closes. What goes wrong is told to rank 0, and raised.

    Args:
        settle: called when all is loaded, before the first step: all ranks wait for one that stops to collect garbage.
    """
    try:
        with witnessed(shared.pulse(rank)):
            _serve(rank, ranks, shared, line, folder, settle)
    except BrokenPipeError:
        pass  # rank 0 has closed
    except Exception as error:
        kind, text = _describe(error)
        line.send(word="failed", kind=kind, text=text)
        raise


def _live(lifeline: int, parent: int, pulse: Pulse, folder: Path) -> None:
    """Say that this process lives; end it when rank 0's has ended."""
    while not select.select([lifeline], [], [], _BEAT)[0] and os.getppid() == parent:
        pulse.beat(len(sys.modules))
    # Rank 0 removes the folder when it closes; if it was killed, it could not.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _serve(
    rank: int, ranks: int, shared: SharedMemory, line: Line, folder: Path, settle: Callable[[], None]
) -> None:
    """Load a share, then do every step that comes; returns when rank 0 has closed."""
    with longer(IMPORTING):
        import torch

    from nanochat.engine.loading import allocate_kv, load_share
    from nanochat.engine.models.config import ModelConfig
    from nanochat.engine.parallel.collectives import join
    from nanochat.engine.parallel.divided_sampler import divided_sampler
    from nanochat.engine.parallel.messages import StepReader
    from nanochat.engine.runner import ModelRunner

    pulse = shared.pulse(rank)
    line.send(word="started")
    with pulse.news():
        order = line.receive()
    if order is None:
        return
    fields: dict[str, Any] = order["config"]
    fields["model"] = Path(order["config"]["model"])
    config = EngineConfig(**fields)
    device, dtype = torch.device(order["device"]), getattr(torch, order["dtype"])
    _take(device, order["threads"])
    with pulse.collective(), longer(JOINING if device.type == "cuda" else 0.0):
        collectives = join(folder, rank, ranks, device, pulse)
    model_config = ModelConfig.from_folder(config.model)
    model, memory = load_share(config, model_config, device, dtype, collectives)
    line.send(
        word="loaded", num_blocks=memory.num_blocks, weights=memory.weights, block_bytes=memory.block_bytes,
        bytes_read=model.bytes_read,
    )  # fmt: skip
    with pulse.news():
        order = line.receive()
    if order is None:
        collectives.part()
        return
    kv_cache = allocate_kv(model, order["num_blocks"], dtype, device)
    runner = ModelRunner(
        model, kv_cache, config, device, order["max_model_len"], samples=device.type == "cuda",
        divided=divided_sampler(model, collectives, deterministic=config.deterministic),
    )  # fmt: skip
    receiver, steps = Receiver(shared, rank, line.socket), StepReader()
    settle()
    line.send(word="ready")
    _do_steps(runner, receiver, steps, collectives)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        runner.close()
        gc.collect()
        collectives.part()


def _do_steps(runner: ModelRunner, receiver: Receiver, steps: StepReader, collectives: Collectives) -> None:
    """Every step that comes, until rank 0 has closed. Raises EngineDead when another rank missed a sum."""
    asked = time.monotonic()
    while (message := receiver.receive()) is not None:
        runner.dispatch(steps.read(message))
        one_shot, now = collectives.one_shot, time.monotonic()
        if one_shot is not None and now - asked > _ASKED_SECONDS:
            asked = now
            if one_shot.lost:  # its sums are NaN from then on, which rank 0 cannot tell from a model's
                raise EngineDead("another rank did not come to a sum")


def _take(device: torch.device, threads: int) -> None:
    """Make a device this process's own."""
    import torch

    if device.type == "cuda":
        with longer(DEVICE):
            torch.cuda.set_device(device)
            torch.cuda.synchronize(device)
    else:
        torch.set_num_threads(threads)


def _describe(error: Exception) -> tuple[str, str]:
    """An error's type and text, as rank 0 is told."""
    from nanochat.engine.memory import is_out_of_memory

    if isinstance(error, NanochatError):
        return type(error).__name__, str(error)
    if is_out_of_memory(error):
        return OutOfMemory.__name__, f"it ran out of memory ({str(error).splitlines()[0][:200]})"
    return (
        EngineDead.__name__,
        f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}",
    )


if __name__ == "__main__":
    main(sys.argv[1:])

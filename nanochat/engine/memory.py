"""How many KV blocks a device has room for, and what to say when it has not."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.host import memory_available, swap_free
from nanochat.errors import OutOfMemory
from nanochat.kernels.shortage import is_out_of_memory as is_out_of_memory

log = logging.getLogger("nanochat.engine")

GIB = 2**30
LEAST_CONTEXT = 2048
"""Tokens that a chat needs at least; a model that fits with fewer is said not to fit."""
WEIGHTS_SHARE = 0.75
"""Of a GPU's usable memory: a model whose weights take more is split, the rest is for keys, values and the work of a step."""
_CPU_SHARE = 0.5  # of the free memory: the rest is for the activations, the page cache and everybody else
_CPU_CONTEXTS = 8  # by default, as much as this many conversations of full length
_OVERCOMMIT_SHARE = 0.9  # of the free memory, for one context of LEAST_CONTEXT, where the user insists
_CPU_LEAST = GIB  # ... or this much, whichever is more


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The arithmetic of a load; everything in bytes but the block counts."""

    weights: int
    reserve: int
    free: int
    block_bytes: int
    num_blocks: int
    max_model_len: int
    weights_held: int = 0
    """What the weights were seen to take once they were loaded; 0 before that."""

    @property
    def kv_bytes(self) -> int:
        """What the KV cache takes."""
        return self.num_blocks * self.block_bytes


def gib(size: float) -> str:
    """Bytes for people: `1.25 GiB`, `310 MiB`."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def host_memory_free(*, swap: bool = False) -> int:
    """Bytes that a new allocation can have: what the system has left, or the control group if that is less.

    With `swap`, swap space counts too: what goes there is slow.
    """
    free = memory_available() + (swap_free() if swap else 0)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return free
    return free if limit == "max" else min(free, max(int(limit) - int(used), 0))


def warn_if_shorter(config: EngineConfig, context: int) -> None:
    """Say in the log that a model was made for fewer tokens than were asked for.

    It is loaded with its own context all the same: one setting may be for models of all sizes.
    """
    if config.max_model_len is not None and config.max_model_len > context:
        log.warning(
            "max_model_len %s is more than %s was made for: its own context of %s tokens is used",
            f"{config.max_model_len:,}", config.name, f"{context:,}",
        )  # fmt: skip


def plan(
    config: EngineConfig,
    *,
    context: int,
    block_bytes: int,
    free: int,
    weights: int,
    reserve: int,
    on_cpu: bool,
    ranks: int = 1,
) -> MemoryPlan:
    """Choose the number of KV blocks and the longest sequence.

    Args:
        context: tokens that the model was made for.
        block_bytes: of one block in all layers.
        free: bytes that are left now, after the weights.
        weights: bytes that the weights took.
        reserve: bytes to leave for the work of a step.
        ranks: how many share what `config.kv_cache_bytes` allows; all else is of one of them.

    Raises:
        OutOfMemory: not one block fits, or `config.max_model_len` was asked for and does not fit. With
            `config.overcommit` less than that is given, too: as little as LEAST_CONTEXT tokens.
    """
    wanted = min(config.max_model_len or context, context)
    room = max(int(free * _CPU_SHARE) if on_cpu else free - reserve, 0)
    cap = None if config.kv_cache_bytes is None else config.kv_cache_bytes // ranks
    if cap is not None:
        room = min(room, cap)
    elif on_cpu:
        per_context = -(-wanted // BLOCK_SIZE) * block_bytes
        room = min(room, max(_CPU_CONTEXTS * per_context, _CPU_LEAST))
    if config.overcommit:
        least = -(-min(wanted, LEAST_CONTEXT) // BLOCK_SIZE) * block_bytes
        least = min(least, cap or least)
        room = max(room, least if least <= free * _OVERCOMMIT_SHARE else 0)
    num_blocks = config.num_blocks if config.num_blocks is not None else room // block_bytes
    fits = num_blocks * BLOCK_SIZE
    found = MemoryPlan(weights, reserve, free, block_bytes, num_blocks, min(wanted, fits))
    if num_blocks < 1 or (config.max_model_len is not None and fits < wanted and not config.overcommit):
        capped = config.num_blocks is None and cap is not None and room >= cap
        raise _refused(found, config, wanted, room, on_cpu, capped)
    return found


def _refused(
    found: MemoryPlan, config: EngineConfig, wanted: int, room: int, on_cpu: bool, capped: bool
) -> OutOfMemory:
    """The arithmetic of a plan with too few blocks for `wanted` tokens, `room` bytes of them, and what would fit.

    `capped`: it is the user's own cap that left no more.
    """
    fits = found.num_blocks * BLOCK_SIZE
    needed = -(-wanted // BLOCK_SIZE) * found.block_bytes
    light = LEAST_CONTEXT // BLOCK_SIZE * found.block_bytes
    lighter = found.weights + found.free - (int(light / _CPU_SHARE) if on_cpu else light + found.reserve)
    needs = (
        f"a context of {wanted:,} tokens needs {gib(needed)} of KV cache "
        f"({found.block_bytes // BLOCK_SIZE:,} bytes a token)"
    )
    if capped:
        shorter = ", or set max_model_len (--max-model-len) to at most that" if fits else ""
        return OutOfMemory(
            f"{needs}, but kv_cache_bytes (engine.kv_cache_gib in the settings) allows {gib(room)}: "
            f"{fits:,} tokens fit. Allow more{shorter}."
        )
    if fits:
        then = "Set max_model_len (--max-model-len) to at most that, free memory, or take a smaller model."
    elif config.kv_cache_bytes is not None or config.num_blocks is not None or lighter <= 0:
        then = "Free memory, or take a smaller model."
    else:
        then = f"Free memory, or take a smaller model: beside {gib(lighter)} of weights, {LEAST_CONTEXT:,} such tokens fit."
    return OutOfMemory(
        f"{needs}, but {gib(max(room, 0))} is left of {gib(found.free)} free "
        f"after {gib(found.weights)} of weights and a reserve of {gib(found.reserve)}: {fits:,} tokens fit. {then}"
    )

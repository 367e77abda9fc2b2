"""A loaded engine's figures as they stand at a moment, from its core, its cache, its memory and its ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.engine.outputs import EngineStats

if TYPE_CHECKING:
    from nanochat.engine.core import EngineCore


def snapshot(core: EngineCore, state: str, load_seconds: float) -> EngineStats:
    """What it says now. Any thread may ask while the engine's goes on: figures of one moment, not of one step."""
    prefill, decode = core.statistics.rates()
    cache, memory = core.cache, core.memory
    return EngineStats(
        state=state,
        model=core.config.name,
        device=str(core.device),
        dtype=str(core.dtype).removeprefix("torch."),
        max_model_len=core.max_model_len,
        running=len(core.scheduler.running),
        waiting=len(core.scheduler.waiting),
        blocks_total=cache.num_blocks,
        blocks_free=cache.num_free,
        blocks_cached=cache.num_cached,
        blocks_used=cache.num_used,
        block_size=cache.block_size,
        prefill_rate=prefill,
        decode_rate=decode,
        prefill_tokens=core.statistics.prefill_tokens,
        cached_tokens=core.statistics.cached_tokens,
        decode_tokens=core.statistics.decode_tokens,
        preemptions=core.scheduler.preemptions,
        steps=core.statistics.steps,
        weight_bytes=memory.weights,
        weights_held=memory.weights_held,
        reserve_bytes=memory.reserve,
        kv_bytes=memory.kv_bytes,
        load_seconds=load_seconds,
        ranks=core.ranks,
        **({} if core.group is None else core.group.figures()),
    )

"""From a model's folder to something that runs: config, weights, tokenizer, KV tensors, in that order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.first_step import refuse_unrunnable
from nanochat.engine.memory import MemoryPlan, gib, host_memory_free, is_out_of_memory, plan, warn_if_shorter
from nanochat.engine.models import Model, load_model
from nanochat.engine.models.alone import give_up
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.footprint import bytes_held
from nanochat.engine.parallel.placement import choose_ranks
from nanochat.engine.refusals import Demand
from nanochat.engine.reserve import measure_reserve
from nanochat.engine.runner import ModelRunner
from nanochat.engine.step import KVTensors
from nanochat.engine.tokenizer import Tokenizer
from nanochat.errors import NanochatError, OutOfMemory, UsageError
from nanochat.kernels.compiler_key import compiler_key
from nanochat.kernels.headway import MEASURING, longer

if TYPE_CHECKING:
    from nanochat.engine.parallel.collectives import Collectives
    from nanochat.engine.parallel.divided_sampler import DividedSampler
    from nanochat.engine.parallel.group import RankGroup
    from nanochat.engine.parallel.runner import ParallelRunner

Progress = Callable[[int, int], None]
"""Called with (bytes loaded, bytes in all)."""

WhenStuck = Callable[[NanochatError], None]
"""Called from another thread, when the one that loaded a model over several devices hangs in a call that does not return."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    model: Model
    runner: ModelRunner | ParallelRunner
    tokenizer: Tokenizer | None  # None: prompts are token ids
    device: torch.device
    dtype: torch.dtype
    memory: MemoryPlan
    fingerprint: str
    group: RankGroup | None = None  # the other ranks of a tensor-parallel model


def load(
    config: EngineConfig, progress: Progress | None = None, when_stuck: WhenStuck | None = None
) -> Loaded:
    """Load a model and allocate its KV cache.

    Raises:
        ModelNotFound, InvalidModel, UnsupportedModel: the folder is not what it should be.
        OutOfMemory: weights or KV cache do not fit; the text holds the arithmetic.
    """
    model_config = ModelConfig.from_folder(config.model)
    tokenizer = None if config.skip_tokenizer else Tokenizer.from_folder(config.model)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, model_config, device)
    warn_if_shorter(config, model_config.max_position_embeddings)
    if device.type == "cuda":
        compiler_key()
        torch.cuda.set_device(device)  # this thread's, for whatever asks for the current stream
    ranks = choose_ranks(config, model_config, device, dtype)
    if ranks > 1:
        model, runner, memory = _load_parallel(
            config, model_config, device, dtype, ranks, progress, when_stuck
        )
    else:
        model, memory = load_share(config, model_config, device, dtype, None, progress)
        kv_cache = allocate_kv(model, memory.num_blocks, dtype, device)
        runner = _make_runner(model, kv_cache, config, device, memory)
    return Loaded(
        model=model,
        runner=runner,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        memory=memory,
        fingerprint=f"{config.model.resolve()}|{dtype}",
        group=None if isinstance(runner, ModelRunner) else runner.group,
    )


def load_share(
    config: EngineConfig,
    model_config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    collectives: Collectives | None,
    progress: Progress | None = None,
) -> tuple[Model, MemoryPlan]:
    """One rank's share of a model (all of it, without collectives), and how many KV blocks fit beside it."""
    ranks = 1 if collectives is None else collectives.ranks
    on_gpu = device.type == "cuda"
    if on_gpu:
        compiler_key()
    free = memory_free(device, config)
    demand = Demand.of(model_config, config.name, device, dtype, ranks)
    weights, no_room = demand.weights, demand.weights_refused(free, model_config)
    if weights > free and not (config.overcommit and _may_overcommit(weights, device)):
        raise no_room
    if collectives is not None and on_gpu and not config.deterministic:
        from nanochat.engine.parallel.one_shot import connect

        with longer(MEASURING):
            compiler_key().join()
            most = max(config.max_num_batched_tokens, config.max_num_seqs)
            collectives.one_shot = connect(collectives, device, model_config.hidden_size, dtype, most)
    try:
        model = _read_share(config, model_config, device, dtype, collectives, progress)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise no_room from error
    reserve = _reserve(model, config, device, dtype, demand) if on_gpu else 0
    memory = plan(
        config,
        context=model_config.max_position_embeddings,
        block_bytes=_block_bytes(model, dtype),
        free=memory_free(device, config) // (ranks if device.type == "cpu" else 1),
        weights=weights if collectives is None else model.num_bytes,
        reserve=reserve,
        on_cpu=not on_gpu,
        ranks=ranks,
    )
    return model, replace(memory, weights_held=bytes_held(model, device))


def _read_share(
    config: EngineConfig,
    model_config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    collectives: Collectives | None,
    progress: Progress | None,
) -> Model:
    rank, ranks = (0, 1) if collectives is None else (collectives.rank, collectives.ranks)
    gather = None if collectives is None else partial(collectives.gather, vocabulary=model_config.vocab_size)
    model = load_model(
        config.model, model_config, dtype=dtype, device=device, rank=rank, world_size=ranks, progress=progress,
        reduce=None if collectives is None else collectives.sums, gather=gather, drawn=config.random_weights,
        deterministic=config.deterministic,
    )  # fmt: skip
    if collectives is None and not model_config.native:
        refuse_unrunnable(model, device, dtype)
    return model


def _load_parallel(
    config: EngineConfig,
    model_config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    ranks: int,
    progress: Progress | None,
    when_stuck: WhenStuck | None,
) -> tuple[Model, ParallelRunner, MemoryPlan]:
    from nanochat.engine.parallel.divided_sampler import divided_sampler
    from nanochat.engine.parallel.group import RankGroup
    from nanochat.engine.parallel.runner import ParallelRunner

    thread = threading.get_ident()

    def stuck(error: NanochatError) -> None:
        give_up(thread)
        if when_stuck is not None:
            when_stuck(error)

    group = RankGroup(config, ranks, device, dtype, None if when_stuck is None else stuck)

    def report(done: int, total: int) -> None:
        group.check()  # where a worker is lost, the rest need not be read
        if progress is not None:
            progress(done, total)

    try:
        with group.own_work():
            model, own = load_share(config, model_config, device, dtype, group.collectives, report)
            memory = group.agree(own, model.bytes_read)
            kv_cache = allocate_kv(model, memory.num_blocks, dtype, device)
            divided = divided_sampler(model, group.collectives, deterministic=config.deterministic)
            runner = _make_runner(model, kv_cache, config, device, memory, divided)
        group.start()
    except BaseException as error:
        group.close()
        if group.failure is not None and group.failure is not error:
            raise group.failure from error
        raise
    return model, ParallelRunner(runner, group), memory


def _reserve(
    model: Model, config: EngineConfig, device: torch.device, dtype: torch.dtype, demand: Demand
) -> int:
    """Bytes that the largest step takes on a GPU. Raises OutOfMemory when it finds no room."""
    alone = demand.ranks == 1
    with longer(0.0 if alone else MEASURING):
        compiler_key().join()
        reserve = measure_reserve(model, config, device, dtype, alone=alone)
    if reserve.shortage:
        asked = min(config.max_num_batched_tokens, model.config.max_position_embeddings)
        raise demand.step_refused(asked, config.max_num_seqs, memory_free(device, config), reserve)
    return reserve.size


def _make_runner(
    model: Model,
    kv_cache: KVTensors,
    config: EngineConfig,
    device: torch.device,
    memory: MemoryPlan,
    divided: DividedSampler | None = None,
) -> ModelRunner:
    try:
        return ModelRunner(model, kv_cache, config, device, memory.max_model_len, divided=divided)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"the state of {config.max_num_seqs} sequences found no room beside {gib(memory.weights)} of weights and a KV "
            f"cache of {gib(memory.kv_bytes)}, of {gib(memory.free + memory.weights)}: lower max_num_seqs or kv_cache_bytes"
        ) from error


def _block_bytes(model: Model, dtype: torch.dtype) -> int:
    """Of a block of this rank's heads in all layers."""
    config = model.config
    return 2 * BLOCK_SIZE * config.num_layers * model.num_kv_heads * config.head_dim * dtype.itemsize


def allocate_kv(model: Model, num_blocks: int, dtype: torch.dtype, device: torch.device) -> KVTensors:
    """A (keys, values) pair for each layer, each [num_blocks, BLOCK_SIZE, num_kv_heads, head_dim] of this rank."""
    shape = (num_blocks, BLOCK_SIZE, model.num_kv_heads, model.config.head_dim)

    def tensor() -> torch.Tensor:
        # Not zeros: on a host, pages that were never written take no memory and no time. Nothing unwritten is read.
        return torch.empty(shape, dtype=dtype, device=device)

    try:
        return [(tensor(), tensor()) for _ in range(model.config.num_layers)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        block = _block_bytes(model, dtype)
        raise OutOfMemory(
            f"a KV cache of {gib(num_blocks * block)} ({num_blocks * BLOCK_SIZE:,} tokens of {block // BLOCK_SIZE:,} bytes) found "
            f"no room beside {gib(model.num_bytes)} of weights: lower num_blocks or kv_cache_bytes"
        ) from error


def memory_free(device: torch.device, config: EngineConfig) -> int:
    """Bytes that may still be taken on `device`, within `config.gpu_memory_utilization` on a GPU."""
    if device.type != "cuda":
        return host_memory_free()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return max(int(free - (1 - config.gpu_memory_utilization) * total), 0)


def _may_overcommit(weights: int, device: torch.device) -> bool:
    """Whether more than what looks free can be tried: a GPU refuses what it has not, a host ends the process."""
    return device.type == "cuda" or weights <= host_memory_free(swap=True)


def choose_device(name: str) -> torch.device:
    """The device that a setting means. Raises UsageError."""
    if name == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is not a device: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"this engine runs on cpu and cuda, not on {device.type}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"{name} was asked for and there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def choose_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype that a setting means for a model on a device. Raises UsageError."""
    if name == "auto":
        name = "bfloat16" if device.type == "cpu" or config.dtype not in _DTYPES else config.dtype
    if name not in _DTYPES:
        raise UsageError(f"dtype must be auto, {', '.join(_DTYPES)}, not {name!r}")
    return _DTYPES[name]

"""Does a model fit? Weights, KV cache and a reserve against the memory that is free now, with the arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.engine.config import BLOCK_SIZE, EngineConfig
from nanochat.engine.memory import LEAST_CONTEXT, WEIGHTS_SHARE, gib, plan
from nanochat.errors import OutOfMemory
from nanochat.modelhub.device_memory import Memory, free_memory
from nanochat.modelhub.shape import Shape
from nanochat.settings import Paths, Settings

CUDA_SLACK = 512 << 20
"""What the engine sets aside on a GPU besides its measured step (`engine.loading`)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer, and what it rests on. Bytes, and tokens."""

    memory: Memory
    dtype: str
    weights: int
    kv_bytes_per_token: int
    reserve: int
    measured: bool
    """The reserve comes from a load on this device, not from a formula."""
    context: int
    """Tokens that fit; 0 when it does not."""
    model_context: int
    missing: int
    """Bytes that would have to be free besides; 0 when it fits."""
    least: int
    """Tokens that it must have to be said to fit."""
    devices: int = 1
    """GPUs that it is split over: weights, KV cache and reserve are those of each."""

    @property
    def fits(self) -> bool:
        """With a context that is of use."""
        return self.context > 0

    @property
    def text(self) -> str:
        """`fits with 32k`, or `needs 3.1 GB more`."""
        if self.fits:
            return f"fits with {tokens(self.context)}"
        return f"needs {self.missing / 1e9:.1f} GB more"

    def arithmetic(self) -> list[str]:
        """The sum, line by line."""
        kv = self.kv_bytes_per_token * self.context
        split = f", and {self.devices - 1} more: on each" if self.devices > 1 else ""
        lines = [
            f"device        {self.memory.name}{split}: {gib(self.memory.free)} of {gib(self.memory.total)} free"
            + (f", {gib(self.memory.usable)} for nanochat" if self.memory.usable != self.memory.free else "")
            + (
                f", with {gib(self.memory.returned)} that the loaded model gives back"
                if self.memory.returned
                else ""
            ),
            f"weights       {gib(self.weights)} in {self.dtype}",
            f"KV cache      {self.kv_bytes_per_token:,} bytes a token; "
            + (
                f"{self.context:,} tokens: {gib(kv)}"
                if self.fits
                else f"{self.least:,} tokens at least: {gib(self.kv_bytes_per_token * self.least)}"
            ),
        ]
        if self.memory.kind == "cuda":
            how = "measured here" if self.measured else "estimated; measured at the first load"
            lines.append(f"reserve       {gib(self.reserve)} for the work of a step ({how})")
        else:
            lines.append(
                "reserve       half of what the weights leave: activations, page cache, everybody else"
            )
        lines.append(f"so it         {self.text} (the model was made for {tokens(self.model_context)})")
        return lines

    def beside(self, weights: int, context: int) -> list[str]:
        """Estimate and truth after a load: bytes that the weights were seen to take, tokens that are possible."""
        off = round((self.weights - weights) / weights * 100, 1) + 0.0 if weights else 0.0
        guess = f"{self.context:,} tokens estimated" if self.fits else f"estimated not to fit ({self.text})"
        return [
            f"weights       {gib(self.weights)} estimated, {gib(weights)} taken ({off:+.1f} %)",
            f"context       {guess}, {context:,} possible",
        ]


def tokens(count: int) -> str:
    """`512`, `6k`, `32k`, `128k`: rounded down."""
    return str(count) if count < 1024 else f"{count // 1024}k"


def least(model_context: int) -> int:
    """The smallest context of use of a model."""
    return min(LEAST_CONTEXT, model_context)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user's settings say about a load."""

    dtype: str = "auto"
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    devices: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """From the settings, where 0 is "no limit"."""
        cap = int(settings.kv_cache_gib * 2**30) or None
        return cls(settings.dtype, settings.max_model_len or None, cap, settings.tensor_parallel_size or None)

    def least(self, model_context: int, kv_bytes_per_token: int, devices: int = 1) -> int:
        """The smallest context of use: what the user asks for, which the engine gives whole or not at all.

        `kv_bytes_per_token`: on one of so many devices.
        """
        wanted = min(self.max_model_len, model_context) if self.max_model_len else least(model_context)
        if self.kv_cache_bytes is None:
            return wanted
        return max(
            min(wanted, self.kv_cache_bytes // devices // (BLOCK_SIZE * kv_bytes_per_token) * BLOCK_SIZE), 1
        )


def fit(
    shape: Shape,
    memory: Memory,
    *,
    reserves: Reserves | None = None,
    key: str = "",
    limits: Limits | None = None,
) -> Fit:
    """Whether, and with how much context, a model runs in the memory that is free now.

    Args:
        reserves: what loads on this machine were seen to need; `key` names the model there.
        limits: what the user has set.
    """
    limits = limits or Limits()
    dtype = shape.run_dtype(memory.kind) if limits.dtype == "auto" else limits.dtype
    on_cpu = memory.kind == "cpu"  # where ranks share the memory
    devices = 1 if on_cpu else limits.devices or _devices(shape, memory, shape.weight_bytes(dtype))
    weights = shape.weight_bytes(dtype) // devices
    per_token = shape.kv_bytes_per_token(dtype) // min(devices, shape.kv_heads)
    known = reserves.of(memory.name, key) if reserves is not None else None
    reserve = 0 if on_cpu else known if known is not None else step_bytes(shape, dtype)
    wanted = limits.least(shape.context, per_token, devices)
    room = _room(
        shape, memory, limits, weights=weights, per_token=per_token, reserve=reserve, devices=devices
    )
    kv = -(-wanted // BLOCK_SIZE) * BLOCK_SIZE * per_token
    missing = max(weights + reserve + kv * (2 if on_cpu else 1) - memory.usable, 0) if room < wanted else 0
    context = room if room >= wanted else 0
    return Fit(
        memory, dtype, weights, per_token, reserve, known is not None, context, shape.context, devices * missing, wanted,
        devices,
    )  # fmt: skip


def _room(
    shape: Shape, memory: Memory, limits: Limits, *, weights: int, per_token: int, reserve: int, devices: int
) -> int:
    """Tokens of context by the engine's own plan, so that what is promised here is what a load gives; 0 where it refuses."""
    try:
        return plan(
            EngineConfig(
                model=Path(), max_model_len=limits.max_model_len, kv_cache_bytes=limits.kv_cache_bytes
            ),
            context=shape.context,
            block_bytes=BLOCK_SIZE * per_token,
            free=max(memory.usable - weights, 0),
            weights=weights,
            reserve=reserve,
            on_cpu=memory.kind == "cpu",
            ranks=devices,
        ).max_model_len
    except OutOfMemory:
        return 0


def _devices(shape: Shape, memory: Memory, weights: int) -> int:
    """Over how many GPUs a load would split it by itself: as `engine.parallel.placement` does, without asking a GPU."""
    dividing = [
        number
        for number in range(1, memory.devices + 1)
        if (shape.kv_heads % number == 0 or number % shape.kv_heads == 0) and shape.intermediate % number == 0
    ]
    enough = [number for number in dividing if weights / number <= memory.usable * WEIGHTS_SHARE]
    return (enough or dividing[-1:])[0]


def step_bytes(shape: Shape, dtype: str = "bfloat16") -> int:
    """What the largest step needs besides weights and cache, by formula: activations of one layer, and logits."""
    config = EngineConfig(model=Path())
    size = 4 if dtype == "float32" else 2
    activations = config.max_num_batched_tokens * (3 * shape.intermediate + 6 * shape.hidden) * size
    logits = config.max_num_seqs * shape.vocabulary * (size + 4 + 4)
    return activations + logits + CUDA_SLACK


@dataclass
class Reserves:
    """What loads on this machine needed besides weights and cache: a small file, by device and model."""

    file: Path
    _known: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    @classmethod
    def load(cls, data: Path) -> Reserves:
        """The measurements in the data folder; none when there is no such file."""
        file = data / "reserves.json"
        try:
            found: Any = json.loads(file.read_text(encoding="utf-8"))
            known = {str(name): {str(k): int(v) for k, v in by.items()} for name, by in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            known = {}
        return cls(file, known)

    def of(self, device: str, key: str) -> int | None:
        """Measured for this very model; None when it never was loaded on the device."""
        return self._known.get(device, {}).get(key)

    def note(self, device: str, key: str, reserve: int) -> None:
        """A load has measured its reserve (`MemoryPlan.reserve`)."""
        from nanochat.transfer.durable import write_whole

        self._known.setdefault(device, {})[key] = reserve
        write_whole(self.file, json.dumps(self._known))


@dataclass(frozen=True, slots=True)
class Ruler:
    """Measures many models against one reading of the memory."""

    memory: Memory
    reserves: Reserves
    limits: Limits = Limits()

    @classmethod
    def of(cls, paths: Paths, settings: Settings, *, held: int = 0) -> Ruler:
        """With the device of the settings, as it is now; `held` bytes are those of a model that makes room."""
        memory = free_memory(settings.device, settings.gpu_memory_utilization).with_returned(held)
        return cls(memory, Reserves.load(paths.data), Limits.of(settings))

    def fit(self, key: str, shape: Shape | None) -> Fit | None:
        """Whether it fits; `key` is the model's name. None when its shape is not known."""
        if shape is None:
            return None
        return fit(shape, self.memory, reserves=self.reserves, key=key, limits=self.limits)

    def text(self, key: str, shape: Shape | None, parameters: int | None) -> str:
        """The answer in words, also when no more than the number of parameters is known."""
        found = self.fit(key, shape)
        if found is not None:
            return found.text
        if parameters is None:
            return "?"
        missing = 2 * parameters - self.memory.usable
        return f"needs {missing / 1e9:.1f} GB more" if missing > 0 else "weights fit"

"""How an engine is set up: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from nanochat.errors import UsageError

BLOCK_SIZE = 16
STEP_TOKENS = 8192
_SWITCHES = (
    "overcommit", "enforce_eager", "enable_prefix_caching", "deterministic", "skip_tokenizer", "random_weights",
)  # fmt: skip
_DTYPES = {"half": "float16", "float": "float32"}  # vLLM's other names


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine is made of and how far it may go.

    Args:
        model: a model's folder (config.json, tokenizer.json, *.safetensors).
        dtype: "auto" (the model's on CUDA; bfloat16 on a CPU), "bfloat16", "float16" or "float32". "half", "float" and
            torch's own, such as `torch.float16`, are taken too, and stored as these names.
        device: "auto" (cuda if there is one), "cpu", "cuda", "cuda:1".
        max_model_len: the longest prompt plus reply, in tokens; `None` is the model's own context, or as
            much of it as the KV cache holds. More than the model's own context is that, with a warning in the log: one
            setting may be for models of all sizes.
        max_num_seqs: sequences in one step at most.
        max_num_batched_tokens: tokens in one step at most: decode tokens first, prefill chunks in the rest.
        prefill_beside_decodes: prefill tokens at most in a step that also decodes: this bounds the gap between two
            tokens of a running reply while a long prompt is read. `None` follows from what such steps take: 15 ms are
            aimed at on CUDA, 100 ms on a CPU.
        gpu_memory_utilization: the fraction of the device's memory that weights, cache and work space may take.
        overcommit: try even where it looks as if there were no room: take memory that is otherwise left to others, and
            swap space on a host. It still fails with OutOfMemory rather than bring the machine down.
        kv_cache_bytes: a cap on the KV cache, over all devices together; `None` follows from the memory that is free.
        num_blocks: exactly so many KV blocks (tests, benchmarks).
        enforce_eager: no CUDA graphs.
        enable_prefix_caching: reuse the KV blocks of equal prefixes.
        prefix_salt: separates prefix caches: equal prefixes under different salts share nothing.
        tensor_parallel_size: over how many devices a model is split. `None` is as few of the GPUs that are there as
            hold the model, and one on a CPU.
        deterministic: batch-invariant kernels: a reply is the same bits alone or in company, with a cached prefix or
            a computed one, in graphs or without; slower. For models of our own decoder, on at most two devices.
        skip_tokenizer: read no tokenizer: prompts are token ids and results have no text.
        random_weights: draw the weights instead of reading them, so that a config.json is enough (benchmarks).
        seed: where the seeds of requests without one are drawn from; `None` is the system's entropy.

    Raises:
        UsageError: a number that is none, or outside of its range; a switch that is neither True nor False.
    """

    model: Path
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = STEP_TOKENS
    prefill_beside_decodes: int | None = None
    gpu_memory_utilization: float = 0.9
    overcommit: bool = False
    kv_cache_bytes: int | None = None
    num_blocks: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    prefix_salt: str = ""
    tensor_parallel_size: int | None = None
    deterministic: bool = False
    skip_tokenizer: bool = False
    random_weights: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        dtype = str(self.dtype).removeprefix("torch.")
        object.__setattr__(self, "dtype", _DTYPES.get(dtype, dtype))
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            _whole(name, getattr(self, name), least=1)
        for name in (
            "max_model_len", "prefill_beside_decodes", "num_blocks", "kv_cache_bytes", "tensor_parallel_size",
        ):  # fmt: skip
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least=1)
        if self.seed is not None:
            _whole("seed", self.seed)
        for name in _SWITCHES:
            object.__setattr__(self, name, _switch(name, getattr(self, name)))
        share = self.gpu_memory_utilization
        if not isinstance(share, Real) or not 0 < share <= 1:
            raise UsageError(f"gpu_memory_utilization must be above 0 and at most 1, not {share!r}")

    @property
    def name(self) -> str:
        """What people call the model: its folder's name, or the repository's of a snapshot in the Hugging Face cache."""
        folder = Path(self.model).absolute()
        repository = folder.parent.parent.name
        if folder.parent.name == "snapshots" and repository.startswith("models--"):
            return repository.removeprefix("models--").replace("--", "/")
        return folder.name


def _whole(name: str, value: Any, *, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} must be a whole number, not {value!r}")
    if least is not None and int(value) < least:
        raise UsageError(f"{name} must be at least {least}, not {value}")


def _switch(name: str, value: Any) -> bool:
    """Python's own bool, also of NumPy's; "no" and 0 are neither, since what is meant by them is a guess."""
    kind = type(value)
    if kind is not bool and (kind.__module__, kind.__name__.rstrip("_")) != ("numpy", "bool"):
        raise UsageError(f"{name} must be True or False, not {value!r}")
    return bool(value)

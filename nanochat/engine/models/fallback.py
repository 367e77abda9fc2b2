"""Any other decoder that Transformers can run with a pluggable attention function, inside the same paged cache.

Transformers computes everything but the attention; its attention function is ours, which writes and reads
the paged cache. It is imported here and nowhere else in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nanochat.engine.models.alone import alone
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.division import Division
from nanochat.engine.models.passed import Passed
from nanochat.engine.models.share_reading import divided_class, read_share, whole_model
from nanochat.engine.weights import Checkpoint
from nanochat.errors import InvalidModel, UnsupportedModel
from nanochat.kernels import pick
from nanochat.kernels.bundle import AttentionSpec, Gather, Kernels, Reduce
from nanochat.kernels.headway import TRANSFORMERS, longer, made, moving
from nanochat.kernels.layout import AttentionLayout

ATTENTION = "nanochat"
_UNKNOWN_ARGUMENTS = ("s_aux", "position_bias", "alibi", "head_mask", "indices")  # attention that ours is not


@dataclass(frozen=True, slots=True)
class PagedStep:
    """What our attention function needs to know of a step; Transformers carries it through every layer unread."""

    config: ModelConfig
    kernels: Kernels
    plan: Any
    kv_cache: list[tuple[Tensor, Tensor]]
    num_kv_heads: int  # of this rank
    attended: set[int] = field(default_factory=set[int])  # layers whose keys and values this step has written


class TransformersModel:
    """A model of Transformers' behind the `Model` interface."""

    def __init__(
        self, config: ModelConfig, causal: nn.Module, device: torch.device, bytes_read: int, num_kv_heads: int
    ) -> None:
        self.config = config
        self.num_kv_heads = num_kv_heads
        self.kernels = pick(device)
        self.num_bytes = sum(p.numel() * p.element_size() for p in causal.parameters())
        self.bytes_read = bytes_read
        name = str(causal.base_model_prefix)
        self._decoder = cast(nn.Module, getattr(causal, name))
        # What is left turns hidden states into logits, whatever scaling or capping that takes in this architecture.
        setattr(causal, name, Passed())
        self._head = causal

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, positions: Tensor, layout: AttentionLayout, kv_cache: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """See `Model`."""
        plan = self.kernels.plan(layout)
        step = PagedStep(self.config, self.kernels, plan, kv_cache, self.num_kv_heads)
        output = self._decoder(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, paged_step=step
        )
        return output.last_hidden_state[0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model`."""
        return self._head(inputs_embeds=hidden[None], use_cache=False).logits[0].float()


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged_step: PagedStep | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: query [1, heads, T, head_dim], key and value [1, kv_heads, T, head_dim].

    Returns [1, T, heads, head_dim] and no weights. Raises UnsupportedModel for attention that ours is not.
    """
    odd = [name for name in _UNKNOWN_ARGUMENTS if rest.get(name) is not None]
    if paged_step is None or odd or attention_mask is not None or rest.get("is_causal") is False:
        what = (
            f"its attention takes {', '.join(odd)}" if odd else "its attention is not plain causal attention"
        )
        raise UnsupportedModel(
            f"{type(module).__name__} does not run in the paged cache ({what}): take another model"
        )
    config, index = paged_step.config, _layer_of(module, paged_step, key, value)
    paged_step.attended.add(index)
    cache = paged_step.kv_cache[index]
    spec = AttentionSpec(
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        head_dim=key.shape[3],
        scale=config.head_dim**-0.5 if scaling is None else scaling,
        window=sliding_window or config.layers[index].window or 0,
        soft_cap=softcap or 0.0,
    )
    kernels, plan = paged_step.kernels, paged_step.plan
    made()
    kernels.write_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), cache, plan)
    return kernels.attend(query[0].transpose(0, 1), spec, cache, plan)[None], None


def _layer_of(module: nn.Module, step: PagedStep, key: Tensor, value: Tensor) -> int:
    """The layer that attends. Raises UnsupportedModel where its cache has no place for these keys and values."""
    config = step.config
    if (key.shape[1], key.shape[3]) != (step.num_kv_heads, config.head_dim) or value.shape != key.shape:
        raise UnsupportedModel(
            f"{config.architecture} has {key.shape[1]} key heads of {key.shape[3]} and value heads of "
            f"{value.shape[3]} where its config has {step.num_kv_heads} of {config.head_dim}: take another model"
        )
    index = int(cast(Any, module.layer_idx))
    if index in step.attended:  # the cache of a layer holds one set of keys and values
        raise UnsupportedModel(
            f"{config.architecture} does not run in the paged cache (layer {index} attends more than once in a step): "
            "take another model"
        )
    return index


def load_fallback(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    rank: int,
    ranks: int,
    progress: Callable[[int, int], None] | None,
    reduce: Reduce | None,
    gather: Gather | None,
) -> TransformersModel:
    """See `load_model`. Safetensors only, and no code from the model's repository."""
    with alone(), Checkpoint(folder) as checkpoint:  # headers are checked before Transformers opens a file
        total = checkpoint.num_bytes
        theirs = _read_config(folder, config)
        _refuse_unpluggable(config, theirs)
        if progress is not None:
            progress(0, total)
        if ranks == 1:
            causal, kv_heads, read = _read_weights(folder, theirs, dtype), config.num_kv_heads, total
        else:
            assert reduce is not None and gather is not None
            if progress is not None:
                checkpoint.progress = lambda done, total: progress(min(done * ranks, total), total)
            with longer(TRANSFORMERS):
                whole = whole_model(theirs, ATTENTION)
                division = Division(whole, config, rank, ranks)
            share = read_share(checkpoint, whole, division)
            size = sum(tensor.nbytes for tensor in share.values())
            with longer(TRANSFORMERS + moving(4 * size)):
                causal = _read_weights(folder, theirs, dtype, divided_class(whole, division), share)
            division.connect(causal, reduce, gather)
            kv_heads, read = division.num_kv_heads, checkpoint.bytes_read
        with longer(moving(2 * sum(p.nbytes for p in causal.parameters()))):
            causal = causal.to(device).eval()
    if progress is not None:
        progress(total, total)
    return TransformersModel(config, causal, device, read, kv_heads)


def refuse_undividable(folder: Path, config: ModelConfig, ranks: int) -> None:
    """Raise UnsupportedModel for a model that Transformers runs, but not over `ranks`; nothing is loaded for it."""
    with alone():
        theirs = _read_config(folder, config)
        _refuse_unpluggable(config, theirs)
        Division(whole_model(theirs, ATTENTION), config, 0, ranks)


def _read_config(folder: Path, config: ModelConfig) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    _register()
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        if config.model_type not in CONFIG_MAPPING:
            raise UnsupportedModel(
                f"the installed Transformers has no {config.model_type[:60]!r}: take another model, or upgrade it"
            ) from error
        raise InvalidModel(
            f"Transformers cannot read the config of {folder.name} ({_short(error)}): fetch the model again"
        ) from error


def _read_weights(
    folder: Path,
    theirs: Any,
    dtype: torch.dtype,
    model_class: Any = None,
    share: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Transformers only warns of weights that are missing and draws them at random; here that is an error.

    Args:
        model_class, share: of a rank's share, what to make of it and its tensors; otherwise all is read from the folder.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with _no_progress_bar():
            causal, report = cast(Any, model_class or AutoModelForCausalLM).from_pretrained(
                folder if share is None else None,
                state_dict=share,
                config=theirs,
                dtype=dtype,
                attn_implementation=ATTENTION,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        if share is not None:
            raise UnsupportedModel(
                f"the weights of {folder.name} cannot be divided as they lie in its files ({_short(error)}): "
                "set tensor_parallel_size (--tp) to 1"
            ) from error
        raise InvalidModel(
            f"Transformers cannot load {folder.name} ({_short(error)}): fetch the model again, or take another"
        ) from error
    wrong = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in report.get(key, ()))
    if wrong:
        raise InvalidModel(
            f"{folder.name} lacks {len(wrong)} tensors or has them in other shapes, the first is {wrong[0][:100]}: "
            "config and weights disagree; fetch the model again"
        )
    return cast(nn.Module, causal)


@contextmanager
def _no_progress_bar() -> Generator[None]:
    """Inside, Transformers draws none: nothing but the screen writes to the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _short(error: Exception) -> str:
    """An error of Transformers' on one line."""
    return " ".join(str(error).split())[:160]


def _register() -> None:
    """Make our attention known by name. No mask is made: the paged attention knows what each token sees."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, cast(Any, paged_attention))
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)  # pyright: ignore[reportArgumentType]


def _refuse_unpluggable(config: ModelConfig, theirs: Any) -> None:
    from transformers import AutoModelForCausalLM

    model_class = cast(Any, AutoModelForCausalLM)._model_mapping.get(type(theirs), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    if model_class is None or not model_class._supports_attention_backend:
        raise UnsupportedModel(
            f"{config.architecture} cannot take this engine's attention in this Transformers: take another model"
        )
    odd = [
        kind
        for kind in getattr(theirs, "layer_types", None) or ()
        if kind not in ("full_attention", "sliding_attention")
    ]
    if odd:
        raise UnsupportedModel(
            f"{config.architecture} has layers of type {odd[0]!r}; it must be full or sliding"
        )

"""A step of one sequence over a cache of its own, run while a model is loaded, before there is a KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.engine.config import BLOCK_SIZE
from nanochat.errors import NanochatError, UnsupportedModel
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.shortage import is_out_of_memory

if TYPE_CHECKING:
    from nanochat.engine.models import Model

_TOKENS = 2


class FirstStep:
    """What a step of `tokens` takes: all layers share one pair of keys and values, so it fits where a cache does not."""

    def __init__(self, model: Model, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        blocks = -(-tokens // BLOCK_SIZE)
        shape = (blocks, BLOCK_SIZE, model.num_kv_heads, model.config.head_dim)
        pair = (
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
        )
        self._model = model
        self._kv_cache = [pair] * model.config.num_layers
        self._slots = torch.arange(tokens, device=device)
        self._layout = AttentionLayout(
            slots=self._slots,
            block_tables=torch.arange(blocks, dtype=torch.int32, device=device)[None],
            query_start=torch.tensor([0, tokens], dtype=torch.int32, device=device),
            context_lens=torch.tensor([tokens], dtype=torch.int32, device=device),
            query_lens=[tokens],
            contexts=[tokens],
            tables=[list(range(blocks))],
            max_context=tokens,
        )

    def logits(self, rows: int) -> Tensor:
        """Run it on token 0 over and over; float32 [rows, vocab_size] of its first rows."""
        ids = torch.zeros_like(self._slots)
        hidden = self._model.forward(ids, self._slots, self._layout, self._kv_cache)
        return self._model.logits(hidden[:rows])


@torch.inference_mode()
def refuse_unrunnable(model: Model, device: torch.device, dtype: torch.dtype) -> None:
    """Run the smallest step: what a model of Transformers' cannot do in the paged cache shows when it is run, no sooner.

    Raises:
        UnsupportedModel: it did not run.
    """
    try:
        FirstStep(model, _TOKENS, device, dtype).logits(1)
    except NanochatError:
        raise
    except torch.AcceleratorError:  # that is the device's, whatever model it ran
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:160]
        raise UnsupportedModel(
            f"{model.config.architecture} does not run in the paged cache ({type(error).__name__}: {text}): "
            "take another model"
        ) from error

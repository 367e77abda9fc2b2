"""What Transformers cannot run in the paged cache is refused when it is loaded, not at its first prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import COMMON, GQA, save_tiny

from nanochat import LLM
from nanochat.engine import first_step
from nanochat.engine.models import fallback
from nanochat.errors import UnsupportedModel

KINDS = {
    "twice": (lambda: tf.DiffLlamaConfig(**COMMON, **GQA), "attends more than once"),
    "masked": (lambda: tf.NemotronConfig(**COMMON, **GQA), "not plain causal attention"),
    "of_other_shapes": (lambda: tf.HeliumConfig(**COMMON, **GQA, head_dim=128), "HeliumForCausalLM"),
}


def load(folder: Path) -> LLM:
    return LLM(folder, skip_tokenizer=True, max_model_len=64, dtype="float32", device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_an_attention_that_the_cache_does_not_hold_is_refused_at_load(kind: str, tmp_path: Path) -> None:
    make, reason = KINDS[kind]
    save_tiny(make, tmp_path)
    with pytest.raises(UnsupportedModel, match=reason):
        load(tmp_path)


@pytest.fixture
def stumble(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every step through Transformers end in an error."""

    def stumble(error: Exception) -> None:
        def forward(*_: object) -> None:
            raise error

        monkeypatch.setattr(fallback.TransformersModel, "forward", forward)

    return stumble


def test_whatever_else_it_stumbles_over_is_told_with_the_models_name(tiny_folder: Any, stumble: Any) -> None:
    stumble(AttributeError("'Thing' has\nno part"))
    with pytest.raises(UnsupportedModel, match=r"Olmo2ForCausalLM .*AttributeError: 'Thing' has no part"):
        load(tiny_folder("olmo2"))


def test_a_failing_device_is_not_the_models_fault(tiny_folder: Any, stumble: Any) -> None:
    stumble(torch.AcceleratorError("an illegal memory access"))
    with pytest.raises(torch.AcceleratorError):
        load(tiny_folder("olmo2"))


def test_a_model_of_our_own_decoder_is_not_tried(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(first_step.FirstStep, "logits", never)
    load(tiny_folder("qwen3"))

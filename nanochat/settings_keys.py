"""What may be set, in what range, and what it is when nothing is set: one Key for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

Kind = Literal["text", "choice", "whole", "number", "flag", "table"]


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: where it stands in the file, its range, and what it means."""

    field: str  # the attribute of Settings
    name: str  # dotted, as in the file: "engine.dtype"
    kind: Kind
    help: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def span(self) -> str:
        """The allowed values in words."""
        match self.kind:
            case "text":
                return "a text"
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "flag":
                return "true or false"
            case "table":
                return "a table of texts"
            case _:
                noun = "a whole number" if self.kind == "whole" else "a number"
                return f"{noun} from {self.low:g} to {self.high:g}"

    def allows(self, value: object) -> bool:
        """Whether `value` has the right type and lies in the range."""
        match self.kind:
            case "text":
                return isinstance(value, str)
            case "choice":
                return value in self.choices
            case "flag":
                return isinstance(value, bool)
            case "table":
                return isinstance(value, Mapping) and all(_text_pair(pair) for pair in value.items())
            case "whole":
                return (
                    isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high
                )
            case "number":
                return _is_number(value) and self.low <= value <= self.high


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text_pair(pair: tuple[Any, Any]) -> bool:
    return isinstance(pair[0], str) and isinstance(pair[1], str)


KEYS: tuple[Key, ...] = (
    Key("default_model", "models.default", "text", "the model when none is named; empty is the starter model"),
    Key("suggest_models", "models.suggest", "flag", "name a better model for this hardware, once"),
    Key("system_prompt", "chat.system_prompt", "text", "the system prompt of a new chat"),
    Key("dtype", "engine.dtype", "choice", "numbers of weights and cache",
        choices=("auto", "bfloat16", "float16", "float32")),
    Key("device", "engine.device", "text", "auto, cpu, cuda, or one device such as cuda:1"),
    Key("max_model_len", "engine.max_model_len", "whole", "the longest prompt plus reply in tokens; 0 is the model's",
        0, 2**31 - 1),
    Key("kv_cache_gib", "engine.kv_cache_gib", "number", "a cap on the KV cache in GiB; 0 is what memory allows",
        0, 65536),
    Key("gpu_memory_utilization", "engine.gpu_memory_utilization", "number", "share of GPU memory to use at most",
        0.05, 1),
    Key("deterministic", "engine.deterministic", "flag",
        "the same bits alone or beside other replies, cached or not; slower"),
    Key("tensor_parallel_size", "engine.tensor_parallel_size", "whole",
        "over how many devices a model is split; 0 is as few as hold it", 0, 64),
    Key("idle_unload_minutes", "engine.idle_unload_minutes", "number", "unload an idle model after so long; 0 is never",
        0, 525600),
    Key("theme", "ui.theme", "text", "a theme's name; auto follows the terminal"),
    Key("ascii", "ui.ascii", "choice", "draw with ASCII only", choices=("auto", "always", "never")),
    Key("keymap", "ui.keymap", "table", "an action's id and its keys, commas between"),
)  # fmt: skip
"""Every setting that nanochat knows; other keys in the file are kept and left alone."""

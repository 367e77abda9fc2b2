"""nanochat: a terminal chat application with the inference engine inside.

The Python API has the shape of vLLM's: `LLM`, `SamplingParams`, `RequestOutput`. The names are
imported when first used, so that `import nanochat` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from nanochat.api import LLM
    from nanochat.engine.outputs import RequestOutput
    from nanochat.engine.sampling_params import SamplingParams

_HOMES = {
    "LLM": "nanochat.api",
    "RequestOutput": "nanochat.engine.outputs",
    "SamplingParams": "nanochat.engine.sampling_params",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        from nanochat.environment import set_thread_variables

        set_thread_variables()
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nanochat' has no attribute {name!r}")

"""What stands in a decoder's place while only the head of a model of Transformers' runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Passed(nn.Module):
    """Stands where the decoder was: what comes in is already its result."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Hidden:
        """The hidden states that were given for embeddings."""
        return _Hidden(inputs_embeds)

    @property
    def decoder(self) -> Passed:
        """OPT's head reaches past its model for the decoder inside."""
        return self


class _Hidden:
    """A decoder's output with nothing but hidden states; whatever else a head may pass on is None."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)

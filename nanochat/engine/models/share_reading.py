"""One rank's share of a model of Transformers', read from its files, and the class that takes it in.

Transformers renames and joins tensors as it loads them. It is given tensors that are cut already, under the names
that they have in the files, and a model whose parameters are cut alike.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from nanochat.engine.models.division import Cut, Division
from nanochat.engine.tensor_files import TORCH_DTYPES
from nanochat.engine.weights import Checkpoint


def whole_model(theirs: Any, attention: str) -> nn.Module:
    """A model as its config has it, without data."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return cast(nn.Module, AutoModelForCausalLM.from_config(theirs, attn_implementation=attention))


def divided_class(whole: nn.Module, division: Division) -> Any:
    """The class of `whole`, whose models come into being with the parameters of one rank."""
    model_class = type(whole)

    def init(self: nn.Module, *args: Any, **options: Any) -> None:
        cast(Any, model_class).__init__(self, *args, **options)
        division.shrink(self)

    body = {"__init__": init, "__module__": model_class.__module__, "__doc__": model_class.__doc__}
    return type(model_class.__name__, (model_class,), body)


def read_share(checkpoint: Checkpoint, whole: nn.Module, division: Division) -> dict[str, Tensor]:
    """What a rank needs of every tensor in the files, by its name there and in the type that it has there.

    A tensor for which no cut is known is read whole; if its parameter is divided after all, Transformers finds that
    the shapes differ.
    """
    shapes = {name: tuple(p.shape) for name, p in whole.named_parameters(remove_duplicate=False)}
    renaming = _Renaming(whole, shapes)
    share: dict[str, Tensor] = {}
    for name, entry in checkpoint.entries.items():
        target, joined = renaming.target(name)
        if target is None and entry.dtype not in TORCH_DTYPES:
            continue  # a mask or a table of positions that old files carry
        if target in division.dropped:
            continue
        if target is not None and not joined:
            checkpoint.entry(name, shapes[target])
        cut = division.cuts.get(target or "")
        share[name] = _read(checkpoint, name, cut and _part_of(cut, entry.shape, shapes[target or ""]))
    return share


class _Renaming:
    """What Transformers makes of the names in the files."""

    def __init__(self, whole: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self._shapes = shapes
        self._prefix = f"{cast(Any, whole).base_model_prefix}."
        self._steps = cast("list[Any]", get_model_conversion_mapping(cast(Any, whole)))

    def target(self, name: str) -> tuple[str | None, bool]:
        """(the parameter that a tensor becomes, or a part of; whether others are joined to it)."""
        if (known := self._known(name)) is not None:
            return known, False
        joined = False
        for step in self._steps:
            name, matched = step.rename_source_key(name)
            joined |= matched is not None and hasattr(step, "operations")
        return self._known(name), joined

    def _known(self, name: str) -> str | None:
        names = (name, self._prefix + name, name.removeprefix(self._prefix))
        return next((name for name in names if name in self._shapes), None)


def _part_of(cut: Cut, shape: tuple[int, ...], whole: tuple[int, ...]) -> Cut | None:
    """The cut of a tensor in the files; in the model all experts of a layer are one parameter, or gate and up are."""
    dim, sides = cut.dim - (len(whole) - len(shape)), whole[len(whole) - len(shape) :]
    if dim < 0:
        return None
    if shape == sides:
        return Cut(dim, cut.parts)
    half = (*sides[:dim], sides[dim] // 2, *sides[dim + 1 :])
    return Cut(dim, cut.parts[:1]) if len(cut.parts) == 2 and shape == half else None


def _read(checkpoint: Checkpoint, name: str, cut: Cut | None) -> Tensor:
    entry = checkpoint.entry(name)
    to = torch.empty(entry.shape if cut is None else cut.shape(entry.shape), dtype=TORCH_DTYPES[entry.dtype])
    if cut is None:
        checkpoint.read(name, to, shape=entry.shape)
        return to
    # Before the cut dimension all is rows, behind it all is columns.
    height, unit = math.prod(entry.shape[: cut.dim]), math.prod(entry.shape[cut.dim + 1 :])
    matrix, at = to.view(height, -1), 0
    for part in cut.parts:
        columns = slice(part.start * unit, part.stop * unit)
        size = columns.stop - columns.start
        checkpoint.read(name, matrix[:, at : at + size], shape=entry.shape, height=height, columns=columns)
        at += size
    return to

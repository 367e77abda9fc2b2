"""A model of Transformers' divided over ranks, by the tensor-parallel plan that comes with it (`tp_plan`).

A plan names modules and parameters, and says of each how it is divided. Transformers follows it with tensors of
`torch.distributed` in a process group of the whole program; here its words are carried out with this engine's own
shares and collectives, so that several engines fit into a program and a rank reads no more than what it holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.product_time import give_time
from nanochat.engine.parallel.shares import column_share, head_share, share, vocabulary_share
from nanochat.errors import UnsupportedModel
from nanochat.kernels.bundle import Gather, Reduce

_OUTPUTS = ("colwise", "colwise_gather_output")
_INPUTS = ("rowwise", "rowwise_split_input")
_SUMMED = ("rowwise", "rowwise_split_input", "moe_tp_experts", "all_reduce")
_WHOLE = (
    "moe_tp_experts",
    "all_reduce",
    "replicated_with_grad_allreduce",
)  # each rank holds all that they name
_VOCABULARY = "embedding_rowwise"
_PACKED = "packed_colwise"
_EXPERT_UNIT = 8  # columns: torch's grouped products want rows of whole 16 bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """What a rank holds of a parameter: these parts of one dimension, one after the other."""

    dim: int
    parts: tuple[slice, ...]

    @property
    def size(self) -> int:
        """How long the dimension is on this rank."""
        return sum(part.stop - part.start for part in self.parts)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is left of a parameter."""
        sides = list(whole)
        sides[self.dim] = self.size
        return tuple(sides)


class Division:
    """One rank's share of a model.

    Attributes:
        cuts: for each parameter that is divided, which part of it this rank holds.
        dropped: parameters of which another rank takes care: a sum needs its bias once.
        num_kv_heads: key-value heads that this rank's attention computes.
    """

    def __init__(self, causal: nn.Module, config: ModelConfig, rank: int, ranks: int) -> None:
        """Read the plan of a model whose parameters are whole, with or without data.

        Raises:
            UnsupportedModel: it has no plan, or one that cannot be followed for so many ranks.
        """
        self.cuts: dict[str, Cut] = {}
        self.dropped: set[str] = set()
        self._config, self._rank, self._ranks = config, rank, ranks
        self._widths: dict[str, int] = {}  # of outputs that are gathered
        self._heads = head_share(config.num_heads, config.num_kv_heads, rank, ranks)
        self._head = _name_of(causal, cast(Any, causal).get_output_embeddings())
        modules, parameters = dict(causal.named_modules()), dict(_parameters(causal))
        self._styles = self._read_plan(causal, [*modules, *parameters])
        for name, style in self._styles.items():
            if name in modules:
                self._divide_module(name, modules[name], style)
            elif style not in _WHOLE:
                self._divide_parameter(name, parameters[name], style)
        if not any(style in _SUMMED for style in self._styles.values()):
            raise self._no_plan()
        self.num_kv_heads = self._divided_attention(modules)

    def _read_plan(self, causal: nn.Module, names: list[str]) -> dict[str, str]:
        """Name -> style, for everything that the plan names and the model has."""
        plan = dict(cast("dict[str, str]", getattr(causal, "tp_plan", None) or {}))
        if not plan:
            raise self._no_plan()
        styles: dict[str, str] = {}
        for pattern, style in plan.items():
            matches = re.compile(re.escape(pattern).replace(r"\*", "[^.]+")).fullmatch
            styles |= {name: style for name in names if matches(name)}
        # The table of the embedding may be the head's own matrix: both are divided, or neither is.
        table = cast(Any, causal).get_input_embeddings()
        styles.pop(_name_of(causal, table), None)
        if styles.get(self._head) == "colwise_gather_output" and isinstance(table, nn.Embedding):
            styles[_name_of(causal, table)] = _VOCABULARY
        return styles

    def _divide_module(self, name: str, module: nn.Module, style: str) -> None:
        if style in _WHOLE:
            return
        if style == _VOCABULARY and isinstance(module, nn.Embedding):
            rows = vocabulary_share(module.num_embeddings, self._rank, self._ranks)
            self.cuts[f"{name}.weight"] = Cut(0, (rows,))
            return
        if not isinstance(module, nn.Linear) or style not in (*_OUTPUTS, *_INPUTS, _PACKED):
            raise self._unknown(name, f"{style} on a {type(module).__name__}")
        if style == _PACKED:
            self._cut_outputs(name, module, self._halves(name, module.out_features))
        elif style in _OUTPUTS:
            self._cut_outputs(name, module, (self._share(name, module.out_features, style),))
        else:
            self.cuts[f"{name}.weight"] = Cut(1, (self._share(name, module.in_features, style),))
            if _has_bias(module) and self._rank > 0:
                self.dropped.add(f"{name}.bias")

    def _cut_outputs(self, name: str, module: nn.Linear, parts: tuple[slice, ...]) -> None:
        self._widths[name] = module.out_features
        self.cuts[f"{name}.weight"] = Cut(0, parts)
        if _has_bias(module):
            self.cuts[f"{name}.bias"] = Cut(0, parts)

    def _divide_parameter(self, name: str, parameter: Tensor, style: str) -> None:
        """The matrices of all experts in one: [experts, outputs, inputs]."""
        if parameter.dim() != 3 or style not in (_PACKED, "colwise", "rowwise"):
            raise self._unknown(name, f"{style} on a parameter of {parameter.dim()} dimensions")
        if style == _PACKED:
            self.cuts[name] = Cut(1, self._halves(name, parameter.shape[1], _EXPERT_UNIT))
        else:
            dim = 1 if style == "colwise" else 2
            self.cuts[name] = Cut(dim, (self._columns(name, parameter.shape[dim], _EXPERT_UNIT),))

    def _share(self, name: str, size: int, style: str) -> slice:
        """The outputs or inputs of one matrix that are this rank's."""
        if name == self._head:
            return vocabulary_share(size, self._rank, self._ranks)
        if not _attends(name) or style not in ("colwise", "rowwise"):
            return self._columns(name, size)  # what is gathered again may be cut anywhere
        config = self._config
        for count, heads in ((config.num_heads, self._heads.queries), (config.num_kv_heads, self._heads.kv)):
            if size == count * config.head_dim:
                return slice(heads.start * config.head_dim, heads.stop * config.head_dim)
        if any(number % self._ranks for number in (size, config.num_heads, config.num_kv_heads)):
            raise self._unknown(name, f"{config.num_kv_heads} key-value heads in one matrix with the queries")
        return share(size, self._rank, self._ranks)  # queries, keys and values of each head together

    def _halves(self, name: str, size: int, unit: int = 1) -> tuple[slice, ...]:
        own = self._columns(name, size // 2, unit)
        return own, slice(size // 2 + own.start, size // 2 + own.stop)

    def _columns(self, name: str, size: int, unit: int = 1) -> slice:
        if size % unit or size // unit < self._ranks:
            raise self._unknown(name, f"{size} columns" + (f", and {unit} stay together" if unit > 1 else ""))
        if unit == 1:
            return column_share(size, self._rank, self._ranks)
        own = share(size // unit, self._rank, self._ranks)
        return slice(own.start * unit, own.stop * unit)

    def _divided_attention(self, modules: dict[str, nn.Module]) -> int:
        """Key-value heads of this rank; what the plan does to attention must be what a paged cache can follow."""
        config, outputs = self._config, dict[str, int]()
        for name, style in self._styles.items():
            module = modules.get(name)
            if style == "colwise" and _attends(name) and isinstance(module, nn.Linear):
                parent = name.rpartition(".")[0]
                outputs[parent] = outputs.get(parent, 0) + module.out_features
        whole = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        for parent, size in outputs.items():
            if size != whole:
                raise self._unknown(
                    parent, f"{size} divided outputs, where {whole} are queries, keys and values"
                )
        return self._heads.num_kv if outputs else config.num_kv_heads

    def _no_plan(self) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self._config.architecture} runs through Transformers, which has no tensor-parallel plan for its layers: "
            "set tensor_parallel_size (--tp) to 1"
        )

    def _unknown(self, name: str, what: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self._config.architecture} runs through Transformers, whose tensor-parallel plan this engine cannot "
            f"follow over {self._ranks} devices ({name}: {what}): take a smaller tensor_parallel_size (--tp), or 1"
        )

    # Carried out on a model -----------------------------------------------------------------------

    def shrink(self, causal: nn.Module) -> None:
        """Cut every parameter of a model without data to what this rank holds."""
        for name, cut in self.cuts.items():
            owner, _, leaf = name.rpartition(".")
            module = causal.get_submodule(owner)
            whole = cast(Tensor, getattr(module, leaf))
            part = torch.empty(cut.shape(tuple(whole.shape)), dtype=whole.dtype, device=whole.device)
            setattr(module, leaf, nn.Parameter(part, requires_grad=False))
            if isinstance(module, nn.Embedding):
                module.num_embeddings, module.padding_idx = cut.size, None
            elif isinstance(module, nn.Linear) and leaf == "weight":
                module.out_features, module.in_features = part.shape
        for name in self.dropped:
            owner, _, leaf = name.rpartition(".")
            setattr(causal.get_submodule(owner), leaf, None)

    def connect(self, causal: nn.Module, reduce: Reduce, gather: Gather) -> None:
        """Put the collectives where the plan has them. The head's results are `gather`'s, all others everybody's."""
        modules = dict(causal.named_modules())
        give_time(causal)
        for name, style in self._styles.items():
            module = modules.get(name)
            if module is None:
                continue
            if style == _VOCABULARY:
                first = self.cuts[f"{name}.weight"].parts[0].start
                cast(Any, causal).set_input_embeddings(_EmbeddingShare(module, first, reduce))
            elif name == self._head and style == "colwise_gather_output":
                module.register_forward_hook(lambda _, __, out: gather(out.flatten(0, -2))[None])
            elif style == "colwise_gather_output":
                module.register_forward_hook(self._gathering(name, reduce))
            elif style in _SUMMED:
                module.register_forward_hook(lambda _, __, out: reduce(out.contiguous()))
            if style == "rowwise_split_input":
                own = self.cuts[f"{name}.weight"].parts[0]
                module.register_forward_pre_hook(lambda _, args, own=own: (args[0][..., own],))

    def _gathering(self, name: str, reduce: Reduce) -> Any:
        """Shares of any width side by side, on every rank: a sum of what is zero everywhere else."""
        own, width = self.cuts[f"{name}.weight"].parts[0], self._widths[name]

        def gather(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            whole = output.new_zeros((*output.shape[:-1], width))
            whole[..., own] = output
            return reduce(whole)

        return gather


class _EmbeddingShare(nn.Module):
    """One rank's rows of an embedding, from id `first` on; whatever the module makes of a row, the sum is everybody's."""

    def __init__(self, share: nn.Module, first: int, reduce: Reduce) -> None:
        super().__init__()
        self._share, self._first, self._reduce = share, first, reduce

    @property
    def weight(self) -> Tensor:
        """The rows of this rank."""
        return cast(Tensor, self._share.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [1, T] -> [1, T, hidden_size]."""
        at = ids - self._first
        elsewhere = (at < 0) | (at >= self.weight.shape[0])
        rows = self._share(at.masked_fill(elsewhere, 0))
        return self._reduce(rows.masked_fill(elsewhere[..., None], 0.0))


def _parameters(causal: nn.Module) -> list[tuple[str, Tensor]]:
    return list(causal.named_parameters(remove_duplicate=False))


def _name_of(causal: nn.Module, wanted: nn.Module | None) -> str:
    return next((name for name, module in causal.named_modules() if module is wanted), "")


def _attends(name: str) -> bool:
    """Whether a module belongs to an attention, by what its parent is called."""
    return "att" in name.rpartition(".")[0].rpartition(".")[2]


def _has_bias(module: nn.Linear) -> bool:
    return cast("Tensor | None", module.bias) is not None

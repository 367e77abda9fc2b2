"""What differs from layer to layer: the attention's window, the rope, and whether experts do the feed-forward."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.engine.models.families import Family
from nanochat.engine.models.fields import Fields
from nanochat.engine.models.rope import Rope, read_rope
from nanochat.errors import UnsupportedModel

_LARGEST_WINDOW = 2**27


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer. `window`: how many positions a token sees, itself included (None: all). `rope` None: no positions."""

    window: int | None = None
    rope: Rope | None = None
    experts: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: `count` feed-forward networks, of which each token goes through `per_token`."""

    count: int
    per_token: int
    intermediate_size: int
    normalized: bool  # the chosen experts' weights are scaled to sum to one


def read_layers(
    config: Fields, family: Family | None, *, num_layers: int, head_dim: int, context: int
) -> tuple[tuple[LayerPlan, ...], Experts | None]:
    """The plan of every layer, and the experts that some of them use."""
    kinds = _attention_kinds(config, family, num_layers)
    window = config.integer("sliding_window", 1, _LARGEST_WINDOW) if "sliding_attention" in kinds else None
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    if family is None:
        return tuple(LayerPlan(window) for window in windows), None
    ropes = _ropes(config, family, kinds, head_dim, context)
    experts = _experts(config) if family.experts else None
    sparse = _sparse_layers(config, num_layers) if experts is not None else [False] * num_layers
    layers = (
        LayerPlan(window, rope, sparse) for window, rope, sparse in zip(windows, ropes, sparse, strict=True)
    )
    return tuple(layers), experts


def _attention_kinds(config: Fields, family: Family | None, num_layers: int) -> list[str]:
    """full_attention or sliding_attention, for each layer."""
    listed = config.texts("layer_types")
    has_window = "sliding_window" in config
    if family is not None and family.windows == "chosen":
        has_window = has_window and config.boolean("use_sliding_window", False)
    if listed is not None and not (family is not None and family.windows == "all" and not family.gemma):
        if len(listed) != num_layers:
            config.fail(f"layer_types has {len(listed)} entries for {num_layers} layers")
        odd = next((kind for kind in listed if kind not in ("full_attention", "sliding_attention")), None)
        if odd is not None:
            raise UnsupportedModel(
                f"{config.where}: a layer of type {odd[:40]!r}; this engine runs full and sliding-window attention: "
                "take another model"
            )
        return [kind if has_window or kind == "full_attention" else "full_attention" for kind in listed]
    if family is not None and family.gemma:
        every = config.integer("sliding_window_pattern", 1, 4096, 6)
        return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(num_layers)]
    if family is None or not has_window or family.windows == "none":
        return ["full_attention"] * num_layers
    if family.experts or family.windows == "all":
        return ["sliding_attention"] * num_layers
    if config.text("model_type") == "smollm3":
        return [
            "full_attention" if rotated else "sliding_attention" for rotated in _rotated(config, num_layers)
        ]
    first = config.integer("max_window_layers", 0, 2**20, 28)
    return ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]


def _rotated(config: Fields, num_layers: int) -> list[bool]:
    """SmolLM3: which layers rotate (1 in no_rope_layers means that the layer does)."""
    if config.text("model_type") != "smollm3":
        return [True] * num_layers
    listed = config.integers("no_rope_layers", 0, 1)
    if listed is None:
        interval = config.integer("no_rope_layer_interval", 1, 4096, 4)
        return [(i + 1) % interval != 0 for i in range(num_layers)]
    if len(listed) < num_layers:
        config.fail(f"no_rope_layers has {len(listed)} entries for {num_layers} layers")
    return [bool(value) for value in listed[:num_layers]]


def _ropes(
    config: Fields, family: Family, kinds: list[str], head_dim: int, context: int
) -> list[Rope | None]:
    """The rope of each layer; equal ones are the same object, so that a step computes each only once."""
    parameters = config.section("rope_parameters")
    scaling = config.section("rope_scaling")
    theta = config.number("rope_theta", 1e-3, 1e15, family.theta)
    rotary = config.number("partial_rotary_factor", 0.0, 1.0, 1.0)
    local = config.number("rope_local_base_freq", 1e-3, 1e15, 10_000.0)
    empty = Fields({}, config.where)
    made: dict[str, Rope] = {}
    for kind in dict.fromkeys(kinds):
        section = (parameters and parameters.section(kind)) or None
        base = local if family.gemma and kind == "sliding_attention" else theta
        if section is None and parameters is not None and not _is_nested(parameters):
            section = parameters
        if section is None:
            section = empty if family.gemma and kind == "sliding_attention" else scaling or empty
        made[kind] = read_rope(config, section, head_dim=head_dim, context=context, theta=base, rotary=rotary)
    shared = {rope: rope for rope in made.values()}
    rotated = _rotated(config, len(kinds))
    return [shared[made[kind]] if turns else None for kind, turns in zip(kinds, rotated, strict=True)]


def _is_nested(parameters: Fields) -> bool:
    return "full_attention" in parameters or "sliding_attention" in parameters


def _experts(config: Fields) -> Experts:
    count = config.integer("num_experts", 1, 2**14, None, "num_local_experts")
    return Experts(
        count=count,
        per_token=config.integer("num_experts_per_tok", 1, count),
        intermediate_size=config.integer("moe_intermediate_size", 1, 2**22),
        normalized=config.boolean("norm_topk_prob", False),
    )


def _sparse_layers(config: Fields, num_layers: int) -> list[bool]:
    dense = set(config.integers("mlp_only_layers", 0, 4096) or ())
    step = config.integer("decoder_sparse_step", 1, 4096, 1)
    return [i not in dense and (i + 1) % step == 0 for i in range(num_layers)]

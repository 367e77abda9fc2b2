"""What a step must move and compute, counted from a model's shape, and how fast that can be at best.

Bytes: every weight that takes part is read once a step, every key and value that a token may see once a layer.
Operations: two for each weight and token, and four for each head value and position that is seen. Activations, norms'
arithmetic and sampling are left out: the ceiling is what no program can beat, not what one will reach.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nanochat.engine.models.config import ModelConfig

Bound = Literal["bandwidth", "arithmetic"]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device was measured to do: bytes read a second, and operations a second in matrix products."""

    read: float
    matrix: float

    def times(self, devices: int) -> Ceilings:
        """Of so many devices together."""
        return Ceilings(self.read * devices, self.matrix * devices)


@dataclass(frozen=True, slots=True)
class Cost:
    """Work that is done in one go: `bytes` read, `operations` computed."""

    bytes: float = 0.0
    operations: float = 0.0

    def seconds(self, ceilings: Ceilings) -> float:
        """The least time: reading and computing overlap at best, so the slower of the two."""
        return max(self.bytes / ceilings.read, self.operations / ceilings.matrix)

    def bound(self, ceilings: Ceilings) -> Bound:
        """Which of the two is the slower."""
        reading, computing = self.bytes / ceilings.read, self.operations / ceilings.matrix
        return "bandwidth" if reading >= computing else "arithmetic"


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time of a workload, what bounds most of that time, and what it moves and computes in all."""

    seconds: float
    bound: Bound
    bytes: float
    operations: float


def floor(parts: Iterable[tuple[Cost, int]], ceilings: Ceilings) -> Floor:
    """The sum over costs that follow one another, each given with how many times it comes."""
    spent: dict[Bound, float] = {"bandwidth": 0.0, "arithmetic": 0.0}
    moved = computed = 0.0
    for cost, times in parts:
        spent[cost.bound(ceilings)] += cost.seconds(ceilings) * times
        moved, computed = moved + cost.bytes * times, computed + cost.operations * times
    bound: Bound = "bandwidth" if spent["bandwidth"] >= spent["arithmetic"] else "arithmetic"
    return Floor(sum(spent.values()), bound, moved, computed)


class ModelCost:
    """Costs of one model in one dtype.

    Args:
        itemsize: bytes of a number of the keys and values, and of a weight unless `weight_itemsize` says otherwise.
    """

    def __init__(self, config: ModelConfig, itemsize: int, weight_itemsize: float | None = None) -> None:
        self._config, self._cache_itemsize = config, itemsize
        self._itemsize = itemsize if weight_itemsize is None else weight_itemsize
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._attention = config.hidden_size * (2 * q + 2 * kv)
        self._head = config.vocab_size * config.hidden_size
        self._norms = (2 * config.num_layers + 1) * config.hidden_size
        if config.qk_norm:
            self._norms += 2 * config.num_layers * config.head_dim
        self._kv_layer = 2 * kv * self._cache_itemsize

    def with_weights_of(self, itemsize: float) -> ModelCost:
        """The same model with its weights kept in so many bytes each: a quantized one."""
        return ModelCost(self._config, self._cache_itemsize, itemsize)

    @property
    def step_weights(self) -> float:
        """Bytes of weights that a decode step of one sequence reads: all but unused experts and embedding rows."""
        return self._weights(1, 1)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        return self._kv_layer * self._config.num_layers

    def decode(self, contexts: Iterable[int]) -> Cost:
        """One decode step: `contexts` has for each sequence the positions that its token sees, itself included."""
        lengths = tuple(contexts)
        return self.decode_summed(len(lengths), tuple(self._seen(length) for length in lengths))

    def decode_summed(self, sequences: int, seen: Iterable[tuple[int, int]]) -> Cost:
        """A decode step of `sequences`; `seen` are the positions seen in (full, windowed) layers."""
        full = windowed = 0
        for in_full, in_windowed in seen:
            full, windowed = full + in_full, windowed + in_windowed
        layers = self._windowed_layers
        positions = full * (self._config.num_layers - layers) + windowed
        return Cost(
            bytes=self._weights(sequences, sequences) + positions * self._kv_layer,
            operations=2 * sequences * (self._active + self._head) + positions * self._per_position,
        )

    def prefill(self, tokens: int, cached: int = 0, *, sequences: int = 1) -> Cost:
        """Computing `tokens` of a prompt after `cached` of it, and the logits of the last one.

        With `sequences`, that many such prompts at once: the weights are read once.
        """
        positions = 0
        for plan in self._config.layers:
            positions += _causal(tokens, cached, plan.window)
        read = sum(min(cached, plan.window or cached) for plan in self._config.layers) * self._kv_layer
        return Cost(
            bytes=self._weights(tokens * sequences, sequences) + read * sequences,
            operations=sequences
            * (2 * tokens * self._active + 2 * self._head + positions * self._per_position),
        )

    def generation(self, sizes: Iterable[tuple[int, int]]) -> list[tuple[Cost, int]]:
        """(prompt, output) sizes that start together: their prefill as one pass, then every decode step.

        At best all sequences decode together from the first step on, so there are as many steps as the longest output
        needs, and the weights are read once in each.
        """
        asked = tuple(sizes)
        prefills = [self.prefill(prompt) for prompt, _ in asked]
        weights = self._weights(sum(prompt for prompt, _ in asked), len(asked))
        parts = [(Cost(weights, sum(cost.operations for cost in prefills)), 1)]
        changes = sorted({output for _, output in asked if output > 1})
        done = 1
        for (
            upto
        ) in changes:  # between two changes the same sequences run, and their contexts grow by one a step
            running = [prompt for prompt, output in asked if output >= upto]
            first = self.decode(prompt + done for prompt in running)
            last = self.decode(prompt + upto - 1 for prompt in running)
            middle = Cost((first.bytes + last.bytes) / 2, (first.operations + last.operations) / 2)
            parts.append((middle, upto - done))
            done = upto
        return parts

    @property
    def _windowed_layers(self) -> int:
        return sum(plan.window is not None for plan in self._config.layers)

    def _seen(self, context: int) -> tuple[int, int]:
        windows = (plan.window for plan in self._config.layers if plan.window is not None)
        return context, sum(min(context, window) for window in windows)

    @property
    def _per_position(self) -> int:
        """Operations of one query token with one position in one layer: its products with a key and a value."""
        return 4 * self._config.num_heads * self._config.head_dim

    @property
    def _active(self) -> float:
        """Weights of the layers' matrices that one token goes through."""
        return sum(self._layer_weights(experts) for experts in self._experts_of(1))

    def _weights(self, tokens: int, logits: int) -> float:
        """Bytes of weights that a step of so many tokens reads, of which `logits` go on to the head."""
        total = sum(self._layer_weights(experts) for experts in self._experts_of(tokens))
        return (total + self._norms + (self._head if logits else 0)) * self._itemsize

    def _experts_of(self, tokens: int) -> list[float]:
        """For each layer how many experts' weights take part; 0 in a dense layer."""
        experts = self._config.experts
        if experts is None:
            return [0.0] * self._config.num_layers
        share = experts.per_token / experts.count  # as many as evenly routed tokens would meet
        met = experts.count * (1 - (1 - share) ** tokens)
        return [met if plan.experts else 0.0 for plan in self._config.layers]

    def _layer_weights(self, experts_met: float) -> float:
        config = self._config
        if experts_met and config.experts is not None:
            each = 3 * config.hidden_size * config.experts.intermediate_size
            return self._attention + experts_met * each + config.experts.count * config.hidden_size
        return self._attention + 3 * config.hidden_size * config.intermediate_size


def _causal(tokens: int, cached: int, window: int | None) -> int:
    """Positions that `tokens` new ones see in all, each itself, `cached` and the new ones before it."""
    if window is None:
        return tokens * cached + tokens * (tokens + 1) // 2
    whole = min(max(window - cached, 0), tokens)  # these see everything before them
    return whole * cached + whole * (whole + 1) // 2 + (tokens - whole) * window

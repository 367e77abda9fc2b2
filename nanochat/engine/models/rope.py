"""Rotary position embeddings: what a config says about them, in every spelling, and the frequencies that follow.

RoFormer (Su et al. 2021); linear (kaiokendev 2023), Llama 3's bands, YaRN (Peng et al. 2023, arXiv 2309.00071)
and LongRoPE (Ding et al. 2024, arXiv 2402.13753), each as Transformers computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.engine.models.fields import Fields
from nanochat.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_POSITION = 2**27


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """One way of turning positions into rotations of the first `dim` values of a head.

    Attributes:
        kind: default, linear, dynamic, llama3, yarn or longrope. Dynamic scaling starts past the model's own
            context, where the engine never goes, so it equals default here.
        attention_factor: multiplies cosine and sine.
        original_context: the context that the model was trained with before it was stretched.
        short_factors, long_factors: LongRoPE's, one for each pair of values.
    """

    kind: str
    theta: float
    dim: int
    factor: float = 1.0
    attention_factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def frequencies(self) -> Tensor:
        """Radians per position: float32 [dim / 2], on the CPU."""
        import torch  # here, since reading a config must not take the second that this takes

        steps = self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.int64).float() / self.dim)
        if self.kind == "linear":
            return 1.0 / steps / self.factor
        if self.kind == "llama3":
            return self._llama3(1.0 / steps)
        if self.kind == "yarn":
            return self._yarn(steps)
        if self.kind == "longrope":
            return 1.0 / (torch.tensor(self.short_factors) * steps)
        return 1.0 / steps

    def long_frequencies(self) -> Tensor | None:
        """LongRoPE's frequencies for sequences longer than `original_context`; None for every other kind."""
        if self.kind != "longrope":
            return None
        import torch

        steps = self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.int64).float() / self.dim)
        return 1.0 / (torch.tensor(self.long_factors) * steps)

    def _llama3(self, plain: Tensor) -> Tensor:
        import torch

        wavelength = 2 * math.pi / plain
        turns = self.original_context / wavelength
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        between = (1 - smooth) * plain / self.factor + smooth * plain
        slow = torch.where(turns < self.low_freq_factor, plain / self.factor, between)
        return torch.where(turns > self.high_freq_factor, plain, slow)

    def _yarn(self, steps: Tensor) -> Tensor:
        import torch

        def dimension(rotations: float) -> float:
            wavelengths = self.original_context / (rotations * 2 * math.pi)
            return self.dim * math.log(wavelengths) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        if low == high:
            high += 0.001
        keep = 1 - torch.clamp((torch.arange(self.dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
        return 1.0 / (self.factor * steps) * (1 - keep) + 1.0 / steps * keep


def read_rope(
    config: Fields, section: Fields, *, head_dim: int, context: int, theta: float, rotary: float = 1.0
) -> Rope:
    """One rope from `section` (rope_parameters, rope_scaling, or an empty object).

    Args:
        config: the whole config, for what older spellings keep outside of the section.
        head_dim: values in a head.
        context: the model's max_position_embeddings.
        theta: the base where the section has none.
        rotary: the rotated fraction of a head where the section has none.
    """
    kind = section.text("rope_type") or section.text("type") or "default"
    kind = {"su": "longrope"}.get(kind, kind)
    if config.text("model_type") == "phi3" and kind == "yarn":
        kind = "longrope"  # as early Phi-3 configs call it
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn", "longrope"):
        raise UnsupportedModel(f"{section.where}: this engine has no {kind!r} rope; take another model")
    theta = section.number("rope_theta", 1e-3, 1e15, theta)
    if kind == "yarn" and theta <= 1:
        section.fail(f"rope_theta is {theta:g}, and yarn needs more than 1")
    dim = int(head_dim * section.number("partial_rotary_factor", 0.0, 1.0, rotary))
    if dim < 2 or dim % 2:
        config.fail(
            f"{dim} of {head_dim} values of a head are rotated, and it must be an even number, 2 or more"
        )
    if kind in ("default", "dynamic"):
        return Rope(kind=kind, theta=theta, dim=dim)
    original = _original_context(config, section, context)
    implied = None if kind in ("linear", "llama3") else max(context / original, 1.0)
    factor = section.number("factor", 1e-3, 1e6, implied)
    if kind == "linear":
        return Rope(kind=kind, theta=theta, dim=dim, factor=factor)
    if kind == "llama3":
        return _llama3(section, theta, dim, factor, original)
    if kind == "yarn":
        return _yarn(section, theta, dim, factor, original)
    return _longrope(section, theta, dim, factor, original)


def _original_context(config: Fields, section: Fields, context: int) -> int:
    key = "original_max_position_embeddings"
    holder = config if key in config else section
    return holder.integer(key, 2, _LARGEST_POSITION, context)


def _llama3(section: Fields, theta: float, dim: int, factor: float, original: int) -> Rope:
    low = section.number("low_freq_factor", 1e-6, 1e6)
    high = section.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        section.fail(f"high_freq_factor is {high:g} and must be above low_freq_factor, {low:g}")
    return Rope(
        kind="llama3",
        theta=theta,
        dim=dim,
        factor=factor,
        original_context=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(section: Fields, theta: float, dim: int, factor: float, original: int) -> Rope:
    def magnitude(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    mscale, mscale_all = (section.number(key, 0.0, 1e3, 0.0) for key in ("mscale", "mscale_all_dim"))
    implied = (
        magnitude(factor, mscale) / magnitude(factor, mscale_all)
        if mscale and mscale_all
        else magnitude(factor)
    )
    return Rope(
        kind="yarn",
        theta=theta,
        dim=dim,
        factor=factor,
        original_context=original,
        attention_factor=section.number("attention_factor", 0.0, 1e3, implied),
        beta_fast=section.number("beta_fast", 0.0, 1e6, 32.0) or 32.0,
        beta_slow=section.number("beta_slow", 0.0, 1e6, 1.0) or 1.0,
        truncate=section.boolean("truncate", True),
    )


def _longrope(section: Fields, theta: float, dim: int, factor: float, original: int) -> Rope:
    factors: list[tuple[float, ...]] = []
    for key in ("short_factor", "long_factor"):
        values = section.numbers(key, 1e-3, 1e6)
        if values is None or len(values) != dim // 2:
            section.fail(
                f"{key} has {len(values or ())} values and {dim // 2} are needed, one for each rotated pair"
            )
        factors.append(values)
    implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Rope(
        kind="longrope",
        theta=theta,
        dim=dim,
        factor=factor,
        original_context=original,
        attention_factor=section.number("attention_factor", 0.0, 1e3, implied),
        short_factors=factors[0],
        long_factors=factors[1],
    )

"""How matrix-vector products are cut, by shape: the defaults, and what is worth timing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nanochat.kernels.sizes import next_power_of_2


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """How a product is cut: BLOCK_N outputs a program, BLOCK_K inputs a step.

    `dot` uses the matrix units; `prefetch` is how many chunks are requested before a dependent launch's wait
    (with `dot`, any or none). `library` leaves the product to cuBLAS, between a norm and what comes after.
    """

    block_n: int
    block_k: int
    warps: int = 4
    prefetch: int = 4
    dot: bool = False
    stages: int = 4
    library: bool = False


@dataclass(frozen=True, slots=True)
class GemvShape:
    """What a configuration is tuned for. `n` counts outputs; a gated product has 2 * n rows of weights."""

    rows: int
    n: int
    k: int
    gated: bool
    norm: bool

    @classmethod
    def of(cls, rows: int, n: int, k: int, gated: bool, norm: bool) -> GemvShape:
        """The shape that stands for `rows` rows: 3 are tuned and computed like 4, so that padding changes no bit."""
        return cls(next_power_of_2(rows), n, k, gated, norm)

    @property
    def name(self) -> str:
        """A key for the cache on disk."""
        return f"{self.rows}x{self.n}x{self.k}{'-gated' if self.gated else ''}{'-norm' if self.norm else ''}"


def default_config(shape: GemvShape) -> GemvConfig:
    """A configuration that is good on every chip: 8 to 24 KB of weights a program, cuBLAS where rows are many."""
    # 256 inputs are one warp's widest loads, so that a warp owns whole outputs.
    outputs = 2 if shape.k <= 1024 and not shape.gated else 1
    own = GemvConfig(block_n=4 * outputs, block_k=256, prefetch=12)
    small = shape.n * shape.k * (2 if shape.gated else 1) <= 8 << 20
    return own if shape.rows <= 2 or (shape.rows <= 8 and small) else replace(own, library=True)


def candidate_configs(shape: GemvShape) -> list[GemvConfig]:
    """Configurations worth timing for a shape; the default is the first."""
    found = [default_config(shape)]
    for warps in (2, 4, 8):
        for outputs in (1, 2, 4):
            registers = outputs * (2 if shape.gated else 1) * (min(shape.k, 4096) // 64 + 8 * shape.rows)
            if 32 <= registers <= 160:
                found.append(GemvConfig(warps * outputs, 256, warps, prefetch=12))
    if shape.rows >= 2:
        found.append(replace(GemvConfig(4, 256), library=True))
    if shape.rows >= 4:
        for block_n, block_k, warps in ((16, 256, 1), (16, 128, 1), (64, 256, 4)):
            if shape.k % block_k == 0 and shape.n // block_n >= 32:
                found.append(GemvConfig(block_n, block_k, warps, dot=True))
    return list(dict.fromkeys(found))

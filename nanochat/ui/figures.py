"""Numbers as the screen writes them, and the footer under a reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SPARK = "▁▂▃▄▅▆▇█"


def count(number: float) -> str:
    """A count in at most five characters: 812, 9.8k, 132k, 1.2M."""
    if number < 1000:
        return f"{number:.0f}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "G"), (1e15, "T")):
        if number < limit * 0.9995:
            value = number / limit * 1000
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return f"{number:.1e}"


def rate(per_second: float) -> str:
    """Tokens per second: one decimal below ten."""
    return f"{per_second:.1f}" if 0 < per_second < 10 else f"{per_second:,.0f}"


def seconds(time: float) -> str:
    """Seconds in at most six characters: `0.21 s`, `47.7 s`, `132 s`."""
    return f"{time:.2f} s" if time < 9.995 else f"{time:.1f} s" if time < 99.95 else f"{time:.0f} s"


def size(number_of_bytes: float) -> str:
    """Bytes in GiB or MiB, as device tools count them, with three digits: `412M`, `1.21G`, `17.2G`, `141G`."""
    if number_of_bytes < 999.5 * (1 << 20):
        return f"{number_of_bytes / (1 << 20):.0f}M"
    gib = number_of_bytes / (1 << 30)
    return f"{gib:.2f}G" if gib < 9.995 else f"{gib:.1f}G" if gib < 99.95 else f"{gib:.0f}G"


def percent(part: float, whole: float) -> int:
    """A share in whole percent; never 100 before it is all, never 0 when it is something."""
    if whole <= 0 or part <= 0:
        return 0
    return 100 if part >= whole else min(99, max(1, round(100 * part / whole)))


def fill(used: float, limit: float) -> str:
    """How full a context is, also past its end: `2.5k/8.2k 30 %`, `12k/8.2k 146 %`, `131k/8.2k ×16`."""
    share = percent(used, limit) if used <= limit else max(101, round(100 * used / limit))
    return f"{count(used)}/{count(limit)} " + (f"{share} %" if share < 1000 else f"×{used / limit:.0f}")


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as one row of blocks, scaled to the highest; spaces where there is none yet."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    blocks = "".join(
        SPARK[min(7, int(8 * value / top))] if top > 0 and value > 0 else SPARK[0] for value in shown
    )
    return blocks.rjust(width)


def footer(metrics: Mapping[str, Any], *, ended: str = "", model: str = "") -> str:
    """The dim line under a reply: `143 tok/s · 512 tok · TTFT 0.21 s · reused 97 % · stopped`.

    `metrics` is what `RequestMetrics.as_dict()` gave; `ended` is a word for an end other than the model's own.
    """
    parts: list[str] = []
    tokens = int(metrics.get("output_tokens", 0))
    if tokens:
        if speed := float(metrics.get("decode_rate", 0.0)):
            parts.append(f"{rate(speed)} tok/s")
        parts.append(f"{tokens:,} tok")
        if ttft := float(metrics.get("ttft", 0.0)):
            parts.append(f"TTFT {seconds(ttft)}")
    if prompt := int(metrics.get("prompt_tokens", 0)):
        parts.append(f"reused {percent(int(metrics.get('cached_tokens', 0)), prompt)} %")
    return " · ".join([*parts, *filter(None, (model, ended))])

"""How a model is divided over ranks: which heads, columns and rows of the vocabulary each one holds.

Whole groups of heads (a key-value head and the query heads that read it) go to a rank where there are as many
groups as ranks; with more ranks than key-value heads a group is shared, and every rank of it keeps a copy of its keys
and values. Nothing has to divide evenly: 9 heads over 3 key-value heads are 6 and 3 on two ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.errors import UsageError

if TYPE_CHECKING:
    from nanochat.engine.models.config import ModelConfig

_UNIT = 16  # columns that stay together: 32 bytes of bfloat16, as wide as the kernels load


@dataclass(frozen=True, slots=True)
class HeadShare:
    """The heads of one rank: each of its key-value heads is read by the same number of its query heads."""

    queries: slice
    kv: slice

    @property
    def num_queries(self) -> int:
        """Query heads of this rank."""
        return self.queries.stop - self.queries.start

    @property
    def num_kv(self) -> int:
        """Key-value heads of this rank."""
        return self.kv.stop - self.kv.start


def head_share(num_heads: int, num_kv_heads: int, rank: int, ranks: int) -> HeadShare:
    """The heads of `rank`; see this file's head."""
    group = num_heads // num_kv_heads
    if ranks <= num_kv_heads:
        kv = share(num_kv_heads, rank, ranks)
        return HeadShare(slice(kv.start * group, kv.stop * group), kv)
    head = rank * num_kv_heads // ranks
    first, end = (-(-h * ranks // num_kv_heads) for h in (head, head + 1))  # the ranks that share it
    part = share(group, rank - first, end - first)
    return HeadShare(slice(head * group + part.start, head * group + part.stop), slice(head, head + 1))


def column_share(size: int, rank: int, ranks: int) -> slice:
    """The feed-forward columns of `rank`: equal where that divides, else whole units of 16 where those do."""
    unit = 1 if size % ranks == 0 or size % _UNIT else _UNIT
    units = share(size // unit, rank, ranks)
    return slice(units.start * unit, units.stop * unit)


def vocabulary_share(size: int, rank: int, ranks: int) -> slice:
    """The rows of embedding and head of `rank`: equal, but for the last ranks, so that gathered shares only need a cut."""
    width = -(-size // ranks)
    return slice(min(rank * width, size), min((rank + 1) * width, size))


def share(size: int, rank: int, ranks: int) -> slice:
    """Contiguous, in order, no two shares different by more than one."""
    return slice(rank * size // ranks, (rank + 1) * size // ranks)


def refuse_unsplittable(config: ModelConfig, ranks: int) -> None:
    """Raise UsageError, with the numbers, for a model that cannot be divided over `ranks`.

    A model that Transformers runs has a plan that says more (`Division`).
    """
    if ranks == 1:
        return
    group = config.num_heads // config.num_kv_heads
    sharers = -(-ranks // config.num_kv_heads)
    most = config.num_kv_heads * group
    if sharers > group:
        raise UsageError(
            f"{config.num_heads} attention heads over {config.num_kv_heads} key-value heads cannot be split over "
            f"{ranks} devices: take a tensor_parallel_size (--tp) of at most {most}"
        )
    if not config.native:
        return
    widths = [config.intermediate_size, *([config.experts.intermediate_size] if config.experts else [])]
    narrowest = min(_parts(width, ranks) for width in widths)
    if narrowest < ranks:
        raise UsageError(
            f"{min(widths)} feed-forward columns cannot be split over {ranks} devices: take a tensor_parallel_size "
            f"(--tp) of at most {narrowest}"
        )


def _parts(size: int, ranks: int) -> int:
    """Into how many parts `column_share` can divide."""
    return size if size % ranks == 0 or size % _UNIT else size // _UNIT

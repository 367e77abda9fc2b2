"""How decode attention is cut into programs: constants that follow from shapes and the chip."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.kernels.sizes import next_power_of_2


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The constants of a decode launch: they follow from shapes and the chip, never from a context length.

    Attributes:
        block_q: queries a program.
        tile_heads: heads of a KV head's group that a program takes.
        block_n: positions in a tile of the walk.
        splits: programs, at most, that share a sequence's positions.
        min_split: positions of each of them, before the last ones are shared out evenly, at least.
        split_size: exactly so many instead, where bits must not depend on the batch; 0 otherwise.
    """

    block_q: int
    tile_heads: int
    block_n: int
    splits: int
    min_split: int
    split_size: int = 0
    warps: int = 4
    stages: int = 3


def decode_plan(
    *,
    seqs: int,
    queries: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    element: int,
    multiprocessors: int,
    fused: bool,
    early: bool = False,
) -> DecodePlan:
    """Constants for `seqs` sequences of up to `queries` queries.

    `seqs` is rounded up to a power of two, so that a padded batch computes the same bits as one without padding.
    Tiles of 128 positions, one of them in flight for each program: several programs a multiprocessor overlap, which
    gains more than deeper pipelines of fewer. Fused programs take so many registers that two fit, so there is one wave of
    them; else three fit. The fewer parts of a context are added up the better, as long as there are programs for the chip: so
    the more sequences there are, the longer those are that are cut (measured on an H200: of 250 with some 680 positions and 8
    key-value heads, 176 us in pieces of 1,024 and 204 in pieces of 512; of 16 with 4 heads, 27 and 23). Where a sequence has
    many programs that read before their wait, tiles have 64: what they read early is then all of a chat's context, and soon
    computed. Tiles of wide rows are as small as shared memory and registers want them.

    Args:
        element: the cache's bytes an element.
        fused: the kernel rotates queries and writes keys itself.
        early: it reads its first keys before the wait of a dependent launch.
    """
    group = heads // kv_heads
    tile_heads = min(group, max(1, 64 // queries))
    width = next_power_of_2(head_dim) * element
    programs = next_power_of_2(seqs) * kv_heads * -(-group // tile_heads)
    wanted = (2 if fused else 16) * multiprocessors // programs
    splits = 1 << max(wanted, 1).bit_length() - 1
    splits = min(max(splits, 2), 32 if fused else 16)
    block_n = (64 if early and splits >= 16 else 128) if width <= 256 else 64 if width <= 512 else 16
    min_split = block_n
    if not fused:
        min_split = (
            256 if 4 * programs <= multiprocessors else 512 if 2 * programs <= multiprocessors else 1024
        )
    return DecodePlan(
        block_q=queries, tile_heads=tile_heads, block_n=block_n, splits=splits, min_split=min_split, stages=2
    )


def invariant_plan(
    *,
    tiles: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    element: int,
    max_context: int,
    multiprocessors: int,
) -> DecodePlan:
    """Constants for bits that no batch changes: 16 rows a program, splits of 512 positions.

    Whether the splits run side by side (few tiles) or one after the other (many) changes no bit, nor how many programs
    there are for them: that is a power of two, so that a growing context does not meet a new kernel every 512 tokens.
    """
    group = heads // kv_heads
    tile_heads = min(group, 16)
    width = next_power_of_2(head_dim) * element
    return DecodePlan(
        block_q=16 // tile_heads, tile_heads=tile_heads, block_n=64 if width <= 256 else 32 if width <= 512 else 16,
        splits=next_power_of_2(-(-max_context // 512)) if tiles * kv_heads <= 4 * multiprocessors else 1,
        min_split=512, split_size=512, stages=2,
    )  # fmt: skip

"""Blocks of the paged KV cache: who owns them, what they hold, which go first.

A block is in one of three states: *free* (holds nothing of use), *used* (some sequence's table lists
it) or *cached* (nobody's, but it holds the keys and values of known tokens and has a name). The name
is `sha256(parent's name, token ids)`; the chain starts from a root that stands for the model, its
dtype and a salt. On a hit the ids and the parent are compared as well, so equal names of different
tokens would do no harm. Source of the idea: vLLM's automatic prefix caching.

Invariant: free + cached + used == total; every name belongs to one block, and that block holds the
tokens its name says. Cached blocks are evicted oldest first; a chain is released tail first, so
leaves go before their parents.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.engine.sequence import Sequence, block_name


@dataclass(frozen=True, slots=True)
class BlockContent:
    """What a named block holds: the chain up to its parent, and its own token ids."""

    parent: bytes
    tokens: tuple[int, ...]


class KVCache:
    """The block pool and its prefix index. It knows block numbers, not tensors."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(
            range(num_blocks - 1, -1, -1)
        )  # a stack: low numbers first, so tables tend to be runs
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._references = [0] * num_blocks
        self._names: list[bytes | None] = [None] * num_blocks
        self._contents: dict[bytes, BlockContent] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that hold a reusable prefix and belong to nobody."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks in some sequence's table."""
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that an allocation can have."""
        return len(self._free) + len(self._cached)

    def match(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest cached prefix of `sequence`; nothing is acquired yet.

        At least one token is always left to compute, since its logits are wanted.
        """
        blocks: list[int] = []
        for i in range((len(sequence.tokens) - 1) // self.block_size):
            name = sequence.name(i)
            block = self._blocks.get(name)
            if block is None or self._contents[name] != _content(sequence, i):
                break
            blocks.append(block)
        return blocks

    def acquire(self, blocks: Iterable[int]) -> None:
        """Count one more owner of each block."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are cached without an owner: acquiring them lessens what is available."""
        return sum(self._references[block] == 0 for block in blocks)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one owner each, evicting the oldest cached ones; None when there are not enough."""
        if count > self.num_available:
            return None
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def release(self, blocks: list[int]) -> None:
        """Give up one ownership of each block of a table; the tail first, so that leaves are evicted first.

        The table is emptied on the way, so that a Ctrl-C in here neither loses a block nor lets one be released twice.
        """
        while blocks:
            block = blocks[-1]
            assert self._references[block] > 0, f"block {block} released once too often"
            self._references[block] -= 1
            del blocks[-1]  # no call: Python looks for signals behind calls and at the loop's end
            if self._references[block] == 0:
                if self._names[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Name the full blocks among the first `num_tokens` positions, so that others can reuse them.

        Where another block already holds the same tokens, the sequence's table takes that one instead.
        """
        for i in range(sequence.num_published, num_tokens // self.block_size):
            name, content = sequence.name(i), _content(sequence, i)
            mine, twin = sequence.blocks[i], self._blocks.get(name)
            if twin is None:
                self._names[mine] = name
                self._blocks[name] = mine
                self._contents[name] = content
            elif twin != mine and self._contents[name] == content:
                self.acquire([twin])
                sequence.blocks[i] = twin
                sequence.table_changed = True
                self.release([mine])
            sequence.num_published = i + 1

    def reclaim(self) -> None:
        """Nobody owns a block any more: those that the index knows are cached, all others free."""
        known = {block: name for name, block in self._blocks.items()}
        order = [block for block in self._cached if block in known]
        order += [block for block in known if block not in self._cached]
        self._cached = OrderedDict.fromkeys(order)
        self._free = [block for block in range(self.num_blocks - 1, -1, -1) if block not in known]
        self._names = [known.get(block) for block in range(self.num_blocks)]
        self._references = [0] * self.num_blocks

    def forget(self) -> None:
        """Empty the prefix index; blocks in use stay with their owners, without names."""
        self._free.extend(reversed(self._cached))
        self._cached.clear()
        self._names = [None] * self.num_blocks
        self._contents.clear()
        self._blocks.clear()

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        name = self._names[block]
        assert name is not None
        self._names[block] = None
        del self._blocks[name], self._contents[name]
        return block

    def check_idle(self) -> None:
        """Assert, cheaply, that nobody owns a block: every one is free or cached. For when no request is left."""
        assert not any(self._references), "a block is still owned although no request is left"
        assert self.num_free + self.num_cached == self.num_blocks, "a block was lost"

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Assert the invariants, given every sequence that owns blocks."""
        owners = Counter(block for sequence in sequences for block in sequence.blocks)
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached, "a block is free and cached"
        for block in range(self.num_blocks):
            references = self._references[block]
            assert references == owners[block], f"block {block}: {references} counted, {owners[block]} owners"
            assert (references == 0) == (block in free or block in cached), (
                f"block {block} is in no state or in two"
            )
            assert block not in free or self._names[block] is None, f"free block {block} has a name"
        assert self.num_free + self.num_cached + self.num_used == self.num_blocks
        for name, block in self._blocks.items():
            assert self._names[block] == name, f"block {block} answers to a name that it does not have"
            content = self._contents[name]
            assert block_name(content.parent, list(content.tokens)) == name, f"block {block} is misnamed"
        assert self._contents.keys() == self._blocks.keys()


def _content(sequence: Sequence, i: int) -> BlockContent:
    return BlockContent(sequence.name(i - 1), tuple(sequence.block_tokens(i)))

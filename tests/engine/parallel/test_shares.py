"""What each rank holds: together everything, nothing twice but keys and values that must be."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nanochat.engine.parallel.shares import column_share, head_share, vocabulary_share


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 16))
def test_every_query_head_is_on_one_rank_with_the_keys_that_it_reads(kv: int, group: int, ranks: int) -> None:
    assume(-(-ranks // kv) <= group)
    shares = [head_share(kv * group, kv, rank, ranks) for rank in range(ranks)]
    assert [head for share in shares for head in range(share.queries.start, share.queries.stop)] == [
        *range(kv * group)
    ]
    for share in shares:
        assert share.num_queries > 0 and share.num_queries % share.num_kv == 0
        each = share.num_queries // share.num_kv
        for place, head in enumerate(range(share.queries.start, share.queries.stop)):
            assert share.kv.start + place // each == head // group


@pytest.mark.parametrize("divide", [column_share, vocabulary_share])
@given(size=st.integers(1, 5000), ranks=st.integers(1, 9))
def test_columns_and_vocabulary_are_covered_once(divide, size: int, ranks: int) -> None:
    shares = [divide(size, rank, ranks) for rank in range(ranks)]
    assert [i for share in shares for i in range(share.start, share.stop)] == [*range(size)]


def test_columns_go_in_units_that_kernels_like() -> None:
    assert [column_share(96, rank, 4) for rank in range(4)] == [slice(24 * r, 24 * r + 24) for r in range(4)]
    assert all(column_share(1536, rank, 5).start % 16 == 0 for rank in range(5))

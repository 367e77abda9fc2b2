"""Lines of name and value wrap under their values."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult

from nanochat.ui.widgets.facts import Facts

LINES = (
    "KV cache      262,144 bytes a token; 2,048 tokens at least: 512 MiB",
    "so it         needs 45.1 GB more",
)


class _Page(App[None]):
    def compose(self) -> ComposeResult:
        yield Facts(LINES)


@pytest.mark.parametrize("width", range(30, 80, 7))
async def test_a_number_and_its_unit_stand_on_one_row_at_any_width(width: int) -> None:
    async with _Page().run_test(size=(width, 20)) as pilot:
        rows = str(pilot.app.query_one(Facts).render()).split("\n")
    for together in ("262,144 bytes", "2,048 tokens", "512 MiB", "45.1 GB"):
        assert any(together in row for row in rows), rows
    assert all(len(row) <= width for row in rows)
    assert all(row.startswith(" " * 14) for row in rows if not row.startswith(("KV cache", "so it")))

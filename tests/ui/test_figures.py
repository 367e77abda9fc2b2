"""Numbers as the screen writes them, and which of them fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.outputs import EngineStats, RequestMetrics
from nanochat.ui import figures
from nanochat.ui.monitor import Reading
from nanochat.ui.screens.numbers import _ranks
from nanochat.ui.status_fields import ChatFigures, Field, fields, fitting
from nanochat.ui.titles import clean_title

ENGINE = EngineStats(
    state="ready", model="Qwen3-0.6B", blocks_total=100, blocks_used=41, blocks_cached=30, waiting=1
)
CHAT = ChatFigures(
    state="prefilling", active=True, prefill_done=3100, prefill_total=9800, prefill_rate=8412.0,
    decode_rate=143.0, decode_history=(120.0, 143.0), ttft=0.21, reused=7904, prompt_tokens=8120, context_used=8100, context_limit=32768,
)  # fmt: skip
DEVICE = Reading("VRAM", int(17.2 * 2**30), 24 * 2**30, 250.0)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (812, "812"), (999, "999"), (1000, "1.0k"), (9840, "9.8k"), (9960, "10k"), (131072, "131k"),
     (999_499, "999k"), (999_600, "1.0M"), (1_234_567, "1.2M")],
)  # fmt: skip
def test_counts_are_short(number: int, text: str) -> None:
    assert figures.count(number) == text


@given(st.integers(0, 10**13))
def test_a_count_never_takes_more_than_five_cells(number: int) -> None:
    assert len(figures.count(number)) <= 5


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_share_is_whole_only_when_it_is(part: int, whole: int) -> None:
    share = figures.percent(part, whole)
    assert (share == 100) == (part >= whole)
    assert (share == 0) == (part == 0)


@pytest.mark.parametrize(
    ("used", "limit", "text"),
    [(2500, 8192, "2.5k/8.2k 31 %"), (8191, 8192, "8.2k/8.2k 99 %"), (8192, 8192, "8.2k/8.2k 100 %"),
     (8193, 8192, "8.2k/8.2k 101 %"), (11_960, 8192, "12k/8.2k 146 %"), (131_072, 8192, "131k/8.2k ×16")],
)  # fmt: skip
def test_a_context_says_how_full_it_is_also_past_its_end(used: int, limit: int, text: str) -> None:
    assert figures.fill(used, limit) == text
    chat = replace(CHAT, context_used=used, context_limit=limit)
    assert f"ctx {text}" in [field.text for field in fields(chat, ENGINE, DEVICE)]


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_a_context_is_never_cut_on_the_bar(used: int, limit: int) -> None:
    chat = replace(CHAT, context_used=used, context_limit=limit)
    (field,) = [field for field in fields(chat, ENGINE, DEVICE) if field.name == "context"]
    assert len(field.text) <= field.width


@given(st.floats(0, 9000))
def test_a_wait_takes_six_cells_at_most(wait: float) -> None:
    assert len(figures.seconds(wait)) <= 6


@pytest.mark.parametrize(
    ("mib", "text"),
    [
        (412, "412M"),
        (999, "999M"),
        (1000, "0.98G"),
        (1240, "1.21G"),
        (10_235, "10.0G"),
        (17_613, "17.2G"),
        (144_384, "141G"),
    ],
)
def test_memory_has_three_digits(mib: int, text: str) -> None:
    assert figures.size(mib << 20) == text


def test_memory_is_drawn_again_when_it_moved_a_little_and_never_flickers() -> None:
    shown = Reading("RAM", 640 << 20, 24 << 30)
    assert not replace(shown, memory_used=(640 << 20) + (3 << 20)).moved_from(shown)
    assert not replace(shown, memory_used=(640 << 20) - (3 << 20)).moved_from(shown)
    assert replace(shown, memory_used=(640 << 20) + (5 << 20)).moved_from(shown)
    large = Reading("VRAM", 80 << 30, 141 << 30, 400.0)
    assert not replace(large, memory_used=(80 << 30) + (100 << 20), power=405.0).moved_from(large)
    assert replace(large, memory_used=(80 << 30) + (200 << 20)).moved_from(large)
    assert replace(large, power=409.0).moved_from(large)
    assert replace(large, power=None).moved_from(large)
    assert not replace(large, busy=50.0, temperature=60.0).moved_from(large)  # shown nowhere


def test_the_footer_is_the_line_that_stays() -> None:
    metrics = RequestMetrics(
        prompt_tokens=8120, cached_tokens=7904, output_tokens=512, ttft=0.21, decode_time=511 / 143
    ).as_dict()
    assert (
        figures.footer(metrics, ended="stopped")
        == "143 tok/s · 512 tok · TTFT 0.21 s · reused 97 % · stopped"
    )
    assert figures.footer({}) == ""


def test_the_bar_says_what_the_issue_lists() -> None:
    said = {field.name: field.text for field in fields(CHAT, ENGINE, DEVICE)}
    assert said["prefill"] == "prefill 8,412/s 3.1k/9.8k"
    assert said["decode"] == "143 tok/s"
    assert said["ttft"] == "TTFT 0.21 s"
    assert said["reused"] == "reused 7.9k/8.1k"
    assert said["context"] == "ctx 8.1k/33k 25 %"
    assert said["kv"] == "KV 41 % · 30 % cached"
    assert said["queue"] == "queue 1"
    assert said["memory"] == "VRAM 17.2G/24.0G"
    assert said["power"] == "250 W"


@given(st.integers(0, 250))
def test_the_bar_never_outgrows_its_width_and_keeps_the_important(width: int) -> None:
    kept = fitting(fields(CHAT, ENGINE, DEVICE), width)
    assert kept[0].name == "state"
    assert len(kept) == 1 or sum(field.width for field in kept) + 3 * (len(kept) - 1) <= width
    order = [field.name for field in fields(CHAT, ENGINE, DEVICE)]
    assert [order.index(field.name) for field in kept] == sorted(order.index(field.name) for field in kept)


def test_a_narrow_bar_has_state_and_context_and_a_wide_one_has_everything() -> None:
    narrow = {field.name for field in fitting(fields(CHAT, ENGINE, DEVICE), 58)}
    assert {"state", "context", "model"} <= narrow
    wide = {field.name for field in fitting(fields(CHAT, ENGINE, DEVICE), 250)}
    assert {"kv", "queue", "memory", "power", "spark", "prefill"} <= wide


@pytest.mark.parametrize(("used", "tone"), [(7900, ""), (8000, "warning"), (10_000, "error")])
def test_the_context_warns_from_eighty_percent_on(used: int, tone: str) -> None:
    chat = ChatFigures(context_used=used, context_limit=10_000)
    found = next(field for field in fields(chat, ENGINE, DEVICE) if field.name == "context")
    assert found.tone == tone


def test_a_field_never_changes_its_width_with_its_figure() -> None:
    def widths(chat: ChatFigures) -> list[int]:
        return [field.width for field in fields(chat, ENGINE, DEVICE)]

    assert widths(CHAT) == widths(ChatFigures())


def test_fields_without_a_figure_take_no_room() -> None:
    assert fitting([Field("a", "", 10, 0), Field("b", "x", 3, 1)], 5) == [Field("b", "x", 3, 1)]


def test_a_sparkline_is_as_wide_as_asked_and_scaled_to_its_top() -> None:
    assert figures.sparkline([1, 2, 4], 5) == "  ▃▅█"
    assert figures.sparkline([], 3) == "   "
    assert figures.sparkline([0, 0], 2) == "▁▁"


@pytest.mark.parametrize(
    ("answer", "title"),
    [("The Sea: A World of Wonders", "The Sea: A World of Wonders"), ('  "**Baking** bread."\n', "Baking bread"),
     ("\n\n", ""), ("\x1b[31mRed\x07", "[31mRed"), (" ".join(["word"] * 13), "")],
)  # fmt: skip
def test_a_title_is_what_can_stand_in_a_list(answer: str, title: str) -> None:
    assert clean_title(answer) == title


@pytest.mark.parametrize("name", ["m", "Qwen3-8B", "a-model-whose-name-is-longer-than-that"])
def test_the_status_bar_of_eighty_columns_tells_over_how_many_devices_a_model_is_split(name: str) -> None:
    def said(ranks: int, width: int) -> dict[str, str]:
        link = (
            "NCCL over NVLink, sums of up to 8 rows in one shot, up to 512 in wide ones (one row in 3.1 us)"
        )
        stats = replace(ENGINE, model=name, ranks=ranks, link=link if ranks > 1 else "")
        return {field.name: field.text for field in fitting(fields(CHAT, stats, DEVICE), width)}

    alone, split = said(1, 78), said(2, 78)
    assert "×" not in alone["model"] and split["model"].endswith(" ×2")
    assert {"state", "context", "decode"} <= split.keys() and len(split["model"]) <= 27
    assert said(2, 250)["link"] == "NCCL over NVLink" and "link" not in said(1, 250)


def test_the_numbers_page_says_what_each_rank_holds_and_how_they_are_linked() -> None:
    stats = EngineStats(
        ranks=2, rank_bytes=(3 << 30, 2 << 30), link="gloo over loopback", collective_seconds=1.5
    )
    said = dict(_ranks(stats))
    assert said["rank 0"].startswith("3.00G") and said["rank 1"].startswith("2.00G")
    assert said["link"] == "gloo over loopback." and said["in collectives"].startswith("1.50 s")
    assert dict(_ranks(replace(stats, collective_seconds=0.0)))["in collectives"].startswith("0.00 s since")
    assert "bench --tp" in dict(_ranks(replace(stats, collective_seconds=None)))["in collectives"]
    assert _ranks(EngineStats()) == ()

"""Results on disk, beside one another, and as text."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nanochat.benchmarks.charts import charts_of
from nanochat.benchmarks.comparison import compare
from nanochat.benchmarks.plot import svg
from nanochat.benchmarks.report import as_csv, comparison_lines, header, markdown, table
from nanochat.benchmarks.result import DamagedResult, NoSuchResult, Row, Run
from nanochat.benchmarks.storage import Results

WORK = {"seconds": 0.5, "bound": "bandwidth", "bytes": 1e9, "operations": 2e9}


def a_row(
    test: str = "tg128", samples: tuple[float, ...] = (100.0, 101.0, 102.0, 103.0), **values: object
) -> Row:
    return Row(test=test, engine="nanochat", unit="tok/s", samples=samples, repeats=4, **values)  # type: ignore[arg-type]


def a_run(*rows: Row, name: str = "20260101-000000-aaaa") -> Run:
    return Run(
        id=name,
        started="2026-01-01T00:00:00+0000",
        preset="quick",
        model={
            "name": "tiny", "parameters": 2_000_000, "dtype": "bfloat16", "weight_bytes": 4_000_000,
            "weights": "random", "revision": None,
        },
        environment={"device": "a processor", "nanochat": "0.1.0", "torch": "2.13.0"},
        ceilings={"read": 1e10, "matrix": 1e12},
        settings={"repeats": 4},
        rows=rows,
    )  # fmt: skip


def test_a_run_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    results = Results(tmp_path / "bench")
    run = a_run(
        a_row(ceiling=200.0, work=WORK, details={"itl": (1.0, 2.0)}, flags=("busy",), place={"batch": 2})
    )
    path = results.save(run)
    assert results.load(run.id) == run
    assert results.load(str(path)) == run
    kept = json.loads(path.read_text())
    assert kept["schema"] == 1 and kept["rows"][0]["samples"] == [100.0, 101.0, 102.0, 103.0]
    assert kept["rows"][0]["median"] == 101.5 and kept["rows"][0]["fraction_of_ceiling"] == 101.5 / 200


def test_runs_are_found_by_their_beginning_and_by_how_recent_they_are(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for name in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
        results.save(a_run(a_row(), name=name))
    assert results.load("last").id.endswith("bbbb")
    assert results.load("last-1").id.endswith("aaaa")
    assert results.load("20260102").id.endswith("bbbb")
    for wrong in ("last-2", "2026", "nothing"):
        with pytest.raises(NoSuchResult):
            results.load(wrong)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1, "rows": [{}]}', '{"schema": 99}', "\x00"])
def test_a_file_that_is_no_result_is_refused_by_its_name(content: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    file.write_text(content)
    with pytest.raises(DamagedResult, match=r"odd\.json"):
        Results(tmp_path).load(str(file))


def test_a_row_of_nothing_is_still_json(tmp_path: Path) -> None:
    results = Results(tmp_path)
    run = a_run(a_row(samples=(), error="out of memory: 3 GiB wanted"))
    results.save(run)
    assert results.load(run.id) == run


def test_the_same_run_is_within_noise_of_itself() -> None:
    run = a_run(a_row())
    (difference,) = compare(run, run).differences
    assert difference.verdict == "within noise" and difference.change == 0


def test_faster_and_slower_follow_the_unit() -> None:
    rates, times = a_row(), replace(a_row("first token"), unit="ms")
    more = tuple(value * 1.1 for value in rates.samples)
    found = compare(
        a_run(rates, times), a_run(replace(rates, samples=more), replace(times, samples=more))
    ).differences
    assert [each.verdict for each in found] == ["faster", "slower"]
    assert all(each.change == pytest.approx(0.1) for each in found)


def test_three_samples_are_too_few_to_tell() -> None:
    few = a_row(samples=(1.0, 2.0, 3.0))
    (difference,) = compare(a_run(few), a_run(replace(few, samples=(11.0, 12.0, 13.0)))).differences
    assert difference.verdict == "too few samples"


def test_a_comparison_says_what_else_changed_and_what_is_missing() -> None:
    before, after = a_run(a_row(), a_row("pp512")), a_run(a_row(), a_row("pp2048"))
    after = replace(after, environment={**after.environment, "torch": "2.14.0"})
    comparison = compare(before, after)
    assert comparison.only_first == ("pp512 (nanochat)",) and comparison.only_second == ("pp2048 (nanochat)",)
    assert comparison.changed == ("torch: 2.13.0 -> 2.14.0",)
    text = "\n".join(comparison_lines(comparison))
    assert "within noise" in text and "rank-sum" in text and "4 samples" in text


def test_markdown_has_llama_bench_columns() -> None:
    lines = markdown(a_run(a_row(ceiling=200.0, work=WORK))).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")][:4] == [
        "model",
        "size",
        "params",
        "backend",
    ]
    assert "| tg128 | 101.50 ± 0.75 | 200.0 | 50.7 % | bandwidth |" in lines[2]
    assert all(line.count("|") == lines[0].count("|") for line in lines[:3])


def test_csv_has_every_sample() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(a_run(a_row())))))
    assert [float(row["value"]) for row in rows] == [100.0, 101.0, 102.0, 103.0]
    assert [row["repeat"] for row in rows] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("preset", "unpaced"),
    [
        ("gap", []),
        ("gap interference", []),
        ("quick", []),
        ("s gap", ["gap"]),
        ("interference b", ["interference"]),
    ],
)
def test_a_reply_beside_a_prompt_that_was_not_read_at_the_chats_pace_says_so(
    preset: str, unpaced: list[str]
) -> None:
    careful = [
        line for line in header(replace(a_run(a_row()), preset=preset)) if line.startswith("careful: ")
    ]
    assert [line.split()[1] for line in careful] == [f"{name}:" for name in unpaced]


def test_a_table_stars_what_is_partial_and_shows_what_failed() -> None:
    text = "\n".join(
        table(a_run(a_row(samples=(1.0, 2.0)), a_row("pp512", samples=(), error="out of memory")))
    )
    assert "2*" in text and "out of memory" in text


def test_the_picture_is_xml_with_every_point() -> None:
    rows = [
        a_row(f"batch {n}", ceiling=200.0, work=WORK, place={"batch": n}) for n in (1, 2, 4)
    ] + [replace(a_row("turn <1>", place={"turn": 1, "cache": True}), unit="ms")]  # fmt: skip
    run = a_run(*rows)
    assert [chart.title for chart in charts_of(run)] == [
        "Throughput against batch", "Throughput of each request", "First token of each turn", "Roofline",
    ]  # fmt: skip
    tree = ElementTree.fromstring(svg(run))
    circles = tree.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 3 + 3 + 3 + 1  # each chart's points; the roof has none


def test_the_roofline_puts_a_row_at_its_intensity_and_its_rate() -> None:
    chart = charts_of(a_run(a_row(ceiling=203.0, work=WORK)))[0]
    roof, points = chart.series
    assert points.points == (pytest.approx((2.0, 2e9 * 0.5 / 0.5 / 1e12)),)
    assert roof.points[1] == (100.0, 1.0)  # 1e12 operations over 1e10 bytes


def test_a_run_without_a_figure_still_has_a_picture() -> None:
    assert "no figure was measured" in svg(a_run())

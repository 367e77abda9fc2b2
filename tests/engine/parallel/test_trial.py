"""Which way a sum over GPUs goes; what is measured and what sums are fakes."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest
import torch

from nanochat.engine.parallel import trial

pytest.importorskip("triton", reason="Triton runs on Linux only")

from nanochat.kernels import triton_gemv, triton_norm

CPU = torch.device("cpu")
WIDTH = 64

Times = dict[int, tuple[float, float, float]]
ADDED = {1: (2, 6), 8: (5, 6)}
STEADY: Times = {
    1: (3, 5, 8), 8: (4, 5, 8), 32: (7, 6, 9), 128: (15, 9, 12), 256: (inf, 13, 20), 512: (inf, 20, 30),
    2048: (inf, 70, 65), 8192: (inf, 270, 200),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "added", "limits", "words"),
    [
        ({}, {}, (8, 512, 8), "sums of up to 8 rows in one shot, up to 512 in wide ones (one row in 3.0 us, by NCCL in 8.0)"),
        ({2048: (inf, 60, 65)}, {}, (8, 2048, 8), "sums of up to 8 rows in one shot, up to 2048 in wide ones (one row"),
        ({2048: (inf, 60, 65), 8192: (inf, 190, 200)}, {}, (8, 8192, 8), "sums of up to 8 rows in one shot, up to 8192 in wide ones"),
        ({512: (inf, 31, 30)}, {}, (8, 256, 8), "sums of up to 8 rows in one shot, up to 256 in wide ones"),
        ({8: (5, 4, 8), 32: (5, 6, 9)}, {}, (32, 512, 8), "sums of up to 32 rows in one shot, up to 512 in wide ones"),
        ({32: (7, 9, 6)}, {}, (8, 8, 8), "sums of up to 8 rows in one shot (one row"),
        ({1: (6, 5, 8), 8: (6, 5, 8)}, {1: (7, 6)}, (0, 512, 0), "sums of up to 512 rows in wide ones (one row in 5.0 us"),
        ({1: (6, 5, 8), 8: (6, 5, 8)}, {8: (7, 6)}, (0, 512, 1), "sums of up to 512 rows in wide ones, up to 1 with the residual al"),
        ({1: (9, 9, 8)}, {1: (9, 8)}, (0, 0, 0), "no sums in one shot (one row in 9.0 us, by NCCL in 8.0)"),
        ({1: (9, 9, 8)}, {}, (0, 0, 8), "sums of up to 8 rows with the residual alone in one shot (one row in 9.0 us, by"),
    ],
)  # fmt: skip
def test_each_number_of_rows_goes_the_way_that_is_fastest_on_the_slowest_rank(
    changed: Times,
    added: dict[int, tuple[float, float]],
    limits: tuple[int, int, int],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times, steps = STEADY | changed, ADDED | added
    asked = [*times.values(), steps[1], *([steps[8]] if steps[1][0] < steps[1][1] else [])]
    taken = iter([seconds for row in asked for seconds in row if seconds < inf])
    monkeypatch.setattr(trial, "_seconds", lambda step, device: (step(), next(taken) / 2 * 1e-6)[1])
    monkeypatch.setattr(triton_norm, "add_rms_norm", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    collectives = SimpleNamespace(
        exchange=lambda x: torch.stack([x, 2 * x, x]), measured={}, reduce=lambda x: x
    )
    small, wide = (
        SimpleNamespace(
            takes=lambda x, rows=rows: len(x) <= rows, sum=lambda x: x, add=lambda delta, x, pdl: x, add_norm=lambda *_: None,
            two_shots=0, flagless=0,
        )
        for rows in (128, 8192)
    )  # fmt: skip
    found = trial.measure(collectives, small, wide, CPU, WIDTH, torch.float32, [*times])  # type: ignore[arg-type]
    assert tuple(found) == (*limits, 0, 0) and next(taken, None) is None
    assert trial.describe(found, collectives.measured).startswith(words)
    expected = {rows: tuple(seconds * 1e-6 for seconds in three) for rows, three in times.items()}
    assert collectives.measured.keys() == expected.keys()
    for rows, three in expected.items():
        assert collectives.measured[rows] == pytest.approx(three)


@pytest.mark.parametrize(
    ("twice", "limits", "words"),
    [
        (
            (9, 9, 9, 8, 8, 9, 69, 250),
            (8, 512, 8, 128),
            "up to 512 in wide ones, from 128 on in two shots (one",
        ),
        (
            (4, 9, 9, 9, 14, 9, 69, 250),
            (8, 512, 8, 512),
            "up to 512 in wide ones, from 512 on in two shots (one",
        ),
        (
            (9, 9, 9, 8, 8, 9, 69, 290),
            (8, 512, 8, 128),
            "up to 512 in wide ones, from 128 on in two shots (one",
        ),
        ((4, 4, 4, 4, 4, 25, 80, 290), (8, 512, 8, 0), "up to 512 in wide ones (one"),
        (
            (4, 9, 9, 9, 14, 21, 60, 190),
            (8, 8192, 8, 2048),
            "up to 8192 in wide ones, from 2048 on in two shots (one",
        ),
    ],
)
def test_wide_sums_go_in_two_shots_from_where_that_is_always_faster(
    twice: tuple[int, ...], limits: tuple[int, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = [(*three, two) for three, two in zip(STEADY.values(), twice, strict=True)]
    taken = iter([seconds for row in [*four, *ADDED.values()] for seconds in row if seconds < inf])
    said: list[int] = []
    wide = SimpleNamespace(
        two_shots=0,
        flagless=0,
        takes=lambda x: True,
        sum=lambda x: x,
        add_norm=lambda *_: said.append(wide.two_shots),
    )
    monkeypatch.setattr(trial, "_seconds", lambda step, device: (step(), next(taken) * 1e-6)[1])
    monkeypatch.setattr(triton_norm, "add_rms_norm", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    small = SimpleNamespace(
        takes=lambda x: len(x) <= 128, add=lambda delta, x, pdl: x, sum=lambda x: x, add_norm=lambda *_: None
    )
    collectives = SimpleNamespace(exchange=lambda x: torch.stack([x, x]), measured={}, reduce=lambda x: x)
    found = trial.measure(collectives, small, wide, CPU, WIDTH, torch.float32, [*STEADY], in_two=True)  # type: ignore[arg-type]
    assert tuple(found) == (*limits, 0) and said == [0, 1] * 8 and wide.two_shots == 0
    assert words in trial.describe(found, collectives.measured)
    counted = [
        two if 0 < limits[3] <= rows else three[1]
        for (rows, three), two in zip(STEADY.items(), twice, strict=True)
    ]
    assert [three[1] for three in collectives.measured.values()] == pytest.approx([s * 1e-6 for s in counted])


@pytest.mark.parametrize(
    ("limits", "others"),
    [((0, 512), ["wide"] * 2), ((0, 0), ["NCCL"] * 2), ((1, 512), ["one shot, sum", "wide"])],
)
def test_what_a_step_does_instead_is_what_its_exchange_is_measured_against(
    limits: tuple[int, int], others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def seconds(step, device) -> float:
        step()
        return 1.0 if said[-1] == "one shot" else 2.0

    monkeypatch.setattr(trial, "_seconds", seconds)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    one_shot = SimpleNamespace(
        add=lambda delta, x, pdl: said.append("one shot") or x,
        sum=lambda x: said.append("one shot, sum") or x,
    )
    wide = SimpleNamespace(sum=lambda x: said.append("wide") or x)
    collectives = SimpleNamespace(
        exchange=lambda x: torch.stack([x, x]), reduce=lambda x: said.append("NCCL") or x
    )
    found = trial._measure_added(
        collectives, one_shot, wide, trial.Limits(*limits), CPU, WIDTH, torch.float32
    )  # type: ignore[arg-type]
    assert found == 8 and said == ["one shot", others[0], "one shot", others[1]]


@pytest.mark.parametrize(
    ("without", "limit", "words"),
    [
        (
            (2, 2, 4, 7, 9, 16),
            512,
            "up to 512 rows in wide ones, up to 512 without flags, up to 8 with the residual",
        ),
        ((9, 9, 4, 7, 9, 21), 256, "up to 512 in wide ones, up to 256 without flags (one"),
        ((9, 9, 9, 9, 13, 20), 0, "up to 512 in wide ones (one"),
    ],
)
def test_wide_sums_go_without_flags_up_to_where_that_was_faster(
    without: tuple[int, ...], limit: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 512 rows at most; the small ones that one shot is faster for stay with it."""
    all_ways = [(*three, own) for three, own in zip(STEADY.values(), (*without, inf, inf), strict=True)]
    taken = iter([seconds for row in [*all_ways, *ADDED.values()] for seconds in row if seconds < inf])
    ways: list[int] = []
    wide = SimpleNamespace(
        two_shots=0, flagless=0, takes=lambda x: True, sum=lambda x: x, add_norm=lambda *_: ways.append(wide.flagless)
    )  # fmt: skip
    monkeypatch.setattr(trial, "_seconds", lambda step, device: (step(), next(taken) * 1e-6)[1])
    monkeypatch.setattr(triton_norm, "add_rms_norm", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    small = SimpleNamespace(
        takes=lambda x: len(x) <= 128, add=lambda delta, x, pdl: x, sum=lambda x: x, add_norm=lambda *_: None
    )
    collectives = SimpleNamespace(exchange=lambda x: torch.stack([x, x]), measured={}, reduce=lambda x: x)
    found = trial.measure(collectives, small, wide, CPU, WIDTH, torch.float32, [*STEADY], flagless=True)  # type: ignore[arg-type]
    assert (
        next(taken, None) is None
        and wide.flagless == 0
        and [bool(way) for way in ways] == [*[False, True] * 6, False, False]
    )
    assert (found.wide, found.flagless) == (512, limit)
    assert words in trial.describe(found, collectives.measured)
    counted = [
        own if rows <= limit else three[1]
        for (rows, three), own in zip(STEADY.items(), (*without, inf, inf), strict=True)
    ]
    assert [three[1] for three in collectives.measured.values()] == pytest.approx([s * 1e-6 for s in counted])
    assert found.small == (0 if without[1] < 4 else 8)


def test_a_message_of_the_most_rows_that_a_step_has_is_measured_too() -> None:
    assert trial.sizes_up_to(8192) == [1, 8, 32, 128, 256, 512, 2048, 8192]
    assert trial.sizes_up_to(512) == [1, 8, 32, 128, 256, 512]
    assert trial.sizes_up_to(100) == [1, 8, 32, 100]
    assert trial.sizes_up_to(1) == [1]


def test_a_way_that_is_wrong_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_seconds", lambda step, device: 1e-6)
    collectives = SimpleNamespace(exchange=lambda x: torch.stack([x, x]), measured={})
    wide = SimpleNamespace(takes=lambda x: True)
    assert trial.measure(collectives, None, wide, CPU, WIDTH, torch.float32, [1, 9]) == (0, 0, 0, 0, 0)  # type: ignore[arg-type]
    assert set(collectives.measured.values()) == {(inf, 1e-6, 1e-6)}


def test_half_a_layer_is_measured_both_ways_and_the_slowest_rank_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def gemv(y, weight, *, to=None, **_):
        said.append("product" if to is None else "sent")
        return torch.nn.functional.linear(y, weight)

    def seconds(step, device) -> float:
        step()
        return 1e-5 * len(said)

    monkeypatch.setattr(triton_gemv, "gemv", gemv)
    monkeypatch.setattr(trial, "_seconds", seconds)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    end = SimpleNamespace(
        outlet=lambda x: "everywhere", collect=lambda x, pdl: said.append("collected") or x,
        add=lambda delta, x, pdl: said.append("exchanged") or x + delta,
    )  # fmt: skip
    collectives = SimpleNamespace(exchange=lambda x: torch.stack([x, 3 * x, x]))
    found = trial.measure_products(collectives, end, CPU, WIDTH, torch.float32)  # type: ignore[arg-type]
    assert said == ["product", "sent", "collected", "product", "product", "exchanged"]
    assert found == pytest.approx((9e-5, 18e-5))

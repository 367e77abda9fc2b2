"""Whether sums over GPUs come out right; what sums are fakes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nanochat.engine.parallel import soundness

pytest.importorskip("triton", reason="Triton runs on Linux only")

from nanochat.kernels import triton_gemv

CPU = torch.device("cpu")
WIDTH = 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_sums_are_found_sound_and_wrong_ones_are_not(dtype: torch.dtype) -> None:
    """A sum by NCCL ends in the place of what was summed."""
    collectives = SimpleNamespace(rank=0, reduce=lambda x: x.mul_(2))
    asked: list[int] = []

    def doubled(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return 2 * x

    end = SimpleNamespace(
        rows=8, looks=1, takes=lambda x: True, sum=doubled, failed=torch.zeros(1, dtype=torch.int32)
    )

    def found() -> bool:
        return soundness.sound(collectives, end, CPU, WIDTH, dtype)  # type: ignore[arg-type]

    assert found()
    assert sorted(asked) == [1, 1, 3, 3, 8, 8, 10], "both halves of the inbox, and more than one launch takes"
    end.failed.fill_(1)
    assert not found() and end.looks == 1
    assert found(), "the other way is not blamed for it"
    seen: list[torch.Tensor] = []
    end.sum = lambda x: (
        2 * (seen.append(x) or seen[max(len(seen) - 2, 0)])[: len(x)] if len(x) == 1 else 2 * x
    )
    assert not found(), "the second sum is the first one's"
    end.sum = lambda x: 3 * x
    assert not found()
    end.takes = lambda x: False
    assert not found()


def test_products_whose_sum_is_right_are_found_sound_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(
        triton_gemv,
        "gemv",
        lambda y, weight, *, pdl, late, to: sent.append(torch.nn.functional.linear(y, weight)),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    collectives = SimpleNamespace(rank=0, reduce=lambda x: x.mul_(2))
    end = SimpleNamespace(looks=1, outlet=lambda x: "everywhere", failed=torch.zeros(1, dtype=torch.int32))

    def found() -> bool:
        return soundness.sound_products(collectives, end, CPU, WIDTH, torch.float32)  # type: ignore[arg-type]

    end.collect = lambda x, pdl: x + 2 * sent[-1]
    assert found() and len(sent) == 4
    end.failed.fill_(1)
    assert not found() and not end.failed.item() and end.looks == 1
    end.collect = lambda x, pdl: x + sent[-1]
    assert not found()
    end.collect = lambda x, pdl: x + 2 * sent[-2 if len(sent) % 4 == 0 else -1]
    assert not found(), "the last product's sum is that of the one before"
    end.outlet = lambda x: None
    assert not found()


@pytest.mark.parametrize(("sound", "way"), [("in_two_shots", (1, 0)), ("flagless", (0, soundness.ALL))])
def test_the_way_that_is_tried_is_the_one_that_is_asked_about(sound: str, way: tuple[int, int]) -> None:
    """And rows of which it takes no more go another way."""
    gone: list[tuple[int, int, int]] = []
    end = SimpleNamespace(
        rows=2048, looks=1, takes=lambda x: True, failed=torch.zeros(1, dtype=torch.int32), two_shots=7, flagless=9
    )  # fmt: skip
    end.sum = lambda x: (gone.append((len(x), end.two_shots, end.flagless)), 2 * x)[1]
    collectives = SimpleNamespace(rank=0, reduce=lambda x: x.mul_(2))
    assert getattr(soundness, f"sound_{sound}")(collectives, end, CPU, WIDTH, torch.float32)
    most = 2048 if sound == "in_two_shots" else 512
    assert gone == [(rows, *way) for rows in (1, 1, most, most, 3, 3, most + 2)]
    assert (end.two_shots, end.flagless) == (7, 9)

"""What was measured is shared by all engines of a machine, and nobody's measurements are lost."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton runs on Linux only")

from triton import OutOfResources

from nanochat.kernels import tuning, tuning_cache
from nanochat.kernels.gemv_config import GemvConfig, GemvShape, candidate_configs, default_config
from nanochat.kernels.tuning import tune_gemv, tune_in_step
from nanochat.kernels.tuning_cache import TuningCache

SHAPES = [GemvShape(rows, 512, 256, False, False) for rows in (1, 2, 4)]
MATRIX = 512 * 256 * 2  # bytes of such a shape in bfloat16


def cache_at(path: Path | None, device: str = "a chip", dtype: torch.dtype = torch.bfloat16) -> TuningCache:
    return TuningCache(path, device, dtype)


class Allocations(TorchDispatchMode):
    """What torch makes anew meanwhile, in bytes and kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, int] = {}
        self.kinds: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.made[out.untyped_storage().data_ptr()] = out.untyped_storage().nbytes()
            self.kinds.add(out.dtype)
        return out


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A chip that holds `chip.free` bytes more, and knows how many launches were timed at once."""
    chip = SimpleNamespace(free=0, launches=[], error=None)

    def time_of_launches(launches: list[Any], **_: object) -> float:
        chip.launches.append(len(launches))
        if chip.error is not None:
            raise chip.error
        return 1.0 / len(chip.launches)  # the last candidate is the fastest

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (chip.free, 1 << 40))
    monkeypatch.setattr(tuning, "time_of_launches", time_of_launches)
    monkeypatch.setattr(tuning, "_ROTATED_BYTES", 4 * MATRIX)
    return chip


def tune(cache: TuningCache, shape: GemvShape = SHAPES[0], weights: Any = ()) -> dict[GemvConfig, float]:
    return tune_gemv(
        shape, cache, dtype=torch.bfloat16, device=torch.device("cpu"), pdl=False, weights=weights
    )


def test_over_the_models_own_matrices_nothing_is_drawn_however_full_the_card_is(chip: Any) -> None:
    weights = [torch.empty(512, 256, dtype=torch.bfloat16) for _ in range(9)]
    cache = cache_at(None)
    with Allocations() as seen:
        tune(cache, weights=weights)
    assert cache.get(SHAPES[0]) == candidate_configs(SHAPES[0])[-1]
    assert sum(seen.made.values()) < MATRIX / 8
    assert set(chip.launches) == {4}, "as many as no cache holds are enough"


@pytest.mark.parametrize(("free", "drawn"), [(9, 3), (6, 3), (5, 2), (4, 2)])
def test_what_is_lacking_takes_half_of_what_is_free_at_most_in_its_own_dtype(
    free: int, drawn: int, chip: Any
) -> None:
    chip.free = free * MATRIX
    given = [torch.empty(512, 256, dtype=torch.bfloat16)]
    cache = cache_at(None)
    with Allocations() as seen:
        tune(cache, weights=given)
    assert cache.get(SHAPES[0]) == candidate_configs(SHAPES[0])[-1]
    assert drawn * MATRIX <= sum(seen.made.values()) < (drawn + 0.125) * MATRIX
    assert seen.kinds == {torch.bfloat16}


def test_a_single_matrix_that_no_cache_holds_is_launched_often_enough_to_be_timed(chip: Any) -> None:
    shape = GemvShape(1, 4 * 512, 256, False, False)
    tune(cache_at(None), shape, [torch.empty(4 * 512, 256, dtype=torch.bfloat16)])
    assert set(chip.launches) == {4}


def in_step(cache: TuningCache, step: Any, **candidates: Any) -> dict[GemvShape, dict[GemvConfig, float]]:
    given = candidates.get("candidates") or {shape: candidate_configs(shape) for shape in SHAPES[:2]}
    return tune_in_step(given, cache, lambda: step, seconds=candidates.get("seconds", 99.0))


def test_in_a_step_products_are_settled_beside_each_other_and_not_beside_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One round would end where the first product stood well beside the second one's default."""
    cache, tried = cache_at(None), list[tuple[GemvConfig, GemvConfig]]()
    first, second = SHAPES[:2]
    seconds = {(8, 8): 0.0, (2, 8): 1.0, (2, 4): 2.0, (4, 8): 2.0, (4, 4): 3.0}  # by warps

    def step() -> float:
        tried.append((cache.config(first), cache.config(second)))
        return seconds.get((tried[-1][0].warps, tried[-1][1].warps), 4.0)

    def time_of_launches(launches: list[Any], rounds: int) -> float:
        return 1e-3 + [launch() for launch in launches][-1]

    monkeypatch.setattr(tuning, "time_of_launches", time_of_launches)
    times = in_step(cache, step)
    assert tried[0] == (default_config(first), default_config(second))
    assert [set(times[shape]) for shape in (first, second)] == [
        set(candidate_configs(shape)) for shape in (first, second)
    ]
    assert (cache.config(first).warps, cache.config(second).warps) == (8, 8)
    assert cache.config(first) == min(times[first], key=lambda config: times[first][config])


class Slow:
    """A step of half a second on a clock that only it moves; the first one, which compiles, takes ten."""

    def __init__(self, cache: TuningCache, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.now, self.measured = cache, 0.0, list[GemvConfig]()
        self.replays: set[int] = set()
        monkeypatch.setattr(tuning, "time_of_launches", self.time_of_launches)
        monkeypatch.setattr(tuning.time, "monotonic", lambda: self.now)

    def time_of_launches(self, launches: list[Any], rounds: int) -> float:
        self.now += 0.5 if self.measured else 10.0
        self.replays.add(rounds)
        self.measured.append(self.cache.config(SHAPES[0]))
        return 0.5 - len(self.measured) / 1000 if len(self.measured) <= 4 else 0.6


def test_in_time_that_is_too_short_for_all_the_best_so_far_is_measured_again_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, shape = cache_at(None), SHAPES[1]
    slow = Slow(cache, monkeypatch)
    configs = candidate_configs(shape)
    times = in_step(
        cache, slow, candidates={SHAPES[0]: candidate_configs(SHAPES[0]), shape: configs}, seconds=2.0
    )
    of_first = candidate_configs(SHAPES[0])
    assert slow.measured[0] == default_config(SHAPES[0])
    assert slow.measured[1:4] == of_first[:3], "compiling took none of its time"
    assert next(iter(times[SHAPES[0]])) == of_first[2], "which was the fastest of the first round"
    assert cache.get(SHAPES[0]) in times[SHAPES[0]]
    assert slow.replays == {1, 2}, "of a large model's steps few are run"


def test_a_candidate_that_the_chip_cannot_launch_in_a_step_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, shape = cache_at(None), SHAPES[0]
    best, too_large = default_config(shape), candidate_configs(shape)[1]

    def time_of_launches(launches: list[Any], rounds: int) -> float:
        if cache.config(shape) == too_large:
            raise OutOfResources(300_000, 200_000, "shared memory")
        return 1.0

    monkeypatch.setattr(tuning, "time_of_launches", time_of_launches)
    assert in_step(cache, list, candidates={shape: [too_large, best]}) == {shape: {best: 1.0}}
    assert cache.config(shape) == best


CAPTURE_ENDED = RuntimeError("CUDA error: operation failed due to a previous error during capture")
CAPTURE_ENDED.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
OUT_OF_MEMORY = [
    CAPTURE_ENDED,
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    None,  # nothing is tried where it is clear that it does not fit
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_where_memory_is_short_the_default_is_made_do_with_and_not_saved(
    error: Exception | None, chip: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tuning.json"
    cache = cache_at(path)
    tune(cache, SHAPES[1], [torch.empty(512, 256, dtype=torch.bfloat16)] * 4)
    chip.error, chip.free = error, 0 if error is None else 99 * MATRIX
    assert tune(cache) == {}
    assert cache.get(SHAPES[0]) == default_config(SHAPES[0]), (
        "it counts as tuned: nothing tries it at every step"
    )
    cache.save()
    fresh = cache_at(path)
    assert fresh.get(SHAPES[0]) is None
    assert fresh.get(SHAPES[1]) is not None


def test_where_memory_is_too_short_for_a_step_nothing_that_was_tried_stays(chip: Any, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "tuning.json")
    chip.error = CAPTURE_ENDED
    assert in_step(cache, list, candidates={shape: candidate_configs(shape)[1:] for shape in SHAPES}) == {}
    for shape in SHAPES:
        assert cache.get(shape) == default_config(shape)
    cache.save()
    assert cache_at(tmp_path / "tuning.json").get(SHAPES[0]) is None


def test_what_was_made_do_with_stays_until_the_engine_ends(chip: Any, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    ours, theirs = (cache_at(path) for _ in range(2))
    tune(ours)
    theirs.put(SHAPES[0], candidate_configs(SHAPES[0])[-1])
    theirs.save()
    ours.look_again()
    assert ours.config(SHAPES[0]) == default_config(SHAPES[0]), "a graph was captured with it"


def test_other_errors_of_a_launch_are_not_taken_for_short_memory(chip: Any) -> None:
    chip.error = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune(cache_at(None), weights=[torch.empty(512, 256, dtype=torch.bfloat16)] * 4)


def test_engines_side_by_side_keep_and_find_each_others_measurements(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    first, second, third = (cache_at(path, device) for device in ("a chip", "a chip", "another chip"))
    best, other = candidate_configs(SHAPES[0])[:2]
    first.put(SHAPES[0], best)
    first.save()
    third.put(SHAPES[0], other)
    third.save()
    second.put(SHAPES[1], other)
    second.save()

    second.look_again()
    assert (second.get(SHAPES[0]), second.get(SHAPES[1]), second.get(SHAPES[2])) == (best, other, None)
    afterwards = cache_at(path)
    assert (afterwards.get(SHAPES[0]), afterwards.get(SHAPES[1])) == (best, other)
    assert cache_at(path, "another chip").get(SHAPES[0]) == other


def test_what_an_engine_chose_stays_when_another_chose_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    ours, theirs = (cache_at(path) for _ in range(2))
    best, other = candidate_configs(SHAPES[0])[:2]
    ours.put(SHAPES[0], best)
    theirs.put(SHAPES[0], other)
    theirs.save()
    ours.look_again()
    assert ours.get(SHAPES[0]) == best


def test_of_two_that_measure_at_the_same_time_the_first_to_save_settles_it_for_both(tmp_path: Path) -> None:
    """Otherwise they, and engines loaded later, would compute other bits than each other."""
    path = tmp_path / "tuning.json"
    ours, theirs = (cache_at(path) for _ in range(2))
    best, other = candidate_configs(SHAPES[0])[:2]
    theirs.put(SHAPES[0], other)
    ours.put(SHAPES[0], best)
    ours.put(SHAPES[1], best)
    theirs.save()
    ours.save()
    for cache in (ours, theirs, cache_at(path)):
        assert cache.get(SHAPES[0]) == other
    assert (ours.get(SHAPES[1]), cache_at(path).get(SHAPES[1])) == (best, best)
    third = cache_at(path)
    ours.save()
    assert third.get(SHAPES[0]) == ours.get(SHAPES[0]) == other


def test_what_graphs_were_captured_with_stays_whatever_others_saved(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    ours = cache_at(path)
    best, other = candidate_configs(SHAPES[0])[:2]
    ours.put(SHAPES[0], best)
    ours.save()
    path.unlink()  # by the user, say
    theirs = cache_at(path)
    theirs.put(SHAPES[0], other)
    theirs.save()
    ours.put(SHAPES[1], best)
    ours.save()
    assert ours.get(SHAPES[0]) == best
    assert cache_at(path).get(SHAPES[0]) == other


def test_a_file_that_somebody_else_holds_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tuning.json"
    monkeypatch.setattr(tuning_cache, "_LOCK_SECONDS", 0.0)
    cache = cache_at(path)
    cache.put(SHAPES[0], candidate_configs(SHAPES[0])[0])
    with FileLock(f"{path}.lock"):
        cache.save()
    assert "could not be saved" in caplog.text
    assert not path.exists()
    other = cache_at(path)
    other.put(SHAPES[0], candidate_configs(SHAPES[0])[1])
    other.save()
    cache.put(SHAPES[1], candidate_configs(SHAPES[1])[0])
    cache.save()
    assert cache.get(SHAPES[0]) == candidate_configs(SHAPES[0])[0], "a graph was captured with it"
    assert cache_at(path).get(SHAPES[0]) == candidate_configs(SHAPES[0])[1]
    assert cache_at(path).get(SHAPES[1]) == candidate_configs(SHAPES[1])[0]


def test_what_was_measured_counts_for_its_dtype_and_for_its_version_of_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tuning.json"
    best = candidate_configs(SHAPES[0])[-1]
    cache = cache_at(path)
    cache.put(SHAPES[0], best)
    cache.save()
    assert cache_at(path, dtype=torch.float32).get(SHAPES[0]) is None
    monkeypatch.setattr(tuning_cache, "KERNELS_VERSION", tuning_cache.KERNELS_VERSION + 1)
    assert cache_at(path).get(SHAPES[0]) is None
    monkeypatch.undo()
    assert cache_at(path).get(SHAPES[0]) == best


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["os.replace", "tempfile.mkstemp", "pathlib.Path.mkdir"])
def test_a_disk_that_takes_nothing_does_not_end_the_engine(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache" / "tuning.json"
    cache = cache_at(path)
    cache.put(SHAPES[0], candidate_configs(SHAPES[0])[-1])
    with monkeypatch.context() as patch:
        patch.setattr(place, lambda *_, **__: full())
        cache.save()
    assert "could not be saved" in caplog.text and "No space left" in caplog.text
    left = list(path.parent.iterdir()) if path.parent.exists() else []
    assert [name.suffix for name in left] in ([], [".lock"]), "half a file was left"
    cache.save()
    assert cache_at(path).get(SHAPES[0]) == cache.get(SHAPES[0])


@pytest.mark.parametrize("content", ["", "[]", '{"%s": 3}', '{"%s": {"1x512x256": 3}}', "a folder"])
def test_a_file_that_makes_no_sense_counts_as_empty(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    if content == "a folder":
        path.mkdir()
    else:
        path.write_text(content.replace("%s", cache_at(None)._section))
    cache = cache_at(path)
    assert cache.get(SHAPES[0]) is None
    cache.put(SHAPES[0], candidate_configs(SHAPES[0])[-1])
    cache.save()
    assert (cache_at(path).get(SHAPES[0]) is not None) == (content != "a folder")

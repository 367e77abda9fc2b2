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

from nanochat.kernels import tuning
from nanochat.kernels.gemv_config import GemvConfig, GemvShape, candidate_configs, default_config
from nanochat.kernels.tuning import TuningCache, tune_gemv

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
    monkeypatch.setattr(tuning, "_LOCK_SECONDS", 0.0)
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
    monkeypatch.setattr(tuning, "KERNELS_VERSION", tuning.KERNELS_VERSION + 1)
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

"""What every test may use: a home of its own, and the starter model."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanochat.modelhub import starter
from nanochat.settings import Paths

if TYPE_CHECKING:
    import torch
    from fakehome import Home
    from fakehub import Hub

    from nanochat.history import History

os.environ.setdefault(
    "GOMP_SPINCOUNT", "1000"
)  # two test processes on two cores: waiting threads must not spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # a hundred programs are started: each would compile all of it again
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, by whoever is first
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores already
# Where the tests are started in the background, Ctrl-C is ignored, and every program that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
with suppress(ModuleNotFoundError):  # tests/gpu does without it
    from hypothesis import settings

    settings.register_profile("nanochat", deadline=None)  # a busy machine may take long for one example
    settings.load_profile("nanochat")
REAL_PATHS = Paths.find()
TESTS = Path(__file__).parent
#: The files that take longest begin first: a long one that begins last leaves the other processes without work.
LONGEST = (
    "kernels/test_compiles.py",
    "engine/test_starter_oracle.py",
    "engine/parallel/test_ids_agree.py",
    "test_cli.py",
    "e2e/test_app_tmux.py",
    "ui/test_app_flows.py",
    "engine/parallel/test_watch.py",
    "ui/test_transcript.py",
    "ui/test_models_screen.py",
    "ui/test_hostile_output.py",
    "commands/test_bench_cli.py",
    "engine/test_llm.py",
    "benchmarks/test_bench_child.py",
    "commands/test_repl.py",
    "ui/test_app_terminal.py",
    "ui/test_bench_screen.py",
    "engine/parallel/test_processes.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes an hour runs only when it is asked for; the longest of the rest comes first."""
    if "full_compile" not in str(config.getoption("-m")):
        items[:] = [item for item in items if item.get_closest_marker("full_compile") is None]
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """Engines collect garbage when they close: not each time over all that was imported, for a quarter of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def starter_model() -> Path:
    """The starter model's folder in the user's data folder; fetched on first use, shared by all test processes."""
    return starter.ensure(paths=REAL_PATHS)


@pytest.fixture(scope="session")
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def nanochat_home(_session_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test reads or writes the user's own settings and chats."""
    monkeypatch.setenv("NANOCHAT_HOME", str(_session_home))
    yield _session_home


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """An empty history; at the end everything in it is as it must be."""
    from nanochat.history import History

    with History.open(tmp_path / "chats") as opened:
        yield opened
        assert opened.check() == ()


@pytest.fixture
def home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A user's machine with nothing on it yet, for which `hub`, the test's own, is the hub."""
    from fakehome import Home

    return Home.at(tmp_path, hub, monkeypatch)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that nobody wrote are NaN: a kernel that leaves out one of its results, or reads one too many, is seen.

    Not for launches that are to overlap: what fills the memory stands between them.
    """
    import torch

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **options: Any) -> torch.Tensor:
            tensor = make(*args, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def known_ceilings(nanochat_home: Path) -> None:
    """As if the CPU's ceilings had been measured on a quiet machine: three seconds less for each run of a benchmark."""
    import torch

    from nanochat.benchmarks.cost import Ceilings
    from nanochat.benchmarks.device_limits import keep
    from nanochat.benchmarks.surroundings import device_key

    for dtype in (torch.bfloat16, torch.float32):
        keep(Ceilings(read=50e9, matrix=200e9), dtype, device_key(torch.device("cpu")))


@pytest.fixture
def starter_home(starter_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty NANOCHAT_HOME of this test's own in which the starter model is there already."""
    home = tmp_path / "nanochat-home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "models").symlink_to(starter_model.parent)
    monkeypatch.setenv("NANOCHAT_HOME", str(home))
    return home

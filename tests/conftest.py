"""What every test may use: a home of its own, and the starter model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.modelhub import starter
from nanochat.settings import Paths

os.environ.setdefault(
    "GOMP_SPINCOUNT", "1000"
)  # two test processes on two cores: waiting threads must not spin
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, by whoever is first
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores already
# Where the tests are started in the background, Ctrl-C is ignored, and every program that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
REAL_PATHS = Paths.find()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes an hour runs only when it is asked for."""
    if "full_compile" not in str(config.getoption("-m")):
        items[:] = [item for item in items if item.get_closest_marker("full_compile") is None]


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
def starter_home(starter_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty NANOCHAT_HOME of this test's own in which the starter model is there already."""
    home = tmp_path / "nanochat-home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "models").symlink_to(starter_model.parent)
    monkeypatch.setenv("NANOCHAT_HOME", str(home))
    return home

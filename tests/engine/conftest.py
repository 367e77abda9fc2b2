from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nanochat.engine.service import EngineService

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "models"), str(HERE / "parallel")]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny random model, made once: tiny_folder("qwen3")."""
    from tiny_models import TINY, save_tiny

    folders = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("tiny") / name
            save_tiny(TINY[name], folders[name])
        return folders[name]

    return folder


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Every load goes through the hash model; clear the gate to hold loads back."""
    from hash_model import hash_loaded

    from nanochat.engine import loading

    opened = threading.Event()
    opened.set()

    def load(config, *_):
        assert opened.wait(30)
        return hash_loaded(config)

    monkeypatch.setattr(loading, "load", load)
    return opened


@pytest.fixture
def service(gate: threading.Event) -> Iterator[EngineService]:
    from nanochat.engine.service import EngineService

    made = EngineService()
    yield made
    gate.set()
    made.close()


@pytest.fixture
def ready(service: EngineService) -> EngineService:
    from hash_model import hash_config

    service.load(hash_config()).wait(30)
    return service


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The hash model computes nothing until this is set."""
    from hash_model import HashModel

    go, forward = threading.Event(), HashModel.forward

    def waits(*args):
        assert go.wait(30)
        return forward(*args)

    monkeypatch.setattr(HashModel, "forward", waits)
    yield go
    go.set()

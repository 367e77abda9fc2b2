"""A better model is named once, where the hub answers, and nothing waits for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nanochat.engine import memory
from nanochat.modelhub import suggestion
from nanochat.modelhub.suggestion import Suggestion
from nanochat.settings import Paths, Settings

GB = 1_000_000_000


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]  # first: who has the answer may look
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub, and what it was asked."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield server.asked  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(suggestion, "_gpu_memory_free", lambda: 24 * GB)
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    return Paths.find()


def hint(paths: Paths, settings: Settings | None = None, *, chosen: bool = False) -> str | None:
    offer = Suggestion(chosen=chosen, settings=settings or Settings(), paths=paths)
    if offer.check is not None:
        offer.check.wait()
    return offer.line()


def test_the_hint_comes_once_and_names_size_and_command(asked: list[str], paths: Paths) -> None:
    line = hint(paths)
    assert line is not None
    for part in ("Qwen/Qwen3-8B", "16.4 GB", "nanochat models pull Qwen/Qwen3-8B"):
        assert part in line
    assert hint(paths) is None
    assert len(asked) == 1


def test_where_it_cannot_be_noted_there_is_no_hint(asked: list[str], paths: Paths) -> None:
    paths.data.write_text("a file where the folder should be")
    assert hint(paths) is None
    assert len(asked) == 1


def test_who_chose_a_model_or_wants_no_hint_is_left_alone(
    asked: list[str], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hint(paths, chosen=True) is None
    assert hint(paths, Settings(default_model="mine")) is None
    assert hint(paths, Settings(suggest_models=False)) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hint(paths) is None
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert hint(paths) is None
    assert asked == []


def test_without_an_answer_there_is_no_hint_and_no_mark(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert hint(paths) is None
    assert not paths.data.exists()


@pytest.mark.parametrize(
    ("gpu", "host", "cores", "name"),
    [
        (80 * GB, 0, 1, "Qwen/Qwen3-8B"),
        (13 * GB, 0, 1, "Qwen/Qwen3-4B"),
        (8 * GB, 0, 1, "Qwen/Qwen3-1.7B"),
        (4 * GB, 0, 1, "Qwen/Qwen3-0.6B"),
        (1 * GB, 64 * GB, 64, None),
        (None, 64 * GB, 64, "Qwen/Qwen3-1.7B"),
        (None, 64 * GB, 2, "Qwen/Qwen3-0.6B"),
        (None, 2 * GB, 2, None),
    ],
)
def test_the_model_fits_the_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch, gpu: int | None, host: int, cores: int, name: str | None
) -> None:
    monkeypatch.setattr(suggestion, "_gpu_memory_free", lambda: gpu)
    monkeypatch.setattr(memory, "host_memory_free", lambda: host)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    found = suggestion.candidate()
    assert (found.name if found else None) == name

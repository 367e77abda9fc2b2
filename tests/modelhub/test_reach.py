"""Whether the hub answers: known within a hard limit, whatever the network does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nanochat.modelhub.reach import HubCheck


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (401, True), (503, False)])
def test_any_answer_but_a_failure_counts(hub: HTTPServer, status: int, answers: bool) -> None:
    hub.status = status  # type: ignore[attr-defined]
    reach = HubCheck().wait()
    assert reach.answers is answers
    assert str(status) in reach.detail


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An address whose backlog is full: connection attempts get no reply at all."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield


def test_a_network_that_swallows_packets_costs_no_more_than_the_limit(deaf: None) -> None:
    started = time.monotonic()
    reach = HubCheck(timeout=0.5).wait()
    assert reach.answers is False
    assert time.monotonic() - started < 3.0


def test_a_name_server_that_never_answers_costs_no_more_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The C library has its own ideas of timeouts."""
    over = threading.Event()

    def resolve(*_: object, **__: object) -> None:
        over.wait(20)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    started = time.monotonic()
    reach = HubCheck(timeout=0.5).wait()
    assert (reach.answers, time.monotonic() - started < 3.0) == (False, True)
    over.set()


def test_a_server_that_never_speaks_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        assert HubCheck(timeout=0.5).wait().answers is False
        assert time.monotonic() - started < 3.0


def test_a_refusal_is_known_at_once_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    reach = HubCheck().wait()
    assert reach.answers is False
    assert "refused" in reach.detail


def test_offline_asks_nobody(hub: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = HubCheck()
    assert check.reach.answers is False
    assert "HF_HUB_OFFLINE" in check.wait().detail

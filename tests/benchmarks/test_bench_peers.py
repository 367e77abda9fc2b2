"""Other engines: Transformers for real, a server on this machine that speaks OpenAI's interface."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.bench import Plan, Sizes, run_benchmark
from nanochat.benchmarks.case import Ask
from nanochat.benchmarks.known_shapes import write_shape
from nanochat.benchmarks.peers import open_peer
from nanochat.benchmarks.server_peer import ServerTarget
from nanochat.errors import NanochatError

pytestmark = pytest.mark.usefixtures("known_ceilings")


class FakeServer(BaseHTTPRequestHandler):
    """Streams as many tokens as are asked for; notes every request."""

    requests: list[dict[str, Any]]

    def do_GET(self) -> None:
        models = [{"id": "a-model"}] if self.path == "/v1/models" else []
        self._send(json.dumps({"data": models}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body)
        events = [
            {"choices": [{"text": "x", "finish_reason": "length" if n + 1 == body["max_tokens"] else None}]}
            for n in range(body["max_tokens"])
        ]
        events.append({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self._send(lines.encode(), 500 if body["max_tokens"] == 13 else 200)

    def _send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    handler = type("Handler", (FakeServer,), {"requests": []})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", handler.requests  # type: ignore[attr-defined]
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def test_a_server_is_asked_for_ids_and_its_tokens_are_counted(
    server: tuple[str, list[dict[str, Any]]],
) -> None:
    address, requests = server
    target = ServerTarget(address)
    (reply,) = target.run([Ask(tuple(range(100, 120)), 5)])
    assert reply.tokens == len(reply.arrivals) == 5 and reply.finished >= reply.submitted
    (request,) = requests
    assert request["model"] == "a-model" and request["max_tokens"] == 5 and request["ignore_eos"]
    assert len(request["prompt"]) == 20 and request["prompt"][8:] == list(range(108, 120))
    assert len(target.run([Ask((1, 2, 3), 2)] * 3)) == 3


def test_what_a_server_may_have_cached_is_not_asked_for_again(
    server: tuple[str, list[dict[str, Any]]],
) -> None:
    address, requests = server
    target = ServerTarget(address)
    ask = Ask(tuple(range(20)), 1)
    target.run([ask])
    target.run([ask])
    target.forget()
    target.run([ask])
    first, same, fresh = (request["prompt"] for request in requests)
    assert first == same and first[:8] != fresh[:8] and first[8:] == fresh[8:]


def test_a_server_that_fails_says_how(server: tuple[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(NanochatError, match="status 500"):
        ServerTarget(server[0]).run([Ask((1, 2), 13)])
    with pytest.raises(NanochatError, match=r"127\.0\.0\.1:1 is not reached .*: start the server"):
        ServerTarget("http://127.0.0.1:1")
    with pytest.raises(NanochatError, match="does not tell its models at /elsewhere/v1/models"):
        ServerTarget(server[0].removesuffix("/v1") + "/elsewhere")


def test_one_table_has_every_engine_on_the_same_work(
    server: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    plan = Plan(
        model=write_shape("tiny", tmp_path),
        model_name="tiny",
        drawn=True,
        names=("quick", "throughput"),
        # Two requests' times are subtracted: of few tokens a busy machine makes less than nothing.
        sizes=Sizes(prompts=(12,), output=40, depths=(0,), batches=(2,)),
        repeats=1,
        device="cpu",
        against=("transformers", "transformers-padded", server[0]),
    )
    run = run_benchmark(plan)
    name = server[0].removeprefix("http://")
    assert [row.engine for row in run.rows] == ["nanochat", "transformers", "transformers-padded", name] * 3
    assert all(len(row.samples) == 1 and row.samples[0] > 0 and row.error is None for row in run.rows)
    assert [row.test for row in run.rows[::4]] == ["pp12", "tg40", "batch 2 x (12 + 40)"]
    assert {row.engine for row in run.rows if row.ceiling is None} == {name}  # nobody knows what it runs
    assert "continuous batching" in run.environment["engines"]["transformers"]
    assert run.environment["engines"][name].startswith("a server that calls its model a-model")


def test_padded_prompts_give_as_many_tokens_as_each_was_asked_for(tmp_path: Path) -> None:
    plan = Plan(model=write_shape("tiny", tmp_path), model_name="tiny", drawn=True)
    target = open_peer("transformers-padded", plan, torch.device("cpu"), torch.float32, 64, lambda: False)
    long, short = target.run([Ask(tuple(range(20)), 6), Ask((5, 6, 7), 2)])
    assert (long.tokens, short.tokens) == (6, 2) and long.finished == short.finished
    target.close()

"""A server with OpenAI's interface under measurement: streamed completions of token ids (`/v1/completions`)."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from nanochat.benchmarks.case import TOP_ID, Ask, Reply, Stopped, Weights
from nanochat.errors import NanochatError

_SECONDS = 600.0  # without a byte
_NONCE = 8  # ids at a prompt's beginning that are replaced, so that no earlier prefix fits


class ServerTarget:
    """A server that runs the same model. Each streamed event is taken for one token, unless `usage` says otherwise.

    Its prefix cache cannot be emptied from here, so `forget` gives all further prompts another beginning.
    """

    streams = True
    weights: Weights = "unknown"

    def __init__(self, address: str, stopped: Callable[[], bool] = lambda: False) -> None:
        parts = urlsplit(address)
        if not parts.hostname:
            raise NanochatError(
                f"{address} is no address of a server: give one like http://127.0.0.1:8000/v1"
            )
        self.name = parts.netloc.rpartition("@")[2]
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/v1") else f"{path}/v1"
        self._stopped = stopped
        self._nonce: tuple[int, ...] = ()
        self.forget()
        self._model = self._first_model()
        self.about = f"a server that calls its model {self._model}; times include its interface"

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """See `Target`."""
        if any(ask.after for ask in asks):
            raise NanochatError("requests that wait for one another are not measured over a network")
        if len(asks) == 1:
            return [self._answer(asks[0])]
        with ThreadPoolExecutor(len(asks)) as pool:
            return list(pool.map(self._answer, asks))

    def _answer(self, ask: Ask) -> Reply:
        nonce = self._nonce[: len(ask.prompt) - 1]
        body = {
            "model": self._model,
            "prompt": [*nonce, *ask.prompt[len(nonce) :]],
            "max_tokens": ask.output,
            "temperature": ask.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        arrivals: list[float] = []
        counted = 0
        start = time.perf_counter()
        for event in self._events(body):
            now = time.perf_counter()
            for choice in event.get("choices") or ():
                if choice.get("finish_reason") is None or choice.get("text"):
                    arrivals.append(now)
            counted = (event.get("usage") or {}).get("completion_tokens") or counted
            if self._stopped():
                raise Stopped
        if not arrivals:
            raise NanochatError(f"{self.name} ended a reply without a token")
        return Reply(start, arrivals[-1], counted or len(arrivals), tuple(arrivals))

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        with closing(self._connection()) as connection:
            try:
                connection.request("POST", f"{self._path}/completions", json.dumps(body), headers)
                response = connection.getresponse()
                if response.status != 200:
                    said = response.read(500).decode("utf-8", "replace")
                    raise NanochatError(
                        f"{self.name} refused a completion with status {response.status}: {said}"
                    )
                for line in response:
                    data = line.decode("utf-8", "replace").strip()
                    if data.startswith("data:") and not data.endswith("[DONE]"):
                        yield json.loads(data.removeprefix("data:"))
            except (OSError, HTTPException, ValueError) as error:
                raise NanochatError(f"{self.name} broke off: {type(error).__name__}: {error}") from error

    def _first_model(self) -> str:
        with closing(self._connection()) as connection:
            try:
                connection.request("GET", f"{self._path}/models")
                answer = json.loads(connection.getresponse().read(1_000_000))
                return str(answer["data"][0]["id"])
            except OSError as error:
                raise NanochatError(
                    f"{self.name} is not reached ({error.strerror or error}): start the server, or give the address that it "
                    "listens on, such as http://127.0.0.1:8000/v1"
                ) from error
            except (HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
                raise NanochatError(
                    f"{self.name} does not tell its models at {self._path}/models ({type(error).__name__}: {error})"
                ) from error

    def _connection(self) -> HTTPConnection:
        make = HTTPSConnection if self._secure else HTTPConnection
        return make(self._host, self._port, timeout=_SECONDS)

    def forget(self) -> None:
        """See the class."""
        self._nonce = tuple(secrets.randbelow(TOP_ID) for _ in range(_NONCE))

    def close(self) -> None:
        """Nothing is held."""

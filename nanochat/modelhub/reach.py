"""Whether the Hugging Face hub answers, found out within a hard limit of seconds."""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from nanochat import __version__

_DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Reach:
    """How the hub answered. `answers` is None while nothing is known yet."""

    answers: bool | None
    detail: str
    seconds: float = 0.0


def endpoint() -> str:
    """The hub's address, by the variable that its own tools read."""
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def offline() -> bool:
    """Whether the user forbids using the hub, by the variables that its own tools read."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


class HubCheck:
    """One request to the hub in a background thread. Proxies are honoured; nothing but the address is sent.

    A name server or a network that swallows packets can hold a request for minutes, whatever its timeout says:
    the thread is then left behind and the answer is "no".
    """

    def __init__(self, timeout: float = 3.0, path: str = "/robots.txt") -> None:
        self._timeout = timeout
        self._url = endpoint() + path
        self._started = time.monotonic()
        self._reach = Reach(None, "")
        self._thread: threading.Thread | None = None
        if offline():
            self._reach = Reach(False, "not asked: HF_HUB_OFFLINE is set")
        else:
            self._thread = threading.Thread(target=self._ask, name="nanochat-hub-check", daemon=True)
            self._thread.start()

    @property
    def reach(self) -> Reach:
        """What is known now; does not wait."""
        return self._reach

    def wait(self) -> Reach:
        """The answer, at the latest when the time since the start reaches the timeout."""
        if self._thread is not None:
            self._thread.join(max(self._timeout - (time.monotonic() - self._started), 0))
        reach = self._reach
        if reach.answers is None:
            return Reach(False, f"no answer from {endpoint()} in {self._timeout:g} s", self._timeout)
        return reach

    def _ask(self) -> None:
        request = urllib.request.Request(self._url, headers={"User-Agent": f"nanochat/{__version__}"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                answers, detail = True, f"{endpoint()} answers ({response.status})"
        except urllib.error.HTTPError as error:
            answers, detail = error.code < 500, f"{endpoint()} answers with status {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            answers, detail = False, f"{endpoint()} does not answer: {reason}"
        self._reach = Reach(answers, detail, time.monotonic() - self._started)

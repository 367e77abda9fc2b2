"""An engine whose time is its own: it takes exactly as long as it is told to."""

from __future__ import annotations

from nanochat.engine.outputs import CompletionOutput, FinishReason
from nanochat.engine.request import Request, Update


class FakeCore:
    """Prefills everything that waits in one step, at `prefill` tok/s; else decodes one token each in `step_seconds`."""

    def __init__(self, *, prefill: float, step_seconds: float, fails_at: int | None = None) -> None:
        self.now = 100.0
        self._prefill, self._step_seconds, self._fails_at = prefill, step_seconds, fails_at
        self._waiting: list[Request] = []
        self._running: dict[str, tuple[Request, int]] = {}
        self._cached: set[tuple[int, ...]] = set()
        self._updates: list[Update] = []
        self.closed = False
        self.seen: list[Request] = []

    def clock(self) -> float:
        return self.now

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._updates)

    def add(self, request: Request) -> None:
        self.seen.append(request)
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        self._waiting = [request for request in self._waiting if request.request_id != request_id]
        self._running.pop(request_id, None)

    def reset_prefix_cache(self) -> None:
        self._cached.clear()

    def close(self) -> None:
        self.closed = True

    def step(self) -> list[Update]:
        updates: list[Update] = []
        if self._waiting:
            for request in self._waiting:
                prompt = tuple(request.prompt_ids)
                if self._fails_at is not None and len(prompt) >= self._fails_at:
                    updates.append(self._end(request, 0, FinishReason.ERROR, "out of memory in a step"))
                    continue
                cached = max((len(p) for p in self._cached if p == prompt[: len(p)]), default=0)
                self.now += (len(prompt) - cached) / self._prefill
                self._cached.add(prompt)
                updates += self._token(request, 1)
            self._waiting = []
        elif self._running:
            self.now += self._step_seconds
            for request, count in list(self._running.values()):
                updates += self._token(request, count + 1)
        return updates

    def _token(self, request: Request, count: int) -> list[Update]:
        if count == request.params.max_tokens:
            self._running.pop(request.request_id, None)
            return [self._end(request, count, FinishReason.LENGTH)]
        self._running[request.request_id] = (request, count)
        return [Update(request.request_id, 0, "", (7,))]

    def _end(self, request: Request, count: int, reason: FinishReason, error: str | None = None) -> Update:
        output = CompletionOutput(0, "", (7,) * count, reason, error=error)
        ids = (7,) if count else ()
        return Update(request.request_id, 0, "", ids, output, last=True)

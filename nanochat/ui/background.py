"""Work that nobody waits for when the application ends: it runs in a thread of its own, not in the loop's pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def detached(work: Callable[[], Result]) -> Result:
    """The result of `work`, which may wait for the network for as long as it likes; quitting does not wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if future.done():  # given up meanwhile
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: Result | None = None
        fault: Exception | None = None
        try:
            result = work()
        except Exception as error:  # it belongs to the one who waits
            fault = error
        try:
            loop.call_soon_threadsafe(settle, result, fault)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    threading.Thread(target=run, name="nanochat-detached", daemon=True).start()
    return await future

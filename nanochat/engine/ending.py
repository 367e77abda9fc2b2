"""How an engine ends that somebody may still read from: what is told of it, and that its memory goes. Imports no torch."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from nanochat.errors import EngineDead

if TYPE_CHECKING:
    from nanochat.engine.core import EngineCore

log = logging.getLogger("nanochat.engine")


def stopped(error: BaseException) -> EngineDead:
    """What readers are told of an error that ended the engine."""
    if isinstance(error, EngineDead):
        return error
    return EngineDead(
        f"the engine stopped: {type(error).__name__}: {error}. Load the model again; the log has more"
    )


def close_core(core: EngineCore) -> None:
    """Give the core's memory back. Its readers know already, so that what fails here is only the log's."""
    try:
        core.close()
    except Exception:
        log.exception("giving the model's memory back failed")


def forget_frames(error: BaseException | None) -> None:
    """Empty the frames that an error came through: as long as somebody keeps it they hold the model's memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__

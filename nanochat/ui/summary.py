"""A chat summed up by the model itself, also one that is longer than the model's context. No Textual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.stream import Stream
from nanochat.errors import ContextOverflow, NanochatError
from nanochat.storage.records import Message, Role
from nanochat.ui.chat_model import Asked
from nanochat.ui.model_host import ReadyModel

MOST_TOKENS = 400  # of a summary
LEAST_ROOM = 64  # tokens of talk that are worth summing up at a time
_ASK = (
    "\n\nSummarise this conversation in at most two hundred words: "
    "what was asked, what was found, what is still open."
)
_CUT = "\n…\n"


async def summarise(
    ready: ReadyModel, messages: Sequence[Message], submit: Callable[[Request, Callable[[], None]], Stream],
    report: Callable[[int, int], None],
) -> str:  # fmt: skip
    """Sum up what fits at a time, each summary carried into the next; `report` hears messages done and all.

    Cancelled, it stops the engine. Raises ContextOverflow where the context is too short for that, and NanochatError
    when the model was taken away.
    """
    tokens = min(MOST_TOKENS, ready.context // 4)
    params = SamplingParams(temperature=0.0, max_tokens=tokens)
    bare = await asyncio.to_thread(_prompt, ready, "")
    room = ready.context - tokens - len(bare.ids) - 8  # the talk joins the ask with other tokens than alone
    if room < LEAST_ROOM:
        raise ContextOverflow(
            f"a context of {ready.context:,} tokens is too short to sum a chat up in: drop the oldest turns, or take "
            "a model with a longer context"
        )
    summary, rest = "", list(messages)
    while rest:
        report(len(messages) - len(rest), len(messages))
        talk, taken = await asyncio.to_thread(_talk, ready, rest, room, summary)
        rest = rest[taken:]
        asked = await asyncio.to_thread(_prompt, ready, talk)
        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, skip_special_tokens=asked.skip_special_tokens
        )
        stream = submit(Request(asked.ids, params), lambda: None)
        try:
            output = await asyncio.to_thread(stream.result)
        except asyncio.CancelledError:
            stream.cancel()
            raise
        if output.finish_reason is FinishReason.ABORT:
            raise NanochatError("the summary was not finished: the model was unloaded meanwhile")
        summary = (asked.reader.push(output.text).text + asked.reader.finish().text).strip()
    return summary


def _prompt(ready: ReadyModel, talk: str) -> Asked:
    ask = Message(id="", parent="", role=Role.USER, content=talk + _ASK)
    return ready.language.prompt((ask,), system_prompt="", thinking=False)


def _talk(ready: ReadyModel, messages: Sequence[Message], room: int, summary: str) -> tuple[str, int]:
    """The summary so far with as many of the messages as fit, one at least; and how many those are."""
    parts, used, taken = [summary] if summary else [], ready.language.count(summary), 0
    for message in messages:
        spoken = _spoken(message)
        used += ready.language.count(spoken) + 4  # and what joins them
        if taken and used > room:
            break
        parts.append(spoken)
        taken += 1
    return _cut(ready, "\n\n".join(parts), room), taken


def _cut(ready: ReadyModel, talk: str, room: int) -> str:
    """A single message that is longer than the context is cut in its middle."""
    while ready.language.count(talk) > room:
        keep = int(len(talk) * 0.45)
        if not 0 < 2 * keep + len(_CUT) < len(talk):
            return talk[: room // 4]  # a character is hardly ever more than four tokens
        talk = talk[:keep] + _CUT + talk[-keep:]
    return talk


def _spoken(message: Message) -> str:
    return f"{'User' if message.role is Role.USER else 'Assistant'}: {message.content}"

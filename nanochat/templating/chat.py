"""What goes into a chat template and what comes out: messages, options, prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from nanochat.errors import UsageError
from nanochat.templating.plain import Plain, mended

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Args:
        role: one of `ROLES`.
        content: the text; a reply's answer without its reasoning.
        reasoning: what the model thought before it answered; "" is a block with nothing in it, `None` no block.
        token_ids: of a generated reply all ids as the engine returned them, the end token included. Leave them out
            where `content` is not what the model wrote (an edited reply, an imported one).
        thinking: of a generated reply, `Options.thinking` at that time.
        fields: of a message that a script wrote, what else the template may see of it: tool calls, a tool's name. A
            "content" in it is what the template sees instead of the text: a list of its parts.
    """

    role: str
    content: str
    reasoning: str | None = None
    token_ids: tuple[int, ...] = ()
    thinking: bool | None = None
    fields: Plain | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(f"A message's role is one of {', '.join(ROLES)}, not {self.role!r}.")
        if self.token_ids and self.role != "assistant":
            raise UsageError(f"Only replies have token ids, not messages of the role {self.role}.")
        if self.token_ids and self.fields is not None:
            raise UsageError("A reply with token ids is what the model wrote: it has no other fields.")
        for name in ("content", "reasoning"):
            text = cast("str | None", getattr(self, name))
            if text:
                object.__setattr__(self, name, mended(text))


@dataclass(frozen=True, slots=True)
class Options:
    """How a chat is rendered. Keep them for the whole chat, else little of it can be reused.

    Args:
        thinking: on or off where the template has a switch; `None` is the template's default.
        effort: "low", "medium" or "high" where the template has such a variable.
        now: the date that some templates write. Take the chat's first day.
        variables: what else the template may see: `tools`, `documents`, variables of its own. Texts in them are
            texts: no special tokens come of them.
    """

    thinking: bool | None = None
    effort: str | None = None
    now: datetime = field(default_factory=datetime.now)
    variables: Plain | None = None

    def __post_init__(self) -> None:
        if self.effort is not None and not self.effort.isalpha():
            raise UsageError(f"effort is a word such as low, medium or high, not {self.effort!r}.")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine reads.

    Attributes:
        ids: the token ids.
        reusable: how many leading ones equal the last reply's prompt and that reply.
        rewritten: the template rewrote earlier turns, so that `reusable` ends before that reply does.
        text: as rendered.
        opened: it ends inside a block of reasoning, which the reply goes on with.
        folded: the template takes no system message; its text was put before the first user message.
    """

    ids: tuple[int, ...]
    reusable: int
    rewritten: bool
    text: str
    opened: bool
    folded: bool

    @property
    def new(self) -> int:
        """How many ids the engine has not read yet."""
        return len(self.ids) - self.reusable

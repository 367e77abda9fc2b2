"""What one chat is set to: system prompt, sampling, thinking and model, as it is kept with the chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import InvalidSampling, UsageError
from nanochat.ui import stop_texts

Kind = Literal["number", "whole", "text"]
_SHOWN = 40  # characters of a wrong value


@dataclass(frozen=True, slots=True)
class Knob:
    """One sampling value that a chat may set: its range in words, and what it does."""

    name: str
    kind: Kind
    span: str
    help: str
    neutral: str = ""

    def parse(self, text: str) -> Any:
        """The value of what was typed; an empty text means the model's own default. Raises InvalidSampling."""
        text = text.strip()
        if not text or text.lower() in ("default", "auto", "none"):
            return None
        if self.kind == "text":
            return stop_texts.read(text)
        try:
            return int(text) if self.kind == "whole" else float(text)
        except ValueError:
            wanted = "a whole number" if self.kind == "whole" else "a number"
            wanted += "" if self.span == wanted else f", {self.span}"
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            raise InvalidSampling(f"{self.name} must be {wanted}, not {shown!r}") from None


KNOBS: tuple[Knob, ...] = (
    Knob(
        "temperature", "number", "0 to 100", "0 always takes the likeliest token; higher is more varied.", "1"
    ),
    Knob(
        "top_p",
        "number",
        "above 0, at most 1",
        "Only the likeliest tokens that together reach this share.",
        "1",
    ),
    Knob("top_k", "whole", "0 and up; 0 is all", "Only so many of the likeliest tokens.", "0"),
    Knob("min_p", "number", "0 to 1", "No token less likely than this times the likeliest.", "0"),
    Knob(
        "repetition_penalty",
        "number",
        "above 0, at most 10",
        "Above 1: what was said is less likely again.",
        "1",
    ),
    Knob("presence_penalty", "number", "-2 to 2", "Above 0: a token that came once is less likely.", "0"),
    Knob(
        "frequency_penalty",
        "number",
        "-2 to 2",
        "Above 0: the more often a token came, the less likely.",
        "0",
    ),
    Knob("max_tokens", "whole", "1 and up", "The longest reply; empty is as far as the context goes.", "∞"),
    Knob("seed", "whole", "a whole number", "The same seed gives the same reply; empty draws one.", "drawn"),
    Knob("stop", "text", "text, text", "A reply ends before any of these texts.", "none"),
)
"""What the side panel and `/set` offer, in this order."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """One chat's own settings; `None` and "" mean the model's default. Applied from the next turn."""

    system_prompt: str = ""
    thinking: bool | None = None
    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChatSettings:
        """From what a chat holds; what is unknown or out of range is left at its default."""
        known = {field.name for field in fields(cls)}
        settings = cls()
        for name, value in values.items():
            if name not in known or value is None:
                continue
            try:
                settings = settings.with_value(name, tuple(value) if name == "stop" else value)
            except (InvalidSampling, TypeError):
                continue
        return settings

    def as_json(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON holds it."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, "", ())}
        return values | ({"stop": list(self.stop)} if self.stop else {})

    def with_value(self, name: str, value: Any) -> ChatSettings:
        """These settings with one value changed. Raises InvalidSampling when it is out of range."""
        changed = replace(self, **{name: value})
        changed.sampling()
        return changed

    def sampling(self) -> SamplingParams:
        """How the replies are sampled. Raises InvalidSampling."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidSampling(f"max_tokens must be 1 or more, not {self.max_tokens}")
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p,
            repetition_penalty=self.repetition_penalty, presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0, max_tokens=self.max_tokens, seed=self.seed,
            stop=self.stop or (),
        )  # fmt: skip

    def costs_prefix(self, after: ChatSettings) -> bool:
        """Whether going on with `after` makes the cached prefix of the chat useless."""
        return (self.system_prompt, self.thinking, self.model) != (
            after.system_prompt,
            after.thinking,
            after.model,
        )


def knob(name: str) -> Knob | None:
    """The knob of this name, or of an unambiguous start of it; also as it stands in the panel, without underscores."""
    name = name.lower().replace("-", "_").replace(" ", "_")
    matching = [knob for knob in KNOBS if knob.name == name] or [k for k in KNOBS if k.name.startswith(name)]
    return matching[0] if len(matching) == 1 else None


def named_and_value(line: str) -> tuple[Knob, str]:
    """What `/set` was given: `top_p 0.9`, `top p 0.9`, `top-p 0.9`. Raises UsageError."""
    first, *rest = line.split(maxsplit=2) or [""]
    if first and (found := knob(first)) is not None:
        return found, line.strip()[len(first) :].strip()
    if rest and (found := knob(f"{first} {rest[0]}")) is not None:
        return found, rest[1] if len(rest) > 1 else ""
    names = ", ".join(knob.name for knob in KNOBS)
    if first:
        raise UsageError(f"there is no {first[:_SHOWN]!r} to set, or more than one: the names are {names}")
    raise UsageError(f"/set takes a name and a value; the names are {names}")

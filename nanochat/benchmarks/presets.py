"""Which cases a preset or a workload stands for, at its usual sizes or at the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanochat.benchmarks.batch import Batch, Requests
from nanochat.benchmarks.case import Case
from nanochat.benchmarks.conversation import Interference, Turn
from nanochat.benchmarks.single import Decode, FirstToken, Prefill
from nanochat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sizes:
    """The user's own sizes; None and empty are the usual ones."""

    prompts: tuple[int, ...] = ()
    output: int | None = None
    depths: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    turns: int | None = None
    requests: int | None = None

    def prompt(self, usual: int) -> int:
        """The first of the user's prompt lengths."""
        return self.prompts[0] if self.prompts else usual


def cases_of(name: str, sizes: Sizes) -> list[Case]:
    """The cases of a preset or workload.

    Raises:
        UsageError: there is no such name.
    """
    make = PRESETS.get(name) or WORKLOADS.get(name)
    if make is None:
        raise UsageError(f"there is no preset or workload {name!r}")
    return make(sizes)


def readers(size: str) -> tuple[str, ...]:
    """The presets and workloads in whose cases one of the `Sizes` changes something, by its field's name."""
    return tuple(
        name
        for name in (*PRESETS, *WORKLOADS)
        if cases_of(name, _only(size, 1)) != cases_of(name, _only(size, 2))
    )


def _only(size: str, value: int) -> Sizes:
    given: dict[str, Any] = {size: (value,) if isinstance(getattr(Sizes(), size), tuple) else value}
    return Sizes(**given)


def _quick(sizes: Sizes) -> list[Case]:
    prefills: list[Case] = [Prefill(prompt) for prompt in sizes.prompts or (512, 2048)]
    depths = sizes.depths or (0, 4096)
    return [*prefills, *(Decode(sizes.output or 128, depth) for depth in depths)]


def _throughput(sizes: Sizes) -> list[Case]:
    batches = sizes.batches or (1, 2, 4, 8, 16, 32, 64)
    return [Batch(batch, sizes.prompt(512), sizes.output or 128) for batch in batches]


def _chat(sizes: Sizes) -> list[Case]:
    turns = range(1, (sizes.turns or 8) + 1)
    new, answer = sizes.prompt(200), sizes.output or 200
    return [Turn(number, new, answer, cache) for cache in (True, False) for number in turns]


def _interference(sizes: Sizes) -> list[Case]:
    ahead = min(sizes.output or 64, 64)
    return [Interference(2, prompt, ahead=ahead) for prompt in sizes.prompts or (8000,)]


def _screen(sizes: Sizes) -> list[Case]:
    """Long enough that the reply fills the screen and it scrolls."""
    return [Decode(sizes.output or 256, depth) for depth in sizes.depths or (64,)]


def _s(sizes: Sizes) -> list[Case]:
    prompt, output = sizes.prompt(512), sizes.output or 256
    name = "S" if (prompt, output) == (512, 256) else f"S {prompt} + {output}"
    return [
        FirstToken(f"{name}: first token", prompt),
        Decode(output, prompt, name=f"{name}: decode", by_arrival=False),
    ]


def _b(sizes: Sizes) -> list[Case]:
    longest = sizes.prompt(1024)
    return [Requests(sizes.requests or 256, min(100, longest), longest)]


def _deep(sizes: Sizes) -> list[Case]:
    return [Decode(sizes.output or 256, depth) for depth in sizes.depths or (16_000,)]


def _second_turn(sizes: Sizes) -> list[Case]:
    cached, new = (sizes.depths or (8000,))[0], sizes.prompt(50)
    return [FirstToken(f"second turn: first token of {cached} cached + {new}", new, cached)]


def _fresh(sizes: Sizes) -> list[Case]:
    return [FirstToken(f"first token of a fresh {prompt}", prompt) for prompt in sizes.prompts or (16_000,)]


def _gap(sizes: Sizes) -> list[Case]:
    ahead = min(sizes.output or 64, 64)
    return [Interference(1, prompt, ahead=ahead) for prompt in sizes.prompts or (32_000,)]


PRESETS: dict[str, Callable[[Sizes], list[Case]]] = {
    "quick": _quick,
    "throughput": _throughput,
    "chat": _chat,
    "interference": _interference,
    "screen": _screen,
}

WORKLOADS: dict[str, Callable[[Sizes], list[Case]]] = {
    "s": _s,
    "b": _b,
    "deep": _deep,
    "second-turn": _second_turn,
    "fresh": _fresh,
    "gap": _gap,
}

ABOUT: dict[str, str] = {
    "quick": "Reading 512 and 2,048 tokens, writing 128 tokens after nothing and after 4,096. About a minute.",
    "throughput": "1 to 64 requests at once, 512 tokens read and 128 written each: tokens a second in all and for each.",
    "chat": "Eight turns of a chat, with the prefix cache and without: the time to the first token of each.",
    "interference": "Two replies stream while 8,000 tokens are read beside them: the worst gap between two tokens.",
    "screen": "A reply with and without this application drawing it: what the screen costs.",
    "s": "One stream: 512 tokens read, 256 written.",
    "b": "256 requests of random lengths at once: Nano-vLLM's benchmark.",
    "deep": "Writing after 16,000 tokens.",
    "second-turn": "The first token of 50 new tokens after 8,000 cached ones.",
    "fresh": "The first token of a fresh prompt of 16,000 tokens.",
    "gap": "A reply streams while 32,000 tokens are read beside it: the worst gap.",
    "start": "From a new process to its first token.",
}
"""What each preset and workload measures, in a sentence or two."""

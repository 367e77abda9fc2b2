"""A transcript to look at: `python tests/ui/transcript_demo.py [--light] [--stream TOKENS_A_SECOND]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator

from textual.app import App, ComposeResult
from textual.widgets import Input

from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.theme import THEMES
from nanochat.ui.widgets.transcript import Transcript

ANSWER = """\
# Binary search, briefly

A **binary search** halves an interval that is known to hold the answer. It needs *sorted* input \
and takes `O(log n)` steps; see [the article](https://en.wikipedia.org/wiki/Binary_search) or https://example.org/search.

## How it goes

1. Take the middle of the interval.
2. Compare:
   - if it is the key, **stop**;
   - if it is smaller, go on in the *upper* half;
   - otherwise in the lower half, as in the code:

   ```python
   def search(keys: list[int], key: int) -> int | None:
   \tlow, high = 0, len(keys)  # [low, high)
   \twhile low < high:
   \t\tmiddle = (low + high) // 2
   \t\tif keys[middle] == key:
   \t\t\treturn middle
   \t\tlow, high = (middle + 1, high) if keys[middle] < key else (low, middle)
   \treturn None
   ```
3. Repeat until the interval is empty.

> The idea is simple, the details are surprisingly tricky.
>
> > Even Bentley's version had a bug for twenty years: `low + high` overflows.

| Structure | Lookup | Insert | Notes |
|:----------|-------:|-------:|:-----:|
| Sorted array | O(log n) | O(n) | binary search |
| Hash table | **O(1)** | O(1) | no order |
| Balanced tree | O(log n) | O(log n) | keeps order; `bisect` does not |

- [x] sorted input
- [ ] duplicates, ~~ignored~~ undefined

---

```
plain text, no label
```

```rust
fn main() { let s: &str = "hi"; println!("{s} {}", 42); } // ok
```

Mathematics stays as it is: \\( T(n) = T(n/2) + O(1) \\). 日本語の文章も、折り返しは正しく処理されます。
"""
REASONING = """\
The user wants binary search. I should mention **sortedness**,
and give code that is right.

- half-open interval
- no overflow in Python
"""
FOOTER = "143 tok/s · 512 tok · TTFT 0.21 s · reused 97 %"


def sample() -> list[TranscriptMessage]:
    return [
        TranscriptMessage("n1", "notice", "3 oldest turns are no longer read by the model", dropped=True),
        TranscriptMessage("u0", "user", "Hello! [/markup] is not markup here.", dropped=True),
        TranscriptMessage(
            "a0", "assistant", "Hi. What shall we do?", footer="98 tok/s · 7 tok", dropped=True
        ),
        TranscriptMessage("u1", "user", "Explain binary search, with code in Python.\nKeep it short."),
        TranscriptMessage(
            "a1", "assistant", ANSWER, REASONING, footer=FOOTER, variant=2, variants=3, reasoning_seconds=3.2
        ),
        TranscriptMessage("u2", "user", "And in C?"),
        TranscriptMessage("a2", "assistant", "In C it is", status="stopped", footer="120 tok/s · 4 tok"),
        TranscriptMessage("u3", "user", "Go on."),
        TranscriptMessage(
            "a3", "assistant", "", status="failed", error="Out of memory: 2.1 GiB more needed."
        ),
    ]


def tokens(text: str) -> Iterator[str]:
    """Pieces of about four characters, as a model writes them."""
    for at in range(0, len(text), 4):
        yield text[at : at + 4]


class TranscriptDemo(App[None]):
    CSS = "Transcript { height: 1fr; } Input { dock: bottom; }"

    def __init__(
        self, messages: Iterable[TranscriptMessage] = (), *, theme: str = "nanochat-dark", rate: float = 0
    ) -> None:
        super().__init__()
        for one in THEMES:
            self.register_theme(one)
        self.theme = theme
        self.chat = Conversation("demo", messages)
        self.transcript = Transcript()
        self._rate = rate

    def compose(self) -> ComposeResult:
        yield self.transcript
        yield Input(placeholder="Type here")

    def on_mount(self) -> None:
        self.transcript.swap(self.chat)
        if self._rate:
            self.chat.append(TranscriptMessage("u9", "user", "Again, streamed."))
            self.chat.append(TranscriptMessage("s", "assistant", status="waiting"))
            self._start = time.monotonic()
            self._pieces = tokens(ANSWER * 20)
            self._sent = 0
            self.set_interval(1 / 20, self._pump)

    def _pump(self) -> None:
        due = int((time.monotonic() - self._start - 1) * self._rate)
        reasoning = list(tokens(REASONING * 3))
        while self._sent < due:
            if self._sent < len(reasoning):
                self.chat.write("s", reasoning=reasoning[self._sent])
            elif (piece := next(self._pieces, None)) is not None:
                self.chat.write("s", piece)
            self._sent += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--light", action="store_true")
    parser.add_argument("--stream", type=float, default=0)
    options = parser.parse_args()
    theme = "nanochat-light" if options.light else "nanochat-dark"
    TranscriptDemo(sample(), theme=theme, rate=options.stream).run()

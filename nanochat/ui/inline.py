"""A paragraph's text -> runs: emphasis, code, links, mathematics. Markup in it is the model's, never ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from nanochat.sanitize import sanitize
from nanochat.ui.rows import Action, Run

#: Text without any of these is plain.
SPECIAL = re.compile(r"[\\`*_~\[\]!<&$]|://|www\.|  \n")
LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
#: An unfinished link at the end of a text, and the half of a marker.
OPEN_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\s]*$")
HALF_MARKER = re.compile(r"(?:[*_~]+|`+|!?\[|\\|<[a-z/]{0,3})$")
OPENERS = {
    marker: re.compile(rf"(?<![\w{re.escape(marker[0])}]){re.escape(marker)}(?=[^\s{re.escape(marker[0])}])")
    for marker in ("***", "**", "__", "~~", "*", "_")
}
STYLES = {"em": "em", "strong": "strong", "s": "strike"}


def _math(state: StateInline, silent: bool) -> bool:
    """Inline rule: TeX between `\\(` `\\)`, `\\[` `\\]` or `$$` stays as it is."""
    for start, end in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$")):
        if not state.src.startswith(start, state.pos):
            continue
        found = state.src.find(end, state.pos + 2, state.posMax)
        if found <= state.pos + 2:
            return False
        if not silent:
            token = state.push("math_inline", "", 0)
            token.content = state.src[state.pos : found + 2]
        state.pos = found + 2
        return True
    return False


class InlineParser:
    """Reads the inline Markdown of one block at a time."""

    def __init__(self) -> None:
        self._parser = MarkdownIt("commonmark", {"linkify": True}).enable(["strikethrough", "linkify"])
        self._parser.disable(["html_inline"])
        self._parser.inline.ruler.before("escape", "math", _math)

    def parse(self, text: str, style: str = "", *, unfinished: bool = False) -> list[Run]:
        """The runs of a block's text, every one on top of `style`; line ends in the runs are line breaks.

        With `unfinished` the text is still growing: half a marker at its end is held back, and what was
        opened and not yet closed looks as it will when it is.
        """
        if unfinished:
            text = complete(text)
        text = text.expandtabs(4)
        if not SPECIAL.search(text):
            return [Run(text, style)] if text else []
        runs: list[Run] = []
        for token in self._parser.parseInline(LINE_BREAK.sub("\n", text)):
            self._add(token.children or (), style, runs)
        # Once more: entities and percent signs in addresses were decoded, to any character there is.
        return [Run(sanitize(run.text).expandtabs(4), run.style, run.action) for run in runs]

    def _add(self, tokens: Sequence[Token], base: str, runs: list[Run]) -> None:
        stack = [base]
        target: str | None = None
        label = 0
        for token in tokens:
            style = stack[-1]
            if token.type in ("softbreak", "hardbreak"):
                runs.append(Run("\n", style))
            elif token.type in ("code_inline", "math_inline"):
                name = "code" if token.type == "code_inline" else "math"
                runs.append(Run(token.content, join(style, name), link_action(target)))
            elif token.type == "image":
                runs += self._image(token, style)
            elif token.type == "link_open":
                target = str(token.attrs.get("href", ""))
                label = (
                    len(runs) if token.markup == "" else -1
                )  # an address that stands for itself is no label
                stack.append(join(style, "link"))
            elif token.type == "link_close":
                stack.pop()
                if target and label >= 0 and target != "".join(run.text for run in runs[label:]):
                    runs.append(Run(f" ({target})", join(stack[-1], "target"), link_action(target)))
                target = None
            elif token.nesting == 1:
                stack.append(join(style, STYLES.get(token.tag, "")))
            elif token.nesting == -1:
                stack.pop()
            elif token.content:
                runs.append(Run(token.content, style, link_action(target)))

    def _image(self, token: Token, style: str) -> list[Run]:
        """An image is never fetched: its description and its address."""
        source = str(token.attrs.get("src", ""))
        return [
            Run(f"[image: {token.content or 'no description'}]", join(style, "link"), link_action(source)),
            Run(f" ({source})", join(style, "target"), link_action(source)),
        ]


def join(style: str, name: str) -> str:
    """One more name on top of a style."""
    return f"{style} {name}".strip() if name not in style.split() else style


def link_action(target: str | None) -> Action | None:
    """What a click on a link asks for: nothing unless it is http or https."""
    return ("link", target) if target is not None and is_web_address(target) else None


def is_web_address(target: str) -> bool:
    """Whether this is a whole http or https address."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def complete(text: str) -> str:
    """A text cut anywhere, with its open markers closed and half a marker at its end held back."""
    text = text[:-8] + HALF_MARKER.sub("", text[-8:])
    text = OPEN_LINK.sub(r"\1", text).rstrip(" ")
    outside, fence = _outside_code(text)
    if fence:
        return text + fence
    closers = ""
    for marker, opener in OPENERS.items():
        starts = opener.findall(outside)
        if starts and outside.count(marker) % 2:
            closers = marker + closers
            outside = outside.replace(marker, "")
        elif len(marker) > 1:
            outside = outside.replace(marker, "")
    return text + closers


def _outside_code(text: str) -> tuple[str, str]:
    """The text without its code spans, and the backticks of one that is still open."""
    outside: list[str] = []
    at = 0
    while True:
        start = text.find("`", at)
        if start < 0:
            return "".join(outside) + text[at:], ""
        size = len(text) - start - len(text[start:].lstrip("`"))
        fence = "`" * size
        outside.append(text[at:start])
        end = re.compile(rf"(?<!`){fence}(?!`)").search(text, start + size)
        if end is None:
            return "".join(outside), fence
        at = end.end()

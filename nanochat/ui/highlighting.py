"""Colours for finished code, in slices of time: lexing never holds the screen up."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token
from pygments.util import ClassNotFound

from nanochat.ui.rows import Run

#: A Pygments token type, which is a tuple of names: its parent is the tuple without the last.
TokenType = tuple[str, ...]
#: Token types -> our style names; a type that is not here takes its parent's.
STYLES: dict[TokenType, str] = {
    Token: "",
    Token.Comment: "comment",
    Token.Comment.Preproc: "preprocessor",
    Token.Keyword: "keyword",
    Token.Keyword.Constant: "constant",
    Token.Keyword.Type: "type",
    Token.Literal.Number: "number",
    Token.Literal.String: "string",
    Token.Literal.String.Escape: "escape",
    Token.Literal.String.Doc: "comment",
    Token.Name.Attribute: "attribute",
    Token.Name.Builtin: "builtin",
    Token.Name.Class: "type",
    Token.Name.Constant: "constant",
    Token.Name.Decorator: "decorator",
    Token.Name.Exception: "type",
    Token.Name.Function: "function",
    Token.Name.Tag: "keyword",
    Token.Name.Variable: "variable",
    Token.Operator: "operator",
    Token.Operator.Word: "keyword",
    Token.Generic.Deleted: "deleted",
    Token.Generic.Inserted: "inserted",
    Token.Generic.Heading: "keyword",
    Token.Generic.Subheading: "keyword",
    Token.Generic.Prompt: "comment",
    Token.Generic.Emph: "em",
    Token.Generic.Strong: "strong",
}
TAB = 4


def find_lexer(language: str) -> Lexer | None:
    """The lexer that a fence names; None for `text` and for a name that Pygments does not know. Never a guess."""
    if language in ("", "text", "plain", "plaintext", "txt", "output", "none"):
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, stripall=False, ensurenl=True, tabsize=0)
    except ClassNotFound:
        return None


class Highlighter:
    """Turns code into one list of runs a line; `work` until it says that it is done."""

    def __init__(self, code: str, lexer: Lexer) -> None:
        self.lines: list[list[Run]] = [[]]
        self._column = 0
        self._tokens: Iterator[tuple[TokenType, str]] = iter(lexer.get_tokens(code))

    def work(self, seconds: float) -> bool:
        """Go on for about so long; whether all is done."""
        end = time.perf_counter() + seconds
        for count, (token_type, value) in enumerate(self._tokens):
            self._add(style_of(token_type), value)
            if count % 64 == 63 and time.perf_counter() > end:
                return False
        if not self.lines[-1]:
            self.lines.pop()  # the lexer ends every text with a line end
        return True

    def _add(self, style: str, value: str) -> None:
        first, *others = value.split("\n")
        self._add_piece(style, first)
        for piece in others:
            self.lines.append([])
            self._column = 0
            self._add_piece(style, piece)

    def _add_piece(self, style: str, piece: str) -> None:
        if not piece:
            return
        if "\t" in piece:
            offset = self._column % TAB
            piece = (" " * offset + piece).expandtabs(TAB)[offset:]
        self._column += len(piece)
        line = self.lines[-1]
        if line and line[-1].style == style:
            line[-1] = Run(line[-1].text + piece, style)
        else:
            line.append(Run(piece, style))


def style_of(token_type: TokenType) -> str:
    """Our style name for a token type."""
    while token_type not in STYLES:
        token_type = token_type[:-1]  # `Token` itself, the empty tuple, is in STYLES
    return STYLES[token_type]

"""Textual's stylesheets without what every start of an application costs: each one parses all of them anew.

What is parsed depends on the text, on where it stands and on the theme's variables, and nobody changes it afterwards:
an application itself keeps it for as long as its theme is the same. Here it is kept for the next application too.
"""

from __future__ import annotations

from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet
from textual.css.types import CSSLocation

_parsed: dict[tuple[object, ...], list[RuleSet]] = {}
_parse_rules = Stylesheet._parse_rules


def _parse_rules_once(
    self: Stylesheet,
    css: str,
    read_from: CSSLocation,
    is_default_rules: bool = False,
    tie_breaker: int = 0,
    scope: str = "",
) -> list[RuleSet]:
    variables = frozenset(self._variables.items())
    key = (css, read_from, is_default_rules, tie_breaker, scope, variables)
    if key not in _parsed:
        _parsed[key] = _parse_rules(self, css, read_from, is_default_rules, tie_breaker, scope)
    return _parsed[key]


def quicken() -> None:
    """Once, before any application runs."""
    Stylesheet._parse_rules = _parse_rules_once

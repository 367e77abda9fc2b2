"""How nanochat looks: one dark and one light theme, and the signs that carry meaning without colour."""

from __future__ import annotations

import os
from typing import Any

from textual.app import App
from textual.theme import Theme

DARK = Theme(
    name="nanochat-dark",
    dark=True,
    primary="#7cb7ff",
    secondary="#8f9bb3",
    accent="#f0b35a",
    foreground="#d8dee9",
    background="#14171c",
    surface="#1b1f26",
    panel="#242a33",
    success="#8ccf7e",
    warning="#e5c76b",
    error="#ef7e7e",
    variables={
        "block-cursor-foreground": "#14171c",
        "block-cursor-background": "#7cb7ff",
        "input-selection-background": "#7cb7ff 35%",
        "footer-background": "#1b1f26",
        "scrollbar": "#333b47",
        "scrollbar-hover": "#475161",
        "scrollbar-active": "#7cb7ff",
        "scrollbar-background": "#14171c",
        "scrollbar-background-hover": "#14171c",
        "scrollbar-background-active": "#14171c",
    },
)

LIGHT = Theme(
    name="nanochat-light",
    dark=False,
    primary="#1f5fbf",
    secondary="#5b6577",
    accent="#a85a00",
    foreground="#1d232c",
    background="#fbfbf9",
    surface="#f2f2ee",
    panel="#e6e7e2",
    success="#2e7d32",
    warning="#8a6100",
    error="#b3261e",
    variables={
        "block-cursor-foreground": "#ffffff",
        "block-cursor-background": "#1f5fbf",
        "input-selection-background": "#1f5fbf 25%",
        "footer-background": "#f2f2ee",
        "scrollbar": "#c9ccc6",
        "scrollbar-hover": "#a9aea6",
        "scrollbar-active": "#1f5fbf",
        "scrollbar-background": "#fbfbf9",
        "scrollbar-background-hover": "#fbfbf9",
        "scrollbar-background-active": "#fbfbf9",
    },
)

THEMES = (DARK, LIGHT)


def is_theme(app: App[Any], name: str) -> bool:
    """Whether the settings' word means a theme that there is."""
    return resolve(name) in app.available_themes


def use_theme(app: App[Any], name: str) -> bool:
    """Look as the settings' word says, dark where there is no such theme. Returns whether there is."""
    known = is_theme(app, name)
    app.theme = resolve(name) if known else DARK.name
    return known


def resolve(name: str) -> str:
    """A theme's name from the settings' word: `auto` follows the terminal where it says what it is, else dark."""
    if name in ("dark", "light"):
        return f"nanochat-{name}"
    if name != "auto":
        return name
    # COLORFGBG is "foreground;background" in the 16 colours; 7 and 9 to 15 are light (rxvt, konsole, and kin).
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    light = background.isdigit() and int(background) in (7, *range(9, 16))
    return LIGHT.name if light else DARK.name

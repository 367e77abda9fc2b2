"""The user's editor, in the terminal itself."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nanochat.errors import UsageError
from nanochat.ui.terminal import read_attributes, restore_attributes


def editor_command() -> list[str]:
    """What VISUAL or EDITOR says, as words; vi where neither does. Raises UsageError."""
    text = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        return shlex.split(text) or ["vi"]
    except ValueError as error:
        raise UsageError(f"EDITOR is {text!r}, which is no command: {error}") from error


def edit(command: Sequence[str], file: Path) -> None:
    """Let the user edit a file; returns when the editor has ended. For a suspended application, in a worker.

    Descriptors 1 and 2 are the log while the application runs (`held`): the editor gets the terminal in their place.
    Whatever mode it leaves the terminal in, the application finds the one that it has lent.

    Raises:
        OSError: there is no such program.
        subprocess.CalledProcessError: it said that it failed.
    """
    screen, attributes = sys.__stdout__, read_attributes()
    try:
        subprocess.run([*command, str(file)], check=True, stdout=screen, stderr=screen)
    finally:
        restore_attributes(attributes)

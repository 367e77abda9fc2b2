"""One chat written to a file: Markdown to read, JSON to bring back. Blocks: use from workers."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.errors import UsageError
from nanochat.exchange.json_file import to_json
from nanochat.exchange.markdown_file import to_markdown

if TYPE_CHECKING:
    from nanochat.history import History

_UNSAFE = re.compile(r"[^\w.-]+")


def default_name(title: str, chat_id: str) -> str:
    """A file name made of a title, as every file system takes it."""
    words = _UNSAFE.sub("-", title).strip("-.")[:60].rstrip("-.")
    return f"{words or 'chat'}-{chat_id[:6]}.md"


def export_chat(history: History, chat_id: str, target: str, folder: Path) -> Path:
    """Write a chat; `.json` gives JSON with every variant, anything else Markdown. Never replaces a file.

    Raises UsageError when the file is there already or cannot be written.
    """
    bundle = history.bundle(chat_id)
    path = folder / os.path.expanduser(target or default_name(bundle.title, bundle.id))
    if os.path.isdir(path):  # unlike Path's, these two take any text
        path = path / default_name(bundle.title, bundle.id)
    text = to_json([bundle]) if path.suffix.lower() == ".json" else to_markdown(bundle)
    write_new(path, text)
    return path


def write_new(path: Path, text: str) -> None:
    """Write a new file, for this user's eyes only. Raises UsageError: it is there already, or cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as out:
            out.write(text)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already: give another name") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error

"""A shell that gives the terminal back when the application was killed and could not do it itself."""

from __future__ import annotations

import logging
import os
import re
import subprocess

log = logging.getLogger("nanochat.terminal")


def post_guardian(screen: int, restore: str) -> subprocess.Popen[bytes] | None:
    """Start a shell that waits for our end and, unless it was told that all is well, writes `restore`.

    The line discipline only where nobody has done it yet: our mode takes no signals from keys, a shell's own does.
    """
    if not os.isatty(screen):
        return None
    restore = restore.replace("\x1b", "\\033")
    script = f"""exec 3>&1; read -r word; [ "$word" = clean ] && exit; printf '{restore}'
    case $(stty -a <&3) in *-isig*) stty '{_line_discipline()}' <&3 ;; esac"""
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=screen,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        log.warning("no guardian for the terminal: %s", error)
        return None


def dismiss(guardian: subprocess.Popen[bytes] | None) -> None:
    """All is well: it ends without doing anything."""
    if guardian is None or guardian.stdin is None:
        return
    try:
        guardian.stdin.write(b"clean\n")
        guardian.stdin.close()
    except OSError as error:
        log.debug("the guardian has gone: %s", error)
    guardian.wait()


def _line_discipline() -> str:
    """The terminal's present settings as `stty` takes them back."""
    try:
        done = subprocess.run(["stty", "-g"], capture_output=True, text=True, timeout=1, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the terminal's settings cannot be read: %s", error)
        return "sane"
    saved = done.stdout.strip()
    return saved if re.fullmatch(r"[\w:=]+", saved) else "sane"

"""What was piped into the program: all of standard input as text, or nothing."""

from __future__ import annotations

import os
import select
import stat
import sys

from nanochat.errors import UsageError

_MOST_BYTES = 64 * 2**20
_CHUNK = 1 << 16
_PATIENCE_SECONDS = 3.0


def read_piped_text(*, optional: bool) -> str | None:
    """Standard input as text; None when it is a terminal, closed, or nothing that one pipes from.

    `optional`: there is a prompt without it. Then a pipe that stays silent is explained, since the program
    that started this one may have left it open by mistake.

    Raises:
        UsageError: it is not UTF-8, or larger than 64 MB.
    """
    if sys.stdin is None or sys.stdin.closed:
        return None
    try:
        descriptor = sys.stdin.fileno()
        kind = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # closed by whoever started us
        return None
    if stat.S_ISCHR(kind):  # a terminal or /dev/null
        return None
    if optional and not stat.S_ISREG(kind) and not select.select([descriptor], [], [], _PATIENCE_SECONDS)[0]:
        print(
            "nanochat: reading standard input until it ends (use < /dev/null to go without)", file=sys.stderr
        )
    content = bytearray()
    while chunk := os.read(descriptor, _CHUNK):
        content += chunk
        if len(content) > _MOST_BYTES:
            raise UsageError(
                f"standard input is larger than {_MOST_BYTES // 2**20} MB, more than any context: cut it"
            )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 text: byte 0x{content[error.start]:02x} at position {error.start}; "
            "convert it first"
        ) from error

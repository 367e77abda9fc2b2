"""Short messages between rank 0 and a worker while a model is loaded, and a worker's last words: JSON, never pickle."""

from __future__ import annotations

import json
import socket
from typing import Any

_LARGEST = 2**20


class Line:
    """One end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def send(self, **message: Any) -> None:
        """Send a message. Raises OSError when the other end is gone."""
        data = json.dumps(message).encode()
        self.socket.sendall(len(data).to_bytes(4, "little") + data)

    def receive(self) -> dict[str, Any] | None:
        """Wait for a message; None when the other end is gone."""
        head = self._read(4)
        length = int.from_bytes(head, "little")
        if len(head) < 4 or length > _LARGEST:
            return None
        data = self._read(length)
        return json.loads(data) if len(data) == length else None

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                more = self.socket.recv(length - len(data))
            except ConnectionError:
                break
            if not more:
                break
            data += more
        return data

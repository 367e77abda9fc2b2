"""The hub's protocol, told and mistold: API, `resolve` and its redirects, ranges, ETags, gates, every rule's effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from fakerepo import File, Repo

if TYPE_CHECKING:
    from fakehub import Hub


@dataclass(frozen=True)
class Seen:
    """One line of the request log."""

    origin: str
    method: str
    path: str
    query: dict[str, list[str]]
    range: str | None
    authorization: str | None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], hub: Hub, origin: str) -> None:
        self.hub, self.origin = hub, origin
        super().__init__(address, Handler)

    def handle_error(self, *_: object) -> None:
        """Clients that go away in the middle of a body are what this server is for."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet: the log is `Hub.requests`."""

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.hub.rules.clear()
        for line in filter(None, text.splitlines()):
            self.server.hub.rule(line)
        self.reply(200, b"ok")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.hub = self.server.hub
        self.query = parse_qs(address.query)
        token = self.headers.get("Authorization")
        self.route = unquote(address.path)
        seen = Seen(
            self.server.origin, self.command, self.route, self.query, self.headers.get("Range"), token
        )
        self.rules = {rule.action: rule.value for rule in self.hub.take(seen)}
        self.token = (token or "").removeprefix("Bearer ") or None
        if "delay" in self.rules:
            self.hub.closing.wait(float(self.rules["delay"]))
        if "drop" in self.rules:
            self.close_connection = True
        elif "silent" in self.rules:
            self.wait_until_left()
        elif "status" in self.rules:
            code, _, after = self.rules["status"].partition(",")
            self.reply(int(code), b"no", {"Retry-After": after} if after else {})
        elif "redirect" in self.rules:
            self.reply(302, b"", {"Location": self.rules["redirect"] + quote(self.route)})
        elif self.server.origin == "cdn":
            self.serve_blob(address.path.rsplit("/", 1)[-1])
        elif self.route.startswith("/api/"):
            self.serve_api(self.route.removeprefix("/api/"))
        else:
            self.serve_resolve()

    # -- the parts of the protocol

    def serve_api(self, route: str) -> None:
        if route == "models":
            return self.serve_list()
        if not route.startswith("models/"):
            known = route == "agent-harnesses" or (route == "whoami-v2" and self.token in self.hub.accounts)
            return self.reply_json({"name": "tester", "harnesses": {}}) if known else self.reply(401, b"no")
        parts = route.removeprefix("models/").split("/")
        repo = self.hub.repos.get("/".join(parts[:2]))
        rest = parts[2:]
        if repo is None or not self.may_read(repo, api=rest != ["auth-check"]):
            return self.refuse(repo, bool(repo and repo.gated))
        if rest[:1] == ["revision"] and unquote(rest[1]) not in ("main", repo.commit):
            return self.reply(404, b"no", {"X-Error-Code": "RevisionNotFound"})
        if rest == ["auth-check"]:
            return self.reply_json({})
        if rest[:1] == ["tree"]:
            return self.reply_json([_entry(name, file) for name, file in repo.files.items()])
        return self.reply_json(self.facts(repo, files="blobs" in self.query))

    def facts(self, repo: Repo, *, files: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {"id": repo.id, "sha": repo.commit, "private": repo.private}
        answer |= {"gated": repo.gated, "tags": ["safetensors"], "downloads": 1} | repo.facts
        answer["siblings"] = siblings = []
        for name, file in repo.files.items():
            entry: dict[str, Any] = {"rfilename": name}
            if files:
                size = int(self.rules.get("size", file.size)) if name.endswith(".safetensors") else file.size
                entry |= {"size": size, "blobId": file.blob_id}
                if file.lfs:
                    entry["lfs"] = {"sha256": file.sha256, "size": size, "pointerSize": 134}
            siblings.append(entry)
        return answer

    def serve_list(self) -> None:
        text = self.query.get("search", [""])[0].lower()
        found = [repo for repo in self.hub.repos.values() if text in repo.id.lower()]
        found.sort(key=lambda repo: -int(repo.facts.get("downloads", 0)))
        limit, start = int(self.query.get("limit", ["100"])[0]), int(self.query.get("cursor", ["0"])[0])
        page = [self.facts(repo, files=False) for repo in found[start : start + min(limit, 2)]]
        headers = {}
        if start + len(page) < min(limit, len(found)):
            link = f"{self.hub.url}/api/models?search={quote(text)}&limit={limit}&cursor={start + len(page)}"
            headers = {"Link": f'<{link}>; rel="next"'}
        self.reply_json(page, headers)

    def serve_resolve(self) -> None:
        repo_id, _, rest = self.route.removeprefix("/moved").strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        repo = self.hub.repos.get(repo_id)
        if repo is None or not self.may_read(repo, api=False):
            return self.refuse(repo, bool(repo and repo.gated))
        file = repo.files.get(name)
        if file is None or revision not in ("main", repo.commit):
            return self.reply(404, b"no", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
        etag = self.rules.get("etag", file.etag)
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
        headers |= {"X-Linked-Size": str(file.size)}
        if name in self.hub.xet_only:
            headers |= {"X-Xet-Hash": file.sha256, "X-Xet-Refresh-Route": "/nowhere"}
        if name in self.hub.xet_only and "nanochat" in self.headers.get("User-Agent", ""):
            return self.reply(403, b"only by xet", headers)
        if file.lfs and self.hub.redirect_lfs:
            return self.reply(
                302, b"", headers | {"Location": f"{self.hub.cdn}/{repo_id}/{name}/{file.sha256}"}
            )
        return self.send_file(file, headers)

    def serve_blob(self, sha256: str) -> None:
        files = (file for repo in self.hub.repos.values() for file in repo.files.values())
        file = next((file for file in files if file.sha256 == sha256), None)
        if file is None or self.token is not None:
            return self.reply(400, b"a signed address takes no token" if file else b"no")
        return self.send_file(file, {"ETag": f'"{sha256[:32]}"'})

    def may_read(self, repo: Repo, *, api: bool) -> bool:
        if self.token is not None and self.token not in self.hub.accounts:
            return False
        allowed = self.hub.accounts.get(self.token or "", set())
        return repo.id in allowed or not (repo.private or (repo.gated and not api))

    def refuse(self, repo: Repo | None, gated: bool) -> None:
        if self.token is not None and self.token not in self.hub.accounts:
            return self.reply(401, b"no", {"X-Error-Message": "Invalid credentials in Authorization header"})
        if repo is not None and gated:
            return self.reply(403 if self.token else 401, b"no", {"X-Error-Code": "GatedRepo"})
        headers = {"X-Error-Code": "RepoNotFound"} if self.token else {}
        return self.reply(404 if self.token else 401, b"no", headers)

    # -- bodies

    def send_file(self, file: File, headers: dict[str, str]) -> None:
        size, start, code = file.size, 0, 200
        asked = self.headers.get("Range", "")
        stop = size
        if asked.startswith("bytes=") and "norange" not in self.rules:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, code = int(first), min(int(last) + 1, size) if last else size, 206
            if start >= size:
                return self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
            shown = start + 7 if "badrange" in self.rules else start
            headers["Content-Range"] = f"bytes {shown}-{stop - 1}/{size}"
        body = self.body(file, start, stop)
        length = stop - start
        if "html" in self.rules:
            page = b"<html>please sign in to the network</html>"
            headers |= {"Content-Type": "text/html"}
            code, length, body = 200, len(page), iter([page])
        if "short" in self.rules:
            length -= int(self.rules["short"])
        if "long" in self.rules:
            length += int(self.rules["long"])
        chunked = "chunked" in self.rules
        headers |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(length)}
        self.start(code, headers)
        if self.command == "HEAD":
            return
        if isinstance(file.content, Path) and not self.rules and not chunked:
            return self.send_from_disk(file.content, start, length)
        self.send_body(body, length, chunked)

    def body(self, file: File, start: int, stop: int) -> Iterator[bytes]:
        for piece in file.pieces(start, stop):
            yield bytes(255 - byte for byte in piece) if "garbage" in self.rules else piece
        yield b"\0" * int(self.rules.get("long", 0))

    def send_body(self, body: Iterator[bytes], length: int, chunked: bool) -> None:
        limit = next((int(self.rules[name]) for name in ("cut", "stall") if name in self.rules), None)
        sent, rate = 0, float(self.rules.get("rate", 0))
        for piece in body:
            piece = piece[: length - sent] if limit is None else piece[: limit - sent]
            if not piece:
                break
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            sent += len(piece)
            if rate and self.hub.closing.wait(len(piece) / rate):
                break
        if "cut" in self.rules or "stall" in self.rules:
            self.close_connection = True
            if "stall" in self.rules:
                self.wait_until_left()
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def send_from_disk(self, path: Path, start: int, length: int) -> None:
        with path.open("rb") as source:
            self.connection.sendfile(source, start, length)

    def wait_until_left(self) -> None:
        """Say nothing until the client hangs up or the hub closes."""
        self.close_connection = True
        self.connection.settimeout(0.05)
        while not self.hub.closing.is_set():
            with suppress(TimeoutError):
                if not self.connection.recv(1):
                    return

    def start(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.start(code, (headers or {}) | {"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, answer: object, headers: dict[str, str] | None = None) -> None:
        if "html" in self.rules:
            return self.reply(200, b"<html>sign in</html>", {"Content-Type": "text/html"})
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"} | (headers or {}))


def _entry(name: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": file.size, "oid": file.blob_id}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry

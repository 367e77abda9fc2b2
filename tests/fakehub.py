"""A model hub on loopback: it speaks the hub's protocol and misbehaves on demand. Standard library only.

Two origins: the hub itself (API, `resolve`) and a second port that plays the content network to which large
files are redirected. `Rule`s say what goes wrong, for which paths and how often; `requests` is the log.

As a program: `python tests/fakehub.py FOLDER --port 8000` serves each `org/name` below FOLDER; rules come by
`--rule '*.safetensors cut=100000'`, or later by a POST of the same text to `/_rules`.
"""

from __future__ import annotations

import argparse
import fnmatch
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fakeprotocol import Seen, Server
from fakerepo import Repo, from_folder


@dataclass
class Rule:
    """Do `action` with `value` to requests whose path matches, `times` times (None: always)."""

    match: str
    action: str
    value: str = ""
    times: int | None = None
    method: str = "GET"
    origin: str | None = None
    skip: int = 0
    """How many requests it lets pass first."""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`PATTERN ACTION[=VALUE] [times=N] [skip=N] [method=HEAD] [origin=cdn]`."""
        pattern, action, *options = text.split()
        name, _, value = action.partition("=")
        rule = cls(pattern, name, value)
        for option in options:
            key, _, given = option.partition("=")
            setattr(rule, key, int(given) if key in ("times", "skip") else given)
        return rule


class Hub:
    """The two servers, what they hold, and what they have been asked."""

    def __init__(self, *repos: Repo, port: int = 0, host: str = "127.0.0.1") -> None:
        self.repos = {repo.id: repo for repo in repos}
        self.accounts: dict[str, set[str]] = {}
        """Token -> repositories it may read; gated and private ones need to be named here."""
        self.redirect_lfs = True
        self.xet_only: set[str] = set()
        self.rules: list[Rule] = []
        self.requests: list[Seen] = []
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self.servers = [Server((host, port), self, "hub"), Server((host, 0), self, "cdn")]
        self.url = f"http://{host}:{self.servers[0].server_address[1]}"
        self.cdn = (
            f"http://localhost:{self.servers[1].server_address[1]}"  # another host, not only another port
        )

    def __enter__(self) -> Hub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(self, repo: Repo) -> Repo:
        self.repos[repo.id] = repo
        return repo

    def rule(self, text: str) -> None:
        self.rules.append(Rule.parse(text))

    def take(self, seen: Seen) -> list[Rule]:
        """Log a request and take the rules that it meets."""
        with self.changed:
            self.requests.append(seen)
            met: list[Rule] = []
            for rule in self.rules:
                wanted = fnmatch.fnmatch(seen.path, rule.match) and rule.method in (seen.method, "ANY")
                if not wanted or rule.origin not in (None, seen.origin) or rule.times == 0:
                    continue
                if rule.skip:
                    rule.skip -= 1
                elif not any(other.action == rule.action for other in met):
                    rule.times = None if rule.times is None else rule.times - 1
                    met.append(rule)
            self.changed.notify_all()
        return met

    def wait_for(self, pattern: str, times: int = 1, timeout: float = 20.0) -> None:
        """Block until GETs of paths like `pattern` were seen `times` times."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.gets(pattern)) >= times, timeout):
                raise TimeoutError(f"{pattern} was asked for {len(self.gets(pattern))} times, not {times}")

    def gets(self, pattern: str = "*", origin: str | None = None) -> list[Seen]:
        wanted = [seen for seen in list(self.requests) if origin in (None, seen.origin)]
        return [seen for seen in wanted if seen.method == "GET" and fnmatch.fnmatch(seen.path, pattern)]


def main() -> None:
    """Serve a folder until interrupted; the first line says where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rule", action="append", default=[])
    parser.add_argument("--no-redirect", action="store_true", help="serve large files from the hub itself")
    given = parser.parse_args()
    with Hub(*from_folder(given.folder), port=given.port) as hub:
        hub.redirect_lfs = not given.no_redirect
        for text in given.rule:
            hub.rule(text)
        print(hub.url, flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()

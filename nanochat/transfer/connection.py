"""HTTP for moving files: keep-alive, timeouts, proxies, and redirects on which no token travels along."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from nanochat.errors import DownloadError

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 10


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: two addresses share secrets only when all three agree."""
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or (443 if parts.scheme == "https" else 80),
    )


def proxy_for(scheme: str, host: str, port: int) -> str | None:
    """The proxy that this machine's settings put before a host; None for the way without one."""
    return None if proxy_bypass(f"{host}:{port}") else getproxies().get(scheme) or getproxies().get("all")


def is_loopback(url: str) -> bool:
    """Whether an address never leaves this machine."""
    host = origin(url)[1]
    return host in ("localhost", "::1") or host.startswith("127.")


@dataclass
class Response:
    """An answer whose body has not been read. `hops` are the headers of every answer on the way to it."""

    status: int
    headers: http.client.HTTPMessage
    url: str
    hops: list[http.client.HTTPMessage]
    body: http.client.HTTPResponse

    def read1(self, most: int) -> bytes:
        """What has arrived, at most `most` bytes; blocks for the first one. Empty: the body ended."""
        return self.body.read1(most)

    def read_all(self, most: int) -> bytes:
        """The whole body; DownloadError when it is longer than `most`."""
        text = self.body.read(most + 1)
        if len(text) > most:
            raise DownloadError(f"{self.url} is longer than the {most} bytes that it may have")
        return text

    def hop_header(self, name: str) -> str | None:
        """A header of the first answer on the way that carries it."""
        return next((value for headers in self.hops if (value := headers.get(name))), None)


@dataclass
class Session:
    """The connections of one thread. `token` goes to the origin of `endpoint` and nowhere else."""

    endpoint: str
    token: str | None
    user_agent: str
    connect_timeout: float
    read_timeout: float
    _open: dict[tuple[str, str, int], http.client.HTTPConnection] = field(
        default_factory=dict[tuple[str, str, int], http.client.HTTPConnection]
    )

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """Ask for `url`, following redirects. OSError or HTTPException when the network fails."""
        hops: list[http.client.HTTPMessage] = []
        for _ in range(MAX_REDIRECTS):
            answer = self._ask(url, headers)
            hops.append(answer.headers)
            target = answer.headers.get("Location")
            if answer.status not in REDIRECTS or target is None:
                return Response(answer.status, answer.headers, url, hops, answer)
            self._drain(answer, url)
            new = urljoin(url, target)
            if urlsplit(new).scheme not in ("http", "https"):
                raise DownloadError(f"{url} redirects to {new!r}, which is not an http address")
            if url.startswith("https:") and not new.startswith("https:"):
                raise DownloadError(f"{url} redirects to {new}, which is not encrypted; refused")
            url = new
        raise DownloadError(f"{url}: more than {MAX_REDIRECTS} redirects")

    def close(self) -> None:
        """Close every connection."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def finish(self, answer: Response) -> None:
        """Done with an answer. Unless its body was read to the end, its connection is of no more use."""
        if not (answer.body.isclosed() or answer.body.length == 0):
            self.drop(answer.url)
        answer.body.close()

    def drop(self, url: str) -> None:
        """Close the connection to the origin of `url`."""
        connection = self._open.pop(origin(url), None)
        if connection is not None:
            connection.close()

    def _headers(self, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        # Identity: sizes and ranges are those of the file, not of a compressed stream.
        result = {"User-Agent": self.user_agent, "Accept-Encoding": "identity", **headers}
        if self.token is not None and origin(url) == origin(self.endpoint):
            result["Authorization"] = f"Bearer {self.token}"
        return result

    def _ask(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        reused = origin(url) in self._open
        try:
            return self._send(url, headers)
        except (http.client.HTTPException, ConnectionError):
            self.drop(url)
            if not reused:
                raise
        except OSError:
            self.drop(url)
            raise
        # A server may close an idle connection at any time: that alone is no failure.
        return self._send(url, headers)

    def _send(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        connection = self._open.get(origin(url))
        if connection is None:
            connection = self._connect(parts)
            self._open[origin(url)] = connection
        target = url if isinstance(connection, _ForwardProxy) else (parts.path or "/")
        if parts.query and not isinstance(connection, _ForwardProxy):
            target += f"?{parts.query}"
        sent = self._headers(url, headers)
        if isinstance(connection, _ForwardProxy):
            sent |= connection.credentials | {"Host": parts.netloc.rpartition("@")[2]}
        connection.request("GET", target, headers=sent)
        return connection.getresponse()

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        scheme, host, port = origin(parts.geturl())
        proxy = proxy_for(scheme, host, port)
        connection = _open_connection(scheme, host, port, proxy, self.connect_timeout)
        connection.connect()
        assert connection.sock is not None
        connection.sock.settimeout(self.read_timeout)
        return connection

    def _drain(self, answer: http.client.HTTPResponse, url: str) -> None:
        if answer.length is not None and answer.length <= 1 << 16:
            answer.read()
        else:
            self.drop(url)


class _ForwardProxy(http.client.HTTPConnection):
    """A plain connection to a proxy, which is asked with whole addresses."""

    credentials: dict[str, str]


def _open_connection(
    scheme: str, host: str, port: int, proxy: str | None, timeout: float
) -> http.client.HTTPConnection:
    if proxy is None:
        if scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=_tls())
        return http.client.HTTPConnection(host, port, timeout=timeout)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or parts.hostname is None:
        raise DownloadError(
            f"the proxy {parts.scheme}://{parts.hostname} is not an http:// proxy; only those are spoken"
        )
    credentials = _proxy_credentials(parts)
    if scheme == "https":
        tunnel = http.client.HTTPSConnection(
            parts.hostname, parts.port or 80, timeout=timeout, context=_tls()
        )
        tunnel.set_tunnel(host, port, headers=credentials)
        return tunnel
    forward = _ForwardProxy(parts.hostname, parts.port or 80, timeout=timeout)
    forward.credentials = credentials
    return forward


def _proxy_credentials(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    from base64 import b64encode

    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


@cache
def _tls() -> ssl.SSLContext:
    """Trust what this machine trusts (SSL_CERT_FILE and SSL_CERT_DIR included), and what REQUESTS_CA_BUNDLE adds.

    Where none of them is set the bundled certificates are trusted too: Python on macOS may have no others.
    """
    context = ssl.create_default_context()
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    elif not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        import certifi

        context.load_verify_locations(certifi.where())
    return context

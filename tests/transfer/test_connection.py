"""The transfer's own HTTP: proxies, TLS, redirects, idle connections; against real sockets."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakehome import Home
from fakehub import Hub
from fakerepo import tiny_model

from nanochat.errors import DownloadError
from nanochat.transfer import connection
from nanochat.transfer.connection import Response, Session, is_loopback, origin

TINY = tiny_model()
CONFIG = f"/org/tiny/resolve/{TINY.commit}/config.json"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(TINY) as hub:
        yield hub


def session(endpoint: str, token: str | None = None) -> Session:
    return Session(endpoint, token, "test", connect_timeout=2, read_timeout=2)


def body(answer: Response) -> bytes:
    return answer.read_all(1 << 20)


def test_an_http_proxy_is_asked_with_the_whole_address(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", hub.url.replace("//", "//user:secret@"))
    monkeypatch.setenv("http_proxy", hub.url.replace("//", "//user:secret@"))
    answer = session("http://hub.invalid", token="hf_secret").get(f"http://hub.invalid{CONFIG}", {})
    assert answer.status == 401  # the fake hub does not know the token: it arrived, over the proxy
    assert hub.requests[-1].path == CONFIG
    answer = session("http://elsewhere.invalid", token="hf_secret").get(f"http://hub.invalid{CONFIG}", {})
    assert answer.status == 200 and hub.requests[-1].authorization is None


def test_no_proxy_is_honoured(hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    assert session(hub.url).get(hub.url + CONFIG, {}).status == 200


def test_a_proxy_that_is_not_http_is_refused_by_name(
    home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    with pytest.raises(DownloadError, match="socks5"):
        session(hub.url).get(hub.url + CONFIG, {})


def test_an_idle_connection_that_the_server_closed_is_opened_again(hub: Hub, home: Home) -> None:
    one = session(hub.url)
    assert body(one.get(hub.url + CONFIG, {}))
    (opened,) = one._open.values()
    assert opened.sock is not None
    opened.sock.shutdown(socket.SHUT_RDWR)
    answer = one.get(hub.url + CONFIG, {})
    assert answer.status == 200 and body(answer) == TINY.files["config.json"].content


def test_connections_are_kept_between_files(hub: Hub, home: Home) -> None:
    one = session(hub.url)
    for _ in range(3):
        answer = one.get(hub.url + CONFIG, {})
        body(answer)
        one.finish(answer)
        (opened,) = one._open.values()
    assert one._open == {origin(hub.url): opened}


def test_redirects_in_a_circle_end(hub: Hub, home: Home) -> None:
    hub.rule("*/config.json redirect=")
    with pytest.raises(DownloadError, match="more than 10 redirects"):
        session(hub.url).get(hub.url + CONFIG, {})


@pytest.mark.parametrize("target", ["ftp://x/", "file:///etc/passwd#"])
def test_a_redirect_to_another_scheme_is_refused(hub: Hub, home: Home, target: str) -> None:
    hub.rule(f"*/config.json redirect={target}")
    with pytest.raises(DownloadError, match="not an http address"):
        session(hub.url).get(hub.url + CONFIG, {})


def test_what_is_loopback_and_what_is_one_origin() -> None:
    assert (
        is_loopback("http://127.0.0.1:8/x")
        and is_loopback("http://localhost")
        and is_loopback("http://[::1]:1/")
    )
    assert not is_loopback("http://example.org") and not is_loopback("http://10.0.0.1")
    assert origin("https://Hub.example/a") == origin("https://hub.example:443/b")
    assert origin("http://hub.example") != origin("https://hub.example") != origin("https://cdn.hub.example")


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that only its own file vouches for."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [
        program,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return key, cert


@pytest.fixture
def secure_hub(certificate: tuple[Path, Path], home: Home) -> Iterator[Hub]:
    """The fake hub behind TLS."""
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    hub = Hub(TINY)
    hub.servers[0].socket = context.wrap_socket(hub.servers[0].socket, server_side=True)
    hub.url = hub.url.replace("http://127.0.0.1", "https://localhost")
    connection._tls.cache_clear()
    with hub:
        yield hub
    connection._tls.cache_clear()


def test_an_unknown_certificate_is_refused_with_the_way_out(
    secure_hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        session(secure_hub.url).get(secure_hub.url + CONFIG, {})


def test_a_certificate_of_the_companys_own_is_trusted_when_it_is_named(
    secure_hub: Hub, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    answer = session(secure_hub.url, token="hf_x").get(secure_hub.url + CONFIG, {})
    assert answer.status == 401 and secure_hub.requests[-1].authorization == "Bearer hf_x"


def test_an_encrypted_hub_may_not_redirect_to_a_plain_one(
    secure_hub: Hub, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    secure_hub.rule("*/config.json redirect=http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="not encrypted"):
        session(secure_hub.url).get(secure_hub.url + CONFIG, {})


def test_an_encrypted_hub_is_reached_through_a_tunnel(
    secure_hub: Hub, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    with Tunnel() as tunnel:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://user:secret@127.0.0.1:{tunnel.port}")
        answer = session(secure_hub.url, token="hf_x").get(secure_hub.url + CONFIG, {})
        assert answer.status == 401
    assert tunnel.asked.startswith(f"CONNECT localhost:{origin(secure_hub.url)[2]}")
    assert "Proxy-Authorization: Basic" in tunnel.asked and "hf_x" not in tunnel.asked


class Tunnel:
    """A proxy that knows CONNECT, for one connection."""

    def __enter__(self) -> Tunnel:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.asked = self._listener.getsockname()[1], ""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        while "\r\n\r\n" not in self.asked:
            self.asked += client.recv(4096).decode()
        host, _, port = self.asked.split()[1].partition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=pump, args=(server, client), daemon=True)
        back.start()
        pump(client, server)


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until either side closes."""
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)

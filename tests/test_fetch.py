"""What a download keeps to when the hub, the network and the disk do not behave."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakehome import NEEDED, QUICK, Home
from fakehub import Hub
from fakerepo import File, Repo, tiny_model

from nanochat.errors import (
    AccessDenied,
    DownloadError,
    InvalidModel,
    ModelNotFound,
    Offline,
    UnsupportedModel,
)
from nanochat.transfer.blob import BlobFetch
from nanochat.transfer.connection import Session
from nanochat.transfer.events import CannotPause, Policy, Progress, Resolved
from nanochat.transfer.repository import RemoteFile
from nanochat.transfer.tally import Tally

WEIGHTS = "*model.safetensors*"
OLD, NEW = tiny_model(seed=1), tiny_model(seed=2)
SIZE = NEW.files["model.safetensors"].size


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(NEW) as hub:
        yield hub


@pytest.fixture
def home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home.at(tmp_path, hub, monkeypatch)


def test_a_download_becomes_a_snapshot_that_the_hub_client_and_transformers_accept(home: Home) -> None:
    from huggingface_hub import snapshot_download

    folder = home.fetch()
    assert home.is_new(NEW)
    found = snapshot_download(
        "org/tiny", cache_dir=home.cache, local_files_only=True, allow_patterns=["*.json"]
    )
    assert Path(found) == folder
    assert (home.repository().folder / "refs" / "main").read_bytes() == NEW.commit.encode()


def test_only_what_is_needed_is_asked_for(hub: Hub, home: Home) -> None:
    home.fetch()
    paths = [seen.path for seen in hub.gets("*/resolve/*")]
    assert len(paths) == len(set(paths)) == 5
    assert not any(part in path for path in paths for part in NEEDED)


def test_the_total_is_known_first_and_the_count_of_bytes_never_falls(home: Home) -> None:
    home.fetch()
    resolved = next(event for event in home.events if isinstance(event, Resolved))
    assert resolved.total == sum(size for _, size, _ in resolved.files) > SIZE
    counts = [event.done for event in home.events if isinstance(event, Progress)]
    assert counts == sorted(counts) and counts[-1] == resolved.total


@pytest.mark.parametrize(
    "rule",
    [
        "cut=0",
        "cut=1000",
        f"cut={SIZE - 1}",
        "short=100",
        "long=100",
        "garbage",
        "html",
        "drop",
        "stall=5000",
        "silent",
        "chunked",
        "status=429,0",
        "status=503",
        "status=408",
        "status=403",
        "etag=00000",
    ],
)
def test_one_misbehaviour_is_survived(hub: Hub, home: Home, rule: str) -> None:
    hub.rule(f"{WEIGHTS} {rule} times=1 origin=cdn")
    home.fetch()
    assert home.is_new(NEW)
    home.assert_nothing_broken(NEW)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("cut=0", "3 tries in a row"),
        ("cut=0", "it goes on there"),
        ("short=100", "sent"),
        ("long=100", "sent"),
        ("garbage", "has sha256"),
        ("html", "an HTML page"),
        ("drop", "connection lost"),
        ("stall=0", "nothing came for too long"),
        ("status=404", "answered 404"),
        ("status=416", "refused to go on"),
        ("status=429,0", "answered 429"),
        ("status=503", "answered 503"),
        ("chunked cut=0", "connection"),
    ],
)
def test_a_lasting_misbehaviour_ends_in_a_sentence_and_the_old_model_stays(
    hub: Hub, home: Home, rule: str, says: str
) -> None:
    hub.add(OLD)
    home.fetch()
    hub.add(NEW)
    for one in rule.split():
        hub.rule(f"{WEIGHTS} {one} origin=cdn")
    error = home.fails()
    assert isinstance(error, DownloadError) and says in str(error)
    assert home.is_new(OLD) and not home.is_new(NEW)
    home.assert_nothing_broken(OLD, NEW)
    hub.rules.clear()
    home.fetch()
    assert home.is_new(NEW)
    home.assert_nothing_broken(OLD, NEW)


@pytest.mark.parametrize("status", [401, 403])
def test_an_access_that_ends_during_the_download_is_said_at_once(hub: Hub, home: Home, status: int) -> None:
    hub.rule(f"{WEIGHTS} status={status} origin=hub")
    error = home.fails()
    assert isinstance(error, AccessDenied) and str(status) in str(error)
    assert len(hub.gets(WEIGHTS)) == 1


def test_the_waits_grow_and_the_servers_own_wish_is_honoured(hub: Hub, home: Home, tmp_path: Path) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        if seconds:
            waits.append(seconds)
        return False

    for rule in ("status=503", "status=503", "status=429,7", "status=503,9999", "status=500", "status=500"):
        hub.rule(f"*/model.safetensors {rule} times=1")
    policy = Policy(first_delay=1.0, longest_delay=6.0, longest_retry_after=60.0)
    file = NEW.files["model.safetensors"]
    wanted = RemoteFile("model.safetensors", file.size, file.blob_id, file.sha256)
    session = Session(hub.url, None, "test", 2, 2)
    url = f"{hub.url}/org/tiny/resolve/{NEW.commit}/model.safetensors"
    BlobFetch(session, url, wanted, Tally([wanted]), policy, wait).run(tmp_path / "part")
    assert waits == [1.0, 2.0, 7.0, 60.0, 6.0, 6.0]
    assert (tmp_path / "part").read_bytes() == file.content


def test_a_cut_download_goes_on_inside_the_file(hub: Hub, home: Home) -> None:
    hub.rule(f"{WEIGHTS} cut=10000 times=1 origin=cdn")
    hub.rule(f"{WEIGHTS} cut=20000 times=1 origin=cdn")
    home.fetch()
    ranges = [seen.range for seen in hub.gets(WEIGHTS, origin="cdn")]
    assert ranges[:3] == [None, "bytes=10000-", "bytes=30000-"]


def test_a_link_that_dies_every_few_bytes_still_arrives(hub: Hub, home: Home) -> None:
    hub.rule(f"{WEIGHTS} cut=9000 origin=cdn")
    home.fetch()
    assert home.is_new(NEW) and len(hub.gets(WEIGHTS, origin="cdn")) == SIZE // 9000 + 1


def test_a_later_run_asks_only_for_the_rest(hub: Hub, home: Home) -> None:
    hub.rule(f"{WEIGHTS} cut=30000 times=1 origin=cdn")
    home.fails(replace(home.spec(), policy=replace(QUICK, tries=1)))
    hub.requests.clear()
    home.fetch()
    assert [seen.range for seen in hub.gets(WEIGHTS, origin="cdn")] == ["bytes=30000-"]
    received = [event.received for event in home.events if isinstance(event, Progress)][-1]
    assert received == SIZE - 30000
    assert home.is_new(NEW)


@pytest.mark.parametrize(("rule", "again"), [("norange", []), ("badrange", [None]), ("status=416", [None])])
def test_a_server_that_cannot_resume_starts_the_file_over(
    hub: Hub, home: Home, rule: str, again: list[str | None]
) -> None:
    part = home.repository().part(NEW.files["model.safetensors"].etag)
    part.parent.mkdir(parents=True)
    content = NEW.files["model.safetensors"].content
    assert isinstance(content, bytes)
    part.write_bytes(content[:40000])
    hub.rule(f"{WEIGHTS} {rule} times=1 origin=cdn")
    home.fetch()
    assert home.is_new(NEW)
    assert [seen.range for seen in hub.gets(WEIGHTS, origin="cdn")] == ["bytes=40000-", *again]


@pytest.mark.parametrize("left", [b"not the beginning of the file", b"\0" * (SIZE + 5), b"\0" * SIZE, b""])
def test_a_damaged_part_is_never_trusted(home: Home, left: bytes) -> None:
    part = home.repository().part(NEW.files["model.safetensors"].etag)
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    home.fetch()
    assert home.is_new(NEW)
    assert not part.exists()


def test_a_finished_part_is_published_without_the_network(hub: Hub, home: Home) -> None:
    file = NEW.files["model.safetensors"]
    part = home.repository().part(file.etag)
    part.parent.mkdir(parents=True)
    assert isinstance(file.content, bytes)
    part.write_bytes(file.content)
    home.fetch()
    assert hub.gets(WEIGHTS) == [] and home.is_new(NEW)


def test_a_file_of_another_tool_is_checked_once_and_used_in_place(hub: Hub, home: Home) -> None:
    file = NEW.files["model.safetensors"]
    blob = home.repository().blob(file.etag)
    blob.parent.mkdir(parents=True)
    assert isinstance(file.content, bytes)
    blob.write_bytes(file.content)
    inode = blob.stat().st_ino
    home.fetch()
    assert hub.gets(WEIGHTS) == [] and blob.stat().st_ino == inode
    assert [event.checked for event in home.events if isinstance(event, Progress)][-1] == SIZE
    home.fetch()
    assert [event.checked for event in home.events if isinstance(event, Progress)][-1] == 0


def test_a_damaged_file_of_another_tool_is_replaced(home: Home) -> None:
    file = NEW.files["model.safetensors"]
    blob = home.repository().blob(file.etag)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"\1" * file.size)
    home.fetch()
    assert home.is_new(NEW)


def test_a_file_that_changed_after_it_was_verified_is_fetched_again(home: Home) -> None:
    home.fetch()
    blob = home.repository().blob(NEW.files["model.safetensors"].etag)
    content = bytearray(blob.read_bytes())
    content[100] ^= 1
    blob.write_bytes(content)
    home.fetch()
    assert home.is_new(NEW)


def test_two_names_of_one_content_are_fetched_once(hub: Hub, home: Home) -> None:
    repo = tiny_model("org/twice", shards=2)
    first = repo.files["model-00001-of-00002.safetensors"]
    repo.files["model-00002-of-00002.safetensors"] = first
    hub.add(repo)
    home.fetch(home.spec("org/twice"))
    assert len(hub.gets("/org/twice/*.safetensors/*", origin="cdn")) == 1
    assert home.is_new(repo)


def test_no_token_follows_a_redirect_to_another_host(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.accounts["hf_secret"] = {"org/tiny"}
    home.fetch()
    to_hub = [seen.authorization for seen in hub.requests if seen.origin == "hub"]
    to_cdn = [seen.authorization for seen in hub.requests if seen.origin == "cdn"]
    assert set(to_hub) == {"Bearer hf_secret"} and set(to_cdn) == {None}


def test_a_renamed_repository_keeps_its_token_on_the_same_host(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.accounts["hf_secret"] = {"org/tiny"}
    hub.rule("/org/tiny/resolve/* redirect=/moved")
    home.fetch()
    assert home.is_new(NEW)
    moved = hub.gets("/moved/*")
    assert len(moved) == 5 and {seen.authorization for seen in moved} == {"Bearer hf_secret"}


def test_resolving_is_retried_when_the_hub_is_busy(hub: Hub, home: Home) -> None:
    hub.rule("/api/models/* status=429,0 times=1")
    home.fetch()
    assert home.is_new(NEW)


@pytest.mark.parametrize(
    ("rule", "says"),
    [("html", "a network portal"), ("status=500", "answered 500"), ("status=429,99", "in 99 seconds")],
)
def test_an_api_that_fails_says_how(hub: Hub, home: Home, rule: str, says: str) -> None:
    hub.rule(f"/api/models/* {rule}")
    error = home.fails()
    assert isinstance(error, DownloadError) and says in str(error)
    assert home.files() == set()


def test_a_hub_that_is_silent_is_given_up_after_the_timeout(hub: Hub, home: Home) -> None:
    hub.rule("/api/models/* silent")
    error = home.fails()
    assert isinstance(error, Offline) and "does not answer in time" in str(error)


def test_without_a_network_the_download_says_offline(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = home.fails()
    assert isinstance(error, Offline) and "cannot be reached" in str(error)


def test_the_users_offline_mode_makes_no_request(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert isinstance(home.fails(), Offline)
    assert hub.requests == []


# -- gates


def test_gated_without_a_token_names_the_three_steps(hub: Hub, home: Home) -> None:
    NEW_GATED = hub.add(tiny_model("org/gated", gated="auto"))
    error = home.fails(home.spec("org/gated"))
    assert isinstance(error, AccessDenied)
    assert "not logged in" in str(error) and f"{hub.url}/{NEW_GATED.id}" in str(error)
    assert "hf auth login" in str(error) and home.files() == set()


def test_gated_with_a_token_without_the_licence_names_the_page(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(tiny_model("org/gated", gated="manual"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.accounts["hf_good"] = set()
    error = home.fails(home.spec("org/gated"))
    assert isinstance(error, AccessDenied) and "accept the licence" in str(error)
    assert "hf_good" not in str(error) and "HF_TOKEN" in str(error)


def test_a_bad_token_is_called_bad_and_never_shown(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(tiny_model("org/gated", gated="auto"))
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    error = home.fails(home.spec("org/gated"))
    assert isinstance(error, AccessDenied) and "does not accept your token" in str(error)
    assert "hf_stale" not in str(error)


@pytest.mark.parametrize("token", [None, "hf_good"])
def test_private_or_missing_says_so(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.add(tiny_model("org/private", private=True))
    hub.accounts["hf_good"] = set()
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for repo_id in ("org/private", "org/none"):
        error = home.fails(home.spec(repo_id))
        assert isinstance(error, ModelNotFound) and "Check the spelling" in str(error)


def test_a_token_that_may_fetches_the_gated_model(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add(tiny_model("org/gated", gated="auto"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.accounts["hf_good"] = {"org/gated"}
    home.fetch(home.spec("org/gated"))
    assert home.is_new(repo)
    assert not any(b"hf_good" in path.read_bytes() for path in home.root.rglob("*") if path.is_file())


# -- refusals, before anything is fetched


def _without(*names: str, **files: bytes) -> Repo:
    repo = tiny_model("org/odd")
    kept = {name: file for name, file in repo.files.items() if name not in names and "/" not in name}
    return Repo("org/odd", kept | {name: File(content) for name, content in files.items()})


@pytest.mark.parametrize(
    ("repo", "kind", "says"),
    [
        (_without("model.safetensors", "consolidated.safetensors"), UnsupportedModel, "pickle weights only"),
        (
            _without(
                "model.safetensors", "consolidated.safetensors", "pytorch_model.bin", **{"m.gguf": b"GGUF"}
            ),
            UnsupportedModel,
            "GGUF",
        ),
        (_without("config.json", **{"adapter_config.json": b"{}"}), UnsupportedModel, "adapter"),
        (_without("tokenizer.json"), InvalidModel, "no tokenizer"),
        (
            tiny_model("org/odd", config={"architectures": ["BertModel"], "model_type": "bert"}),
            UnsupportedModel,
            "Bert",
        ),
        (
            tiny_model("org/odd", config={"quantization_config": {"quant_method": "gptq"}}),
            UnsupportedModel,
            "quantized (gptq)",
        ),
        (tiny_model("org/odd", config={"num_attention_heads": -1}), InvalidModel, "num_attention_heads"),
    ],
)
def test_what_cannot_run_is_refused_by_name_before_anything_is_fetched(
    hub: Hub, home: Home, repo: Repo, kind: type[Exception], says: str
) -> None:
    hub.add(repo)
    error = home.fails(home.spec("org/odd"))
    assert isinstance(error, kind) and says in str(error) and "org/odd" in str(error)
    assert home.files() == set()
    assert hub.gets("*.safetensors*") == []


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors", "C:\\x", "..\\x"]
)
def test_an_index_that_points_outside_writes_nothing(hub: Hub, home: Home, name: str) -> None:
    index = json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}).encode()
    repo = _without(**{"model.safetensors.index.json": index})
    repo.files[name] = File(b"evil", lfs=True)
    hub.add(repo)
    error = home.fails(home.spec("org/odd"))
    assert isinstance(error, InvalidModel) and "outside its folder" in str(error)
    assert home.files() == set() and not Path("/tmp/x.safetensors").exists()


def test_an_index_that_names_a_missing_file_is_refused(hub: Hub, home: Home) -> None:
    index = json.dumps({"weight_map": {"a": "model-9.safetensors"}}).encode()
    hub.add(_without(**{"model.safetensors.index.json": index}))
    error = home.fails(home.spec("org/odd"))
    assert isinstance(error, InvalidModel) and "not in the repository" in str(error)


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a/../../b", ""])
def test_a_revision_that_is_a_path_outside_is_refused(home: Home, revision: str) -> None:
    assert "is not a revision" in str(home.fails(home.spec(revision=revision)))
    assert home.files() == set()


def test_a_wrong_size_in_the_listing_is_found(hub: Hub, home: Home) -> None:
    hub.rule(f"/api/models/* size={SIZE + 50}")
    error = home.fails()
    assert isinstance(error, DownloadError) and str(SIZE) in str(error)
    assert not home.is_new(NEW)


# -- the disk


def test_the_disk_is_checked_for_the_whole_before_the_first_byte(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2 << 20})())
    error = home.fails(replace(home.spec(), reserved=(2 << 20) - 1000))
    assert "not enough disk" in str(error) and "HF_HOME" in str(error)
    assert home.files() == set() and hub.gets(WEIGHTS) == []


def test_a_disk_that_fills_up_keeps_the_bytes_and_says_so(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset >= 20000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: 20000 - offset], offset)

    monkeypatch.setattr(os, "pwrite", full)
    error = home.fails()
    assert isinstance(error, DownloadError) and "the disk is full" in str(error)
    part = home.repository().part(NEW.files["model.safetensors"].etag)
    assert part.stat().st_size == 20000
    monkeypatch.undo()
    home.assert_nothing_broken(NEW)


def test_what_only_xet_serves_comes_through_the_hub_client_and_says_that_it_cannot_pause(
    hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.xet_only.add("model.safetensors")
    home.fetch()
    assert any(isinstance(event, CannotPause) for event in home.events)
    assert home.is_new(NEW)
    home.assert_nothing_broken(NEW)

"""What a download keeps to when the hub, the network and the disk do not behave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakehome import NEEDED, QUICK, Home
from fakehub import Hub
from fakerepo import tiny_model

from nanochat.errors import (
    AccessDenied,
    DownloadError,
    Offline,
)
from nanochat.transfer.blob import BlobFetch
from nanochat.transfer.connection import Session
from nanochat.transfer.events import Policy, Progress, Resolved
from nanochat.transfer.repository import RemoteFile
from nanochat.transfer.tally import Tally

WEIGHTS = "*model.safetensors*"
OLD, NEW = tiny_model(seed=1), tiny_model(seed=2)
SIZE = NEW.files["model.safetensors"].size


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(NEW) as hub:
        yield hub


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


def test_a_commit_that_the_hub_has_forgotten_gives_way_to_the_revision(hub: Hub, home: Home) -> None:
    home.fetch(replace(home.spec(), commit=OLD.commit))
    assert home.is_new(NEW)


def test_a_mirror_without_gates_is_not_asked_about_them(hub: Hub, home: Home) -> None:
    hub.rule("*/auth-check status=404")
    home.fetch()
    assert home.is_new(NEW) and not hub.gets("*/auth-check")


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

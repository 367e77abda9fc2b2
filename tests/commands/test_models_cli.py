"""`nanochat models`, from the search to the removal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakehome import Home
from fakehub import Hub
from fakerepo import tiny_model

from nanochat.commands.models import models
from nanochat.errors import AccessDenied, InvalidModel, ModelNotFound, Offline, UsageError
from nanochat.settings import Paths, Settings

FACTS: dict[str, Any] = {
    "cardData": {"license": "mit"},
    "config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "safetensors": {"parameters": {"BF16": 32768}, "total": 32768},
}
TINY = tiny_model("org/tiny", facts=FACTS)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(TINY) as hub:
        yield hub


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models, arguments, catch_exceptions=True)


def told(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def test_the_list_has_its_groups_offline_and_without_torch(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    program = """
import sys
from nanochat.commands.models import models
models(["list"], standalone_mode=False)
sys.exit("torch" in sys.modules or "huggingface_hub" in sys.modules)
"""
    home_list = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert home_list.returncode == 0, home_list.stderr
    assert "Recommended" in home_list.stdout and "Qwen/Qwen3-8B" in home_list.stdout
    assert {row["group"] for row in told("list")} == {"recommended"}


def test_a_models_life_from_the_search_to_the_removal(hub: Hub, home: Home) -> None:
    assert [(row["name"], row["fit"]) for row in told("search", "tiny")] == [("org/tiny", "fits with 4k")]
    facts = told("show", "org/tiny")
    assert (
        facts["where"] == "the hub" and facts["licence"] == "mit" and facts["fit"]["text"] == "fits with 4k"
    )

    pulled = run("pull", "org/tiny")
    assert pulled.exception is None and "org/tiny is ready" in pulled.stdout
    assert "fits with 4k" in pulled.stderr and TINY.commit[:12] in pulled.stderr
    (here,) = [row for row in told("list") if row["group"] == "here"]
    assert here["name"] == "org/tiny" and here["licence"] == "mit" and here["gated"] is False
    assert told("pull", "org/tiny")[0]["path"] == here["path"]
    facts = told("show", "tiny")
    assert (
        facts["commit"] == TINY.commit and facts["verified"] is not None and facts["parameters"] == 512 * 64
    )
    assert told("verify", "tiny")["against"] == "the hub's list"

    assert "default model now" in run("use", "tiny").stdout
    assert Settings.load(Paths.find().settings_file).default_model == "org/tiny"

    blob = home.repository().blob(TINY.files["model.safetensors"].etag)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 255
    blob.write_bytes(content)
    checked = run("verify", "tiny", "--local")
    assert "damaged: model.safetensors" in checked.stdout and isinstance(checked.exception, InvalidModel)
    hub.requests.clear()
    assert run("pull", "org/tiny").exception is None
    assert len(hub.gets("*.safetensors*", origin="cdn")) == 1 and not hub.gets("*/tokenizer.json")
    assert told("verify", "tiny", "--local")["good"]

    assert isinstance(run("rm", "tiny").exception, UsageError)  # nobody to ask
    removed = run("rm", "tiny", "--yes")
    assert "is the default model" in removed.stdout and "org/tiny is removed" in removed.stdout
    assert Settings.load(Paths.find().settings_file).default_model == ""
    assert not home.repository().folder.exists()
    assert isinstance(run("verify", "tiny").exception, ModelNotFound)


def test_removing_one_version_says_what_the_others_share(hub: Hub, home: Home) -> None:
    home.fetch(home.spec("org/tiny"))
    newer = tiny_model("org/tiny", seed=3)
    hub.add(newer)
    home.fetch(home.spec("org/tiny"))
    planned = run("rm", "org/tiny", "--revision", TINY.commit[:10], "--yes")
    assert planned.exception is None and f"{newer.commit[:12]} use them too" in planned.stdout
    assert home.is_new(newer)
    home.assert_nothing_broken(newer)


def test_a_refusal_is_the_commands_error(hub: Hub, home: Home) -> None:
    hub.add(tiny_model("org/gated", gated="auto"))
    result = run("pull", "org/gated")
    assert isinstance(result.exception, AccessDenied) and result.exception.exit_code == 4
    assert not home.cache.exists()


def test_a_short_name_must_be_a_recommended_one(home: Home) -> None:
    assert isinstance(run("pull", "no-such-model").exception, UsageError)
    assert isinstance(run("rm").exception, UsageError)
    assert isinstance(run("show", "no-such-model").exception, ModelNotFound)


def test_a_search_offline_is_one_line_and_exit_code_4(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "nanochat", "models", "search", "x"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == Offline.exit_code and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("nanochat: offline:")


def test_ctrl_c_keeps_every_byte_and_the_next_pull_goes_on(hub: Hub, home: Home) -> None:
    hub.rule("*model.safetensors* stall=40000 times=1 origin=cdn")
    command = [sys.executable, "-m", "nanochat", "models", "pull"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    part = home.repository().part(TINY.files["model.safetensors"].etag)
    with subprocess.Popen(
        [*command, "org/tiny"], env=environment, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stderr is not None
        while not part.exists() or part.stat().st_size < 40000:
            assert first.poll() is None
            hub.closing.wait(0.01)
        first.send_signal(signal.SIGINT)
        text = first.stderr.read()
        assert first.wait(10) == 130 and "every byte is kept" in text and "Traceback" not in text
    (unfinished,) = [row for row in told("list") if row["group"] == "unfinished"]
    assert unfinished["name"] == "org/tiny" and unfinished["done"] >= 40000
    assert unfinished["state"] == "interrupted"
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0 and "org/tiny is ready" in second.stdout
    assert [seen.range for seen in hub.gets("*model.safetensors*", origin="cdn")] == [None, "bytes=40000-"]


def test_an_unfinished_download_is_given_up_by_rm(hub: Hub, home: Home) -> None:
    hub.rule("*model.safetensors* cut=40000 times=1 origin=cdn")
    hub.rule("*model.safetensors* status=404 skip=1 origin=cdn")
    assert run("pull", "org/tiny").exception is not None
    assert home.repository().part(TINY.files["model.safetensors"].etag).stat().st_size == 40000
    assert told("rm", "org/tiny", "--yes")["removed"]
    assert not home.repository().folder.exists()
    assert [row for row in told("list") if row["group"] == "unfinished"] == []


def test_leftovers_of_any_tool_are_found_and_removed_but_not_what_is_in_use(hub: Hub, home: Home) -> None:
    home.fetch(home.spec("org/tiny"))
    repository = home.repository()
    ours = repository.part("a" * 64)
    ours.write_bytes(b"x" * 1000)
    old = repository.folder / "blobs" / ("b" * 64 + ".0123abcd.incomplete")
    old.write_bytes(b"x" * 500)
    os.utime(old, (0, 0))
    young = repository.folder / "blobs" / ("c" * 64 + ".0123abcd.incomplete")
    young.write_bytes(b"x")
    busy = repository.part("d" * 64)
    busy.write_bytes(b"x")
    with repository.lock("d" * 64):
        row = told("rm", "--leftovers", "--yes")
    assert {one["size"] for one in row["leftovers"]} == {1000, 500} and row["freed"] == 1500
    assert not ours.exists() and not old.exists()
    assert young.exists() and busy.exists()
    assert home.is_new(TINY)
    told("rm", "--leftovers", "--yes")
    assert not busy.exists()


def test_a_folder_of_the_users_own_is_never_removed(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    assert isinstance(run("rm", str(folder), "--yes").exception, UsageError)
    assert (folder / "config.json").exists()
    assert "cannot be checked" in run("verify", str(folder)).stdout


def test_names_from_the_hub_reach_the_terminal_without_escapes(hub: Hub, home: Home) -> None:
    hub.add(tiny_model("org/\x1b]0;evil\x07tiny", facts=FACTS | {"cardData": {"license": "\x1b[31mred"}}))
    assert "\x1b" not in run("search", "evil").output


@pytest.mark.parametrize("names", [["starter"], ["org/tiny", "SmolLM2-135M-Instruct"], []])
def test_a_revision_of_what_has_none_is_refused_before_anything_is_fetched(
    hub: Hub, home: Home, names: list[str]
) -> None:
    refused = run("pull", *names, "--revision", "v2").exception
    assert isinstance(refused, UsageError) and "--revision v2" in str(refused)
    assert not hub.requests

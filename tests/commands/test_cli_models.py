"""What `nanochat run` says of a model that is damaged, not supported, or too large: one line, and its exit code."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat import cli
from nanochat.errors import UnsupportedModel
from nanochat.hub import LocalModel
from nanochat.ui.language import Language

Damage = Callable[[Path], object]


@pytest.fixture
def folder(starter_model: Path, tmp_path: Path) -> Path:
    """The starter model in a folder that may be damaged: the weights are a link, the rest are copies."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in starter_model.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """`main` sets this process's logging up; undo it."""
    before = list(logging.getLogger().handlers)
    yield
    logging.captureWarnings(False)
    for handler in set(logging.getLogger().handlers) - set(before):
        logging.getLogger().removeHandler(handler)


def config(**changes: Any) -> Damage:
    """Change values of config.json; None removes one."""

    def damage(folder: Path) -> None:
        file = folder / "config.json"
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return damage


def write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def weights(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(change(content))

    return damage


def missing_shard(folder: Path) -> None:
    names = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (folder / "model.safetensors").rename(folder / names["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def overlapping(content: bytes) -> bytes:
    """Let the last tensor begin eight bytes early."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    last = max(
        (name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][0]
    )
    begin, end = header[last]["data_offsets"]
    header[last]["data_offsets"] = [begin - 8, end]
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + size :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(remove("config.json"), ["config.json"], id="no config"),
        pytest.param(write("config.json", "{"), ["config.json"], id="config is no JSON"),
        pytest.param(write("config.json", "[]"), ["config.json"], id="config is no object"),
        pytest.param(config(architectures=None), ["architectures"], id="no architecture"),
        pytest.param(config(architectures=["MambaForCausalLM"], model_type="mamba"), ["Mamba"], id="not supported"),
        pytest.param(config(hidden_size=0), ["hidden_size", "0"], id="zero"),
        pytest.param(config(num_hidden_layers=-1), ["num_hidden_layers", "-1"], id="negative"),
        pytest.param(config(vocab_size=2**63), ["vocab_size", str(2**63)], id="2^63"),
        pytest.param(config(intermediate_size="big"), ["intermediate_size", "big"], id="a string"),
        pytest.param(config(num_attention_heads=7, head_dim=None), ["7"], id="heads do not divide"),
        pytest.param(missing_shard, ["1 of its weight files"], id="missing shard"),
        pytest.param(remove("model.safetensors"), ["safetensors"], id="no weights"),
        pytest.param(weights(lambda content: content[:-1000]), ["model.safetensors"], id="truncated"),
        pytest.param(weights(overlapping), ["model.safetensors"], id="overlapping"),
        pytest.param(weights(lambda content: b"\xff" * 8 + content[8:]), ["model.safetensors"], id="header length"),
        pytest.param(config(intermediate_size=1024), ["1536"], id="shapes disagree"),
        pytest.param(remove("tokenizer.json"), ["tokenizer"], id="no tokenizer"),
        pytest.param(write("tokenizer.json", "{}"), ["tokenizer.json"], id="damaged tokenizer"),
        pytest.param(remove("chat_template.jinja"), ["template"], id="no template"),
        pytest.param(write("chat_template.jinja", "{% for %}"), ["template"], id="damaged template"),
        pytest.param(pickle_only, ["pickle", "safetensors"], id="pickle only"),
    ],
)  # fmt: skip
def test_a_damaged_model_is_one_line_and_exit_code_3(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: Damage, words: list[str]
) -> None:
    damage(folder)
    run_and_expect(capsys, ["run", "hi", "-m", str(folder)], 3, words)


def test_a_model_that_does_not_run_is_refused_as_that_with_or_without_a_chat_template(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(architectures=["BartForCausalLM"], model_type="bart")(folder)
    remove("chat_template.jinja")(folder)
    run_and_expect(capsys, ["run", "hi", "-m", str(folder)], 3, ["is an encoder-decoder model"])
    with pytest.raises(UnsupportedModel, match="is an encoder-decoder model"):
        Language.read(LocalModel("model", folder, source="folder", size=0))


def test_a_prompt_longer_than_the_context_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "word " * 200, "-m", str(folder), "--max-model-len", "64"]
    run_and_expect(capsys, arguments, 5, ["64"])


def test_what_can_not_fit_in_memory_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(hidden_size=2**17, intermediate_size=2**18, num_attention_heads=1024, num_key_value_heads=1024, head_dim=128,
           num_hidden_layers=100)(folder)  # fmt: skip
    run_and_expect(capsys, ["run", "hi", "-m", str(folder)], 6, ["GiB"])


def test_a_model_that_cannot_think_has_no_switch_for_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_and_expect(capsys, ["run", "hi", "-m", str(folder), "--thinking"], 2, ["no switch for thinking"])


def run_and_expect(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    stdout, stderr = capsys.readouterr()
    assert ended.value.code == code, stderr
    assert stdout == ""
    assert stderr.startswith("nanochat: ")
    assert stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr

"""Safetensors are read exactly, straight into place, and whatever is wrong with them is named before it is read."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nanochat.engine.tensor_files import INDEX
from nanochat.engine.weights import Checkpoint
from nanochat.errors import InvalidModel, ModelError, UnsupportedModel

A = torch.arange(35, dtype=torch.float32).view(7, 5) / 3
B = torch.linspace(-2, 2, 6, dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    save_file({"a": A, "b": B, "half": A.bfloat16()}, tmp_path / "model.safetensors")
    return tmp_path


def write(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def refused(folder, kind=InvalidModel) -> str:
    with pytest.raises(kind) as caught:
        Checkpoint(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500 and ("fetch" in text or "take" in text)
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["a", "half"])
def test_tensors_are_read_and_converted(folder, dtype, name):
    expected = A if name == "a" else A.bfloat16()
    to = torch.full((7, 5), float("nan"), dtype=dtype)
    with Checkpoint(folder) as checkpoint:
        checkpoint.read(name, to, shape=(7, 5))
    assert torch.equal(to, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [None, slice(2, 5)])
@pytest.mark.parametrize("columns", [None, slice(1, 4)])
def test_a_part_is_read_into_a_part(folder, dtype, rows, columns):
    expected = A[rows or slice(None)][:, columns or slice(None)]
    whole = torch.zeros(9, expected.shape[1], dtype=dtype)
    part = whole[1 : 1 + expected.shape[0]]
    with Checkpoint(folder) as checkpoint:
        checkpoint.read("a", part, shape=(7, 5), rows=rows, columns=columns)
    assert torch.equal(part, expected.to(dtype))
    assert whole.count_nonzero() == part.count_nonzero()


def test_reading_in_small_stages_gives_the_same(folder, monkeypatch):
    monkeypatch.setattr("nanochat.engine.weights._STAGING", 24)
    to, part = torch.empty(7, 5, dtype=torch.bfloat16), torch.empty(7, 2)
    with Checkpoint(folder) as checkpoint:
        checkpoint.read("a", to, shape=(7, 5))
        checkpoint.read("a", part, shape=(7, 5), columns=slice(3, 5))
    assert torch.equal(to, A.bfloat16()) and torch.equal(part, A[:, 3:])


def test_progress_counts_bytes_to_the_end(folder):
    seen = []
    with Checkpoint(folder) as checkpoint:
        checkpoint.progress = lambda done, total: seen.append((done, total))
        checkpoint.read("a", torch.empty(7, 5), shape=(7, 5))
        checkpoint.read("b", torch.empty(6), shape=(6,))
        checkpoint.skip("half")
    total = 35 * 4 + 6 * 4 + 35 * 2
    assert seen == [(140, total), (164, total), (total, total)]


def test_a_shape_that_disagrees_with_the_config_is_named(folder):
    with (
        Checkpoint(folder) as checkpoint,
        pytest.raises(InvalidModel, match=r"a in .* has shape \[7, 5\], and .* \[5, 7\]"),
    ):
        checkpoint.read("a", torch.empty(5, 7), shape=(5, 7))


def test_a_missing_tensor_is_named(folder):
    with Checkpoint(folder) as checkpoint, pytest.raises(InvalidModel, match="no tensor model"):
        checkpoint.read("model.norm.weight", torch.empty(1), shape=(1,))


def test_integers_are_no_weights(tmp_path):
    save_file({"a": torch.zeros(2, 2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(UnsupportedModel, match="I8"):
        checkpoint.read("a", torch.empty(2, 2), shape=(2, 2))


def test_a_folder_without_weights_is_refused(tmp_path):
    assert "no *.safetensors" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_refused(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    assert "model.safetensors is damaged" in refused(folder)


def test_bytes_after_the_last_tensor_are_refused(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "appended to" in refused(folder)


def entry(begin, end, shape=None, dtype="F32"):
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"x": entry(0, 16), "y": entry(8, 24)}, "'y' overlaps 'x'"),
        ({"x": entry(0, 8), "y": entry(16, 24)}, "'y' leaves a gap after 'x'"),
        ({"x": entry(0, 24), "y": entry(0, 24)}, "overlaps"),
        ({"x": entry(8, 24)}, "'x' leaves a gap after 'the header'"),
        ({"x": entry(0, 24, [7])}, "cannot have 24 bytes"),
        ({"x": entry(0, 24, [-6])}, "the shape of 'x'"),
        ({"x": entry(0, 24, [2**62, 2**62])}, "the shape of 'x'"),
        ({"x": entry(0, 24, ["6"])}, "the shape of 'x'"),
        ({"x": entry(0, 24, [True, 6])}, "the shape of 'x'"),
        ({"x": entry(24, 0, [6])}, "'x' lies at 24 to 0"),
        ({"x": entry(0, 2**63, [2**61])}, "the shape of 'x'"),
        ({"x": {"dtype": "F32", "shape": [6]}}, "not one of a tensor"),
        ({"x": {"dtype": 3, "shape": [6], "data_offsets": [0, 24]}}, "not one of a tensor"),
        ({"x": [1, 2]}, "not one of a tensor"),
        ([], "not a JSON object"),
        (b"{" * 50_000, "not JSON"),
        (b"\xff\xff\xff", "not JSON"),
    ],
)
def test_a_damaged_header_is_named(tmp_path, header, words):
    write(tmp_path / "model.safetensors", header, bytes(24))
    assert words in refused(tmp_path)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "its header claims" in refused(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_the_header_is_refused_or_harmless(folder, data):
    path = folder / "model.safetensors"
    save_file({"a": A, "b": B}, path)
    raw = bytearray(path.read_bytes())
    header = struct.unpack("<Q", raw[:8])[0]
    for place in data.draw(st.lists(st.integers(0, 8 + header - 1), min_size=1, max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        with Checkpoint(folder) as checkpoint:
            for name, found in checkpoint.entries.items():
                checkpoint.read(name, torch.empty(found.shape), shape=found.shape)
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": A}, tmp_path / "one.safetensors")
    save_file({"b": B}, tmp_path / "two.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


def reindex(folder, **changes):
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"} | changes})
    )


def test_shards_are_read_as_one(sharded):
    to = torch.empty(6)
    with Checkpoint(sharded) as checkpoint:
        assert set(checkpoint.entries) == {"a", "b"}
        checkpoint.read("b", to, shape=(6,))
    assert torch.equal(to, B)


def test_a_missing_shard_is_named(sharded):
    (sharded / "two.safetensors").unlink()
    assert "lacks 1 of its 2 weight files, first two.safetensors" in refused(sharded)


@pytest.mark.parametrize(
    "shard",
    [
        "../two.safetensors",
        "/etc/passwd",
        "sub/two.safetensors",
        "..",
        "",
        ".",
        "a\\b.safetensors",
        7,
        None,
        ["x"],
    ],
)
def test_a_shard_outside_the_folder_is_refused(sharded, shard):
    save_file({"b": B}, sharded.parent / "two.safetensors")
    reindex(sharded, b=shard)
    assert "not a file of this folder" in refused(sharded)


def test_a_pickle_in_the_index_is_refused(sharded):
    reindex(sharded, b="pytorch_model.bin")
    assert "not safetensors" in refused(sharded, UnsupportedModel)


def test_a_tensor_that_its_shard_does_not_have_is_named(sharded):
    reindex(sharded, c="one.safetensors")
    assert "'c'" in refused(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_damaged_index_is_refused(sharded, text):
    (sharded / INDEX).write_text(text)
    assert INDEX in refused(sharded)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(folder):
    path = folder / "model.safetensors"
    with Checkpoint(folder) as checkpoint:
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(InvalidModel, match="changed while it was read"):
            checkpoint.read("a", torch.empty(7, 5), shape=(7, 5))

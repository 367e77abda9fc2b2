"""Settings on disk: read, checked, written without losing what is not ours."""

from __future__ import annotations

import dataclasses
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import SettingsError
from nanochat.settings import Paths, Settings, private_folder
from nanochat.settings_keys import KEYS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "settings.toml"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_every_key_is_a_field_whose_default_it_allows() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)} - {"unknown"}
    assert {key.field for key in KEYS} == fields
    for key in KEYS:
        assert key.allows(getattr(Settings(), key.field)), key


def test_without_a_file_everything_is_default(file: Path) -> None:
    assert Settings.load(file) == Settings()


def test_what_is_changed_is_read_back_and_none_removes_it(file: Path) -> None:
    changed = Settings.change(file, dtype="float32", keymap={"chat.new": "ctrl+t"}, kv_cache_gib=1.5)
    assert changed == Settings.load(file)
    assert (changed.dtype, dict(changed.keymap), changed.kv_cache_gib) == (
        "float32",
        {"chat.new": "ctrl+t"},
        1.5,
    )
    assert Settings.change(file, dtype=None).dtype == "auto"
    assert "dtype" not in file.read_text()


def test_comments_order_and_unknown_keys_survive_a_change(file: Path) -> None:
    write(file, '# mine\nfuture = 1\n[engine]\n# why\ndtype = "float32" # slow\nwarp = 9\n[other]\na = "b"\n')
    settings = Settings.change(file, dtype="bfloat16", theme="nord")
    text = file.read_text()
    for kept in ("# mine", "future = 1", "# why", "# slow", "warp = 9", '[other]\na = "b"'):
        assert kept in text
    assert settings.unknown == ("future", "engine.warp", "other")
    assert (settings.dtype, settings.theme) == ("bfloat16", "nord")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[engine]\ndtype = "int9"', ("engine.dtype", "one of auto, bfloat16, float16, float32", "'int9'")),
        ("[engine]\nkv_cache_gib = -1", ("engine.kv_cache_gib", "a number from 0 to 65536", "-1")),
        ("[engine]\nkv_cache_gib = nan", ("engine.kv_cache_gib", "a number", "nan")),
        ("[engine]\nmax_model_len = 1.5", ("engine.max_model_len", "a whole number", "1.5")),
        ("[engine]\nmax_model_len = true", ("engine.max_model_len", "a whole number", "True")),
        ("[models]\ndefault = 3", ("models.default", "a text", "3")),
        ("[models]\nsuggest = 1", ("models.suggest", "true or false", "1")),
        ("[ui]\nkeymap = {a = 1}", ("ui.keymap", "a table of texts")),
        ("engine = 7", ("[engine] must be a table", "7")),
        ("[engine\ndtype", ("not TOML", "line 1")),
    ],
)
def test_a_wrong_value_names_file_key_and_range_in_one_line(
    file: Path, text: str, named: tuple[str, ...]
) -> None:
    write(file, text)
    with pytest.raises(SettingsError) as caught:
        Settings.load(file)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(file), *named):
        assert part in message


def test_bytes_that_are_no_utf8_are_an_error_not_a_crash(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"\xff\xfe[ui]")
    with pytest.raises(SettingsError, match="is not TOML"):
        Settings.load(file)


def test_a_file_that_cannot_be_read_is_never_overwritten(file: Path) -> None:
    write(file, "[engine\nprecious = 1")
    with pytest.raises(SettingsError):
        Settings.change(file, theme="nord")
    assert file.read_text() == "[engine\nprecious = 1"


def test_a_wrong_change_is_refused_before_anything_is_written(file: Path) -> None:
    for values in ({"dtype": "int9"}, {"no_such": 1}, {"theme": 5}):
        with pytest.raises(SettingsError):
            Settings.change(file, **values)
    assert not file.exists()


def test_a_link_stays_a_link(tmp_path: Path, file: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("# kept in version control\n")
    file.parent.mkdir()
    file.symlink_to(real)
    Settings.change(file, theme="nord")
    assert file.is_symlink()
    assert "nord" in real.read_text()


def test_folders_and_the_file_are_private(file: Path) -> None:
    Settings.change(file, theme="nord")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    deep = private_folder(file.parent / "a" / "b")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (deep, deep.parent)] == [0o700, 0o700]
    assert sorted(path.name for path in file.parent.iterdir()) == [".settings.lock", "a", "settings.toml"]


@given(
    st.fixed_dictionaries(
        {
            "kv_cache_gib": st.floats(0, 65536),
            "max_model_len": st.integers(0, 2**31 - 1),
            "system_prompt": st.text(st.characters(codec="utf-8")),
            "keymap": st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.just("f5")),
        }
    )
)
def test_any_allowed_value_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    file = tmp_path_factory.mktemp("settings") / "settings.toml"
    settings = Settings.change(file, **values)
    assert {name: getattr(settings, name) for name in values} == values


def test_two_processes_that_write_at_once_lose_nothing(file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from nanochat.settings import Settings\n"
        "for count in range(8): Settings.change(Path(sys.argv[1]), **{sys.argv[2]: count / 8 + 0.1})"
    )
    names = ("kv_cache_gib", "gpu_memory_utilization", "idle_unload_minutes")
    writers = [subprocess.Popen([sys.executable, "-c", program, str(file), name]) for name in names]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    settings = Settings.load(file)
    assert [getattr(settings, name) for name in names] == [pytest.approx(7 / 8 + 0.1)] * 3


def test_one_variable_moves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    paths = Paths.find()
    assert {path.parent for path in (paths.config, paths.data, paths.cache, paths.log)} == {tmp_path}

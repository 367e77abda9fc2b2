"""What the disk says, told to the user."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from nanochat.disk_faults import explain, is_of_the_disk, why_unwritable


def fault(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([name] if name else []))


def test_another_home_is_advised_only_where_it_would_help(nanochat_home: Path) -> None:
    ours = explain(fault(errno.EROFS, str(nanochat_home / "cache" / "x")))
    assert ours == (
        f"{nanochat_home}/cache/x cannot be written: Read-only file system. "
        "Make it writable for you, or set NANOCHAT_HOME to another folder"
    )
    assert explain(fault(errno.EACCES), Path("/elsewhere/x")).endswith("Make it writable for you")
    assert explain(fault(errno.ENOSPC)).startswith("no space is left. Make room, or set")


def test_what_may_be_a_bug_is_not_put_on_the_disk() -> None:
    assert not any(map(is_of_the_disk, (fault(errno.EPERM), fault(errno.ENOENT, "/x"), ValueError("x"))))
    assert is_of_the_disk(fault(errno.ENOSPC)) and is_of_the_disk(fault(errno.EACCES, "/x"))


@pytest.mark.parametrize(("name", "said"), [(b"/x", "/x cannot be written"), (5, "a file cannot be written")])
def test_a_place_may_be_named_in_bytes_or_be_a_descriptor(name: bytes | int, said: str) -> None:
    assert explain(PermissionError(errno.EACCES, "no", name)).startswith(said)


def test_a_machine_without_a_folder_for_temporary_files_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/sys"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(OSError) as failed:
        tempfile.mkdtemp()
    assert is_of_the_disk(failed.value) and "TMPDIR" in explain(failed.value)


def test_whether_a_file_could_be_added_to_is_known_without_making_it(tmp_path: Path) -> None:
    file = tmp_path / "log" / "nanochat.log"
    assert why_unwritable(file) == "" and not file.parent.exists()
    file.parent.write_text("")
    assert why_unwritable(file).startswith(f"{file.parent} cannot be written: Not a directory")
    file.parent.unlink()
    file.mkdir(parents=True)
    assert why_unwritable(file).startswith(f"{file} cannot be written: Is a directory")
    file.rmdir()
    file.write_text("x")
    assert why_unwritable(file) == "" and file.read_text() == "x"

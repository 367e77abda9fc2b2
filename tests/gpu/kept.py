"""Compiled kernels, and what was measured of them, kept between machines: a tar in pieces that travel one by one.

    python tests/gpu/kept.py save|load FOLDER

Of Triton's cache what a launch needs: binaries, their metadata, launchers; and nanochat's file of measured products. Triton
writes down where the files of a kernel lie, so that is written anew where they are unpacked. Its keys are of the sources, the
versions and the chip: what does not fit another machine is simply not found there.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

PIECE = 15 << 20  # bytes
NAME = "kept.tar.gz"
NEEDED = (".cubin", ".json", ".so")  # what Triton reads besides is for people


def triton_cache() -> Path:
    """Triton's own rule."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def measured() -> Path:
    """The file of measured products, by the rule of `nanochat.kernels`."""
    from nanochat.kernels import _cache

    return _cache() / "kernels.json"


def save(folder: Path) -> dict[str, Any]:
    """Put everything into `folder`, in place of what is there; an earlier state stays until the new one is whole."""
    cache, file = triton_cache(), measured()
    found = [path for path in sorted(cache.glob("*/*")) if path.suffix in NEEDED and path.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=3) as tar:
            for path in found:
                tar.add(path, f"triton/{path.relative_to(cache)}")
            if file.is_file():
                tar.add(file, "measured")
        size = whole.tell()
        whole.seek(0)
        count = 0
        while piece := whole.read(PIECE):
            _write(folder / f"{NAME}.{count:03d}", piece)
            count += 1
    for stale in pieces(folder)[count:]:
        stale.unlink()
    return {"ok": True, "files": len(found), "measured": file.is_file(), "pieces": count, "bytes": size}


def load(folder: Path) -> dict[str, Any]:
    """Unpack what `save` put into `folder` where this machine's Triton and nanochat look for it."""
    parts = pieces(folder)
    if not parts:
        return {"ok": False, "missing": str(folder)}
    cache, file, count = triton_cache(), measured(), 0
    with tempfile.TemporaryFile() as whole:
        for part in parts:
            whole.write(part.read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:gz") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None:
                    continue
                first, _, rest = member.name.partition("/")
                to = file if first == "measured" else cache / rest
                assert to == file or to.resolve().is_relative_to(cache.resolve()), member.name
                data = content.read()
                _write(to, at_home(data, to.parent) if to.name.startswith("__grp__") else data)
                to.chmod(member.mode)
                count += 1
    return {"ok": True, "files": count}


def pieces(folder: Path) -> list[Path]:
    """In order."""
    return sorted(folder.glob(f"{NAME}.[0-9][0-9][0-9]"))


def at_home(group: bytes, folder: Path) -> bytes:
    """A list of a kernel's files, as if they had been made in `folder`."""
    listed = json.loads(group)
    listed["child_paths"] = {name: str(folder / name) for name in listed["child_paths"]}
    return json.dumps(listed).encode()


def _write(path: Path, data: bytes) -> None:
    """Whole, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.chmod(name, 0o644)
    os.replace(name, path)


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in ("save", "load"):
        print(__doc__, file=sys.stderr)
        return 2
    found = {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(found))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

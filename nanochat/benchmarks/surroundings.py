"""Where a run was made: machine, driver, versions. Kept with every result."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nanochat import __version__
from nanochat.engine.host import processor, usable_cores
from nanochat.engine.models.config import ModelConfig

_PACKAGES = ("torch", "triton", "transformers", "flash-attn")


def surroundings(device: torch.device) -> dict[str, Any]:
    """Everything that may change a figure, by name."""
    found: dict[str, Any] = {"nanochat": __version__, "commit": commit(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found |= {
        "system": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }
    if device.type == "cuda":
        found |= {
            "cuda": torch.version.cuda,
            "driver": driver(),
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
            "gpu memory GiB": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        }
    return found


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def device_key(device: torch.device) -> str:
    """Names device and driver: what measured ceilings hold for."""
    return f"{device_name(device)}|{driver() if device.type == 'cuda' else platform.release()}"


def driver() -> str | None:
    """The NVIDIA driver's version."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no NVML, or none that answers: then it is not known
        return None


def commit() -> str | None:
    """The commit of the source tree that this package lies in, with `+` when files were changed; None if installed."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    head = _git(folder, "rev-parse", "--short", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git(folder, "status", "--porcelain", "-uno", "--", "nanochat") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or not this user's tree
    return done.stdout.strip()


def model_facts(
    name: str, config: ModelConfig, dtype: torch.dtype, *, drawn: bool, revision: str | None
) -> dict[str, Any]:
    """What is known of the model, for the header."""
    return {
        "name": name,
        "revision": revision,
        "architecture": config.architecture,
        "parameters": config.num_parameters,
        "weight_bytes": config.weight_bytes(dtype),
        "kv_bytes_per_token": config.kv_bytes_per_token(dtype),
        "dtype": str(dtype).removeprefix("torch."),
        "weights": "random" if drawn else "read",
    }


def revision_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is a snapshot of."""
    return folder.name if folder.parent.name == "snapshots" else None

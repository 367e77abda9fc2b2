"""What was found on this machine: every fact that decides how nanochat runs here, and what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from nanochat import __version__, hub
from nanochat.disk_faults import why_unwritable
from nanochat.engine.host import processor, usable_cores
from nanochat.errors import NanochatError
from nanochat.modelhub import starter, suggestion
from nanochat.modelhub.reach import HubCheck
from nanochat.settings import Paths, Settings

HUB_SECONDS = 2.5


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: what was looked at, what was found, and whether that stops nanochat from working."""

    section: str
    name: str
    value: str
    wrong: bool = False


def examine() -> list[Fact]:
    """Look at everything. The hub is asked in the background meanwhile, for 2.5 s at most."""
    check = HubCheck(HUB_SECONDS)
    facts: list[Fact] = []
    probes: tuple[tuple[str, Callable[[], list[Fact]]], ...] = (
        ("software", _software),
        ("gpu", _gpu),
        ("machine", _machine),
        ("folders", _folders),
        ("models", _models),
        ("terminal", _terminal),
    )
    for section, probe in probes:
        try:
            facts += probe()
        except Exception as error:
            # A probe that fails is itself a finding, and the others must still be made.
            facts.append(Fact(section, "error", f"{type(error).__name__}: {error}", wrong=True))
    reach = check.wait()
    facts.append(Fact("hub", "hub", f"{reach.detail} ({reach.seconds:.2f} s)"))
    better = suggestion.candidate() if reach.answers else None
    if better is not None:
        facts.append(Fact("hub", "suggestion", f"{better} fits this machine"))
    return facts


def report(facts: list[Fact]) -> list[str]:
    """The facts as aligned plain lines; what is wrong is marked in words, not by colour."""
    width = max(len(fact.name) for fact in facts)
    lines: list[str] = []
    section = ""
    for fact in facts:
        if fact.section != section:
            section = fact.section
            lines += [*([""] if lines else []), section.upper() if section == "gpu" else section.capitalize()]
        lines.append(f"  {fact.name:<{width}}  {'WRONG: ' if fact.wrong else ''}{fact.value}")
    return lines


def as_dict(facts: list[Fact]) -> dict[str, Any]:
    """The facts as nested objects for JSON; `problems` lists what is wrong."""
    sections: dict[str, Any] = {}
    for fact in facts:
        sections.setdefault(fact.section, {})[fact.name] = fact.value
    return sections | {"problems": [f"{fact.name}: {fact.value}" for fact in facts if fact.wrong]}


def _software() -> list[Fact]:
    facts = [
        Fact("software", "nanochat", __version__),
        Fact("software", "Python", f"{platform.python_version()} ({sys.executable})"),
        Fact("software", "system", f"{platform.platform()}"),
    ]
    try:
        import torch

        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
        facts.append(
            Fact("software", "torch", f"{torch.__version__} ({build}, {torch.get_num_threads()} threads)")
        )
    except Exception as error:  # a torch that does not load can raise anything
        facts.append(Fact("software", "torch", f"cannot be imported: {error}", wrong=True))
    for package in ("transformers", "tokenizers", "huggingface-hub", "textual", "triton", "flash-attn"):
        try:
            facts.append(Fact("software", package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            wrong = package not in ("triton", "flash-attn")
            facts.append(
                Fact("software", package, "not installed" + ("" if wrong else " (optional)"), wrong=wrong)
            )
    return facts


def _gpu() -> list[Fact]:
    devices = _nvidia()
    if sys.modules.get("torch") is None:
        return devices
    import torch

    if torch.cuda.is_available():
        capable = [
            Fact("gpu", f"cuda:{index}", "compute capability {}.{}".format(*torch.cuda.get_device_capability(index)))
            for index in range(torch.cuda.device_count())
        ]  # fmt: skip
        kernels = _kernels("gpu", torch.device("cuda"), torch.bfloat16)
        return [*devices, *capable, kernels, *_compiler(), *_ranks(torch.cuda.device_count())]
    if torch.version.cuda is None:
        why = "this torch is a build for CPUs"
    elif any(fact.name == "driver" for fact in devices):
        why = f"the driver does not let CUDA {torch.version.cuda} start (too old, or no device is visible)"
    else:
        why = "no NVIDIA driver was found"
    used = Fact("gpu", "used", f"none: {why}; the CPU does the work")
    return [*devices, used, _kernels("gpu", torch.device("cpu"), torch.bfloat16), *_ranks(0)]


def _kernels(section: str, device: Any, dtype: Any) -> Fact:
    """What a model would be computed with here, in the words that a benchmark's header has too."""
    from nanochat.kernels import pick

    return Fact(section, "kernels", pick(device).describe(dtype))


def _compiler() -> list[Fact]:
    """What Triton needs on a GPU: on first use it builds small Python modules that launch its kernels (triton/runtime/build.py)."""
    if util.find_spec("triton") is None:
        return []
    asked = os.environ.get("CC")
    name = asked or next((name for name in ("gcc", "clang") if shutil.which(name)), "")
    found = shutil.which(name) if name else None
    scheme = sysconfig.get_default_scheme()
    headers = Path(sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"])
    if found is None:
        missing = (
            f"CC is {asked}, which is not there" if asked else "no gcc and no clang: install one, or set CC"
        )
    elif not (headers / "Python.h").is_file():
        missing = f"{found}, but no Python.h in {headers}: install Python's headers (python3-dev, say)"
    else:
        return [Fact("gpu", "compiler", f"{found} (Triton builds with it, on first use)")]
    return [Fact("gpu", "compiler", f"{missing}. Triton builds with it, on first use", wrong=True)]


def _ranks(count: int) -> list[Fact]:
    """Over how many devices a model is or can be split, and how they are linked; `count` GPUs are there."""
    try:
        asked = Settings.load().tensor_parallel_size
    except NanochatError:  # the folders' section says what is wrong with the settings
        asked = 0
    if asked > max(count, 1) and count:
        there = f"the setting tensor_parallel_size is {asked}, and {count} GPUs are there"
        return [Fact("gpu", "ranks", there, wrong=True)]
    set_to = f"{asked}, by the setting tensor_parallel_size" if asked else ""
    if count == 0:
        alone = "one; more only when asked for (--tp), as processes over gloo on loopback"
        return [Fact("gpu", "ranks", f"{set_to}: processes over gloo on loopback" if asked > 1 else alone)]
    if count == 1:
        return [Fact("gpu", "ranks", "one: there is one GPU")]
    from nanochat.engine.parallel.links import gpu_link

    linked = f"NCCL over {gpu_link(range(count))}; small sums in one shot where loading finds that faster"
    return [Fact("gpu", "ranks", f"{set_to or f'up to {count}'}, {linked}")]


def _nvidia() -> list[Fact]:
    """What the driver itself says."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [Fact("gpu", "found", f"none ({error})")]
    try:
        facts = [Fact("gpu", "driver", f"{pynvml.nvmlSystemGetDriverVersion()}")]
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            free, total = int(memory.free) / 2**30, int(memory.total) / 2**30
            name = pynvml.nvmlDeviceGetName(device)
            facts.append(Fact("gpu", f"gpu {index}", f"{name}, {free:.1f} of {total:.1f} GiB free"))
        return facts
    except pynvml.NVMLError as error:
        return [Fact("gpu", "driver", f"does not answer: {error}")]
    finally:
        pynvml.nvmlShutdown()


def _machine() -> list[Fact]:
    import psutil

    from nanochat.engine.memory import host_memory_free

    memory = psutil.virtual_memory()
    return [
        Fact("machine", "memory", f"{host_memory_free() / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        Fact(
            "machine", "processor", f"{processor()}, {usable_cores()} of {psutil.cpu_count()} threads usable"
        ),
    ]


def _folders() -> list[Fact]:
    paths = Paths.find()
    named = {"config": paths.config, "data": paths.data, "cache": paths.cache}
    facts = [_folder(name, path, must=True) for name, path in named.items()]
    unlogged = why_unwritable(paths.log_file)
    facts.append(
        Fact("folders", "log", f"{unlogged}. Everything else works without it", wrong=True)
        if unlogged
        else _folder("log", paths.log, must=True)
    )
    facts.append(_folder("hub cache", hub.cache_folder(), must=False))
    try:
        settings = Settings.load()
    except NanochatError as error:
        return [*facts, Fact("folders", "settings", str(error), wrong=True)]
    unknown = f"; unknown keys: {', '.join(settings.unknown)}" if settings.unknown else ""
    state = "present" if paths.settings_file.exists() else "all defaults"
    return [*facts, Fact("folders", "settings", f"{paths.settings_file} ({state}{unknown})")]


def _folder(name: str, path: Path, *, must: bool) -> Fact:
    """Where it is, whether it can be written, and the room on its disk."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    free = f"{shutil.disk_usage(there).free / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK):
        return Fact("folders", name, f"{path} (not writable)", wrong=must)
    return Fact("folders", name, f"{path} ({'' if there == path else 'not made yet, '}{free})")


def _models() -> list[Fact]:
    folder = starter.folder()
    damaged = starter.verify(folder) if folder.is_dir() else []
    facts = [
        Fact("models", model.name, f"{model.size / 1e6:,.0f} MB, {model.architecture}, {model.path}"
             + (f", {model.missing} weight files missing" if model.missing else ""))
        for model in hub.local_models()
    ]  # fmt: skip
    if damaged:
        facts.append(
            Fact("models", "starter", f"damaged ({', '.join(damaged)}); it is made anew at the next use")
        )
    return facts or [Fact("models", "models", "none yet; `nanochat run` fetches the starter model (93 MB)")]


def _terminal() -> list[Fact]:
    term = os.environ.get("TERM", "")
    colours = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    depth = "16 million colours" if colours else "256 colours" if "256color" in term else "few colours"
    if os.environ.get("NO_COLOR"):
        depth = "no colours (NO_COLOR)"
    width, height = shutil.get_terminal_size()
    inside = [name for name, variable in (("tmux", "TMUX"), ("screen", "STY"), ("ssh", "SSH_CONNECTION"))
              if os.environ.get(variable)]  # fmt: skip
    kind = f"TERM={term or '(not set)'}" + (", dumb: use `nanochat run`" if term in ("", "dumb") else "")
    return [
        Fact("terminal", "kind", kind + "".join(f", inside {name}" for name in inside)),
        Fact("terminal", "is one", f"input {_yes(sys.stdin)}, output {_yes(sys.stdout)}"),
        Fact("terminal", "colour", depth),
        Fact("terminal", "encoding", str(getattr(sys.stdout, "encoding", None) or "unknown")),
        Fact("terminal", "size", f"{width} columns, {height} rows"),
    ]


def _yes(stream: Any) -> str:
    return "yes" if stream is not None and stream.isatty() else "no"

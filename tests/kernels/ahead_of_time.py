"""Compiles for a GPU that is not there every kernel that the engine would launch on it.

    python tests/kernels/ahead_of_time.py --capability 90 [--all [--model NAME ...] [--dtype NAME ...]]

The engine's own code runs on tensors without memory ("meta"), so that signatures and constants are those that a GPU
would see; each launch is compiled down to machine code by the compiler that Triton brings, and none is made. A kernel
that needs more shared memory than the chip has is reported too. Must not run where TRITON_INTERPRET is set.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from nanochat.benchmarks.known_shapes import SHAPES
from nanochat.engine import models
from nanochat.engine.fused_step import fused_decoder
from nanochat.engine.models import loading as models_loading
from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.decoder import Decoder
from nanochat.engine.models.drawn import DrawnWeights
from nanochat.kernels import tuning
from nanochat.kernels.bundle import AttentionSpec
from nanochat.kernels.cuda import CudaKernels
from nanochat.kernels.gemv_config import GemvConfig, GemvShape, candidate_configs, default_config
from nanochat.kernels.layout import AttentionLayout
from nanochat.kernels.triton_divided import choose_rows, offer_rows
from nanochat.kernels.triton_gemv import gemv
from nanochat.kernels.triton_one_shot import OneShot
from nanochat.kernels.triton_sampling import SamplingRows, sample_rows
from nanochat.kernels.triton_step import DecodeRows, Told, advance, embed
from nanochat.kernels.triton_wide_sum import ROWS, WideSum

META = torch.device("meta")
CHIPS = {  # multiprocessors, bytes of shared memory that a program may have
    80: (108, 166_912), 86: (84, 101_376), 89: (128, 101_376), 90: (132, 232_448), 100: (148, 232_448),
    120: (170, 101_376),
}  # fmt: skip
GEMMA = SHAPES["tiny"] | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 1152, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 6912,
    "vocab_size": 262144, "sliding_window": 512, "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768,
}  # fmt: skip
MODELS = {
    "qwen3-0.6b": SHAPES["qwen3-0.6b"], "qwen3-8b": SHAPES["qwen3-8b"], "llama-3.2-1b": SHAPES["llama-3.2-1b"],
    "llama-3.1-8b": SHAPES["llama-3.1-8b"], "gemma-3-1b": GEMMA, "starter": SHAPES["smollm2-135m"],
    "qwen3-30b-a3b": SHAPES["qwen3-30b-a3b"],
}  # fmt: skip
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class AbsentDriver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass
class Report:
    """What was compiled, and what was wrong with it."""

    kernels: dict[str, int] = field(default_factory=dict)  # variants of each
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    trying: bool = False  # candidates are compiled: tuning leaves out those that need more than the chip has

    def add(self, kernel: JITFunction, compiled: Any, shared_memory: int, seconds: float) -> None:
        self.kernels[kernel.__name__] = self.kernels.get(kernel.__name__, 0) + 1
        self.slowest = max(self.slowest, seconds)
        shared = compiled.metadata.shared
        if shared > shared_memory and not self.trying:
            self.failures.append(f"{kernel.__name__}: {shared} bytes of shared memory of {shared_memory}")


@contextmanager
def compiling(capability: int, report: Report) -> Iterator[None]:
    """Every launch is compiled instead."""
    shared_memory = CHIPS[capability][1]
    run, seen = JITFunction.run, set[int]()

    def compiled_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        began = time.perf_counter()
        try:
            compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        except Exception as error:
            report.failures.append(f"{self.__name__}: {type(error).__name__}: {str(error).strip()[:2000]}")
            return
        if id(compiled) not in seen:
            seen.add(id(compiled))
            report.add(self, compiled, shared_memory, time.perf_counter() - began)

    driver.set_active(AbsentDriver(capability))
    with mock.patch.object(JITFunction, "run", compiled_only):
        yield


class NoWeights(DrawnWeights):
    """Every tensor is there, and holds nothing."""

    def __init__(self, *_: object) -> None:
        self.entries, self.progress = {}, None

    def read(self, name: str, to: torch.Tensor, **_: object) -> None:  # type: ignore[override]
        """Leave it as it is."""


def make_kernels(capability: int, *, deterministic: bool = False) -> CudaKernels:
    multiprocessors, shared_memory = CHIPS[capability]
    properties = SimpleNamespace(
        name="absent", major=capability // 10, minor=capability % 10, multi_processor_count=multiprocessors,
        shared_memory_per_block_optin=shared_memory,
    )  # fmt: skip
    with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties):
        return CudaKernels(META, deterministic=deterministic)


def make_model(shape: dict[str, Any], kernels: CudaKernels, dtype: torch.dtype) -> Decoder:
    with tempfile.TemporaryDirectory() as folder:
        kinds = 6 if shape["model_type"] == "gemma3_text" else 1  # one layer of each kind
        (Path(folder) / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": kinds}))
        config = ModelConfig.from_folder(Path(folder))
        drawn = mock.patch.object(models_loading, "DrawnWeights", NoWeights)
        with drawn, mock.patch.object(models, "pick", return_value=kernels):
            model = models.load_model(Path(folder), config, dtype=dtype, device=META, drawn=True)
    assert isinstance(model, Decoder)
    return model


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def make_cache(config: ModelConfig, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    shape = (4096, 16, config.num_kv_heads, config.head_dim)
    return [(empty(*shape, dtype=dtype), empty(*shape, dtype=dtype)) for _ in range(config.num_layers)]


def layout(queries: list[int], contexts: list[int], *, captured: bool = False) -> AttentionLayout:
    tokens, seqs, blocks = sum(queries), len(queries), -(-max(contexts) // 16)
    return AttentionLayout(
        slots=empty(tokens, dtype=torch.int64), block_tables=empty(seqs, blocks, dtype=torch.int32),
        query_start=empty(seqs + 1, dtype=torch.int32), context_lens=empty(seqs, dtype=torch.int32),
        query_lens=[] if captured else queries, contexts=[] if captured else contexts, tables=[],
        max_context=max(contexts),
    )  # fmt: skip


STEPS: dict[str, tuple[list[int], list[int], bool]] = {  # query lengths, contexts, captured
    "a graph of 16": ([1] * 16, [4096] * 16, True),
    "a graph of 256": ([1] * 256, [4096] * 256, True),
    "a first prompt": ([512], [512], False),
    "a prefill graph": ([64], [40960], False),
    "a long chunk": ([1024], [32000], False),
    "decodes beside a chunk": ([1] * 3 + [1000], [700, 64, 900, 4000], False),
    "eager decodes": ([1, 1], [40, 4000], False),
}


def forward(model: Decoder, step: tuple[list[int], list[int], bool], dtype: torch.dtype) -> None:
    queries, contexts, captured = step
    ids = empty(sum(queries), dtype=torch.int64)
    at = layout(queries, contexts, captured=captured)
    model.logits(model.forward(ids, ids, at, make_cache(model.config, dtype))[: len(queries)])


def decode_rows(rows: int) -> DecodeRows:
    def whole(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return empty(*shape, dtype=dtype)

    return DecodeRows(
        whole(rows), whole(rows), whole(rows, dtype=torch.int32), whole(rows),
        whole(rows, 2560, dtype=torch.int32), whole(rows), whole(rows, 8, dtype=torch.int32),
    )  # fmt: skip


Choice = Callable[[GemvShape], list[GemvConfig]]


def only_default(shape: GemvShape) -> list[GemvConfig]:
    return [default_config(shape)]


def only_matrix_units(shape: GemvShape) -> list[GemvConfig]:
    return [config for config in candidate_configs(shape) if config.dot][:1] or only_default(shape)


def fused(model: Decoder, rows: int, dtype: torch.dtype, choose: Choice, report: Report) -> None:
    """A fused step, once in each configuration of its products."""
    step = fused_decoder(model)
    if step is None:
        return
    query_start, cache = empty(rows + 1, dtype=torch.int32), make_cache(model.config, dtype)
    shapes = step._decoder.shapes(rows)
    choices = {shape: choose(shape) for shape in shapes}
    for turn in range(max(map(len, choices.values()))):
        report.trying = turn > 0 or choose is only_matrix_units
        for shape in shapes:
            step._kernels.tuning.put(shape, choices[shape][turn % len(choices[shape])])
        step.logits(decode_rows(rows), query_start, cache)
    report.trying = False


def sampling(rows: int, vocab: int, pdl: bool) -> None:
    state = decode_rows(rows)
    draw = SamplingRows(
        *(
            empty(rows, dtype=d)
            for d in (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64)
        ),
        state.counter,
    )
    logits = empty(rows, vocab, dtype=torch.float32)
    told = Told(empty(64, 1 + rows, dtype=torch.int64), empty(1, dtype=torch.int64))
    ids, finite = sample_rows(logits, draw, pdl=pdl)
    advance(state, ids, finite, told, pdl=pdl)
    choose_rows(torch.stack([offer_rows(logits[:, : vocab // 2], draw, 0, pdl=pdl)] * 2), pdl=pdl)


def exchanges(width: int, dtype: torch.dtype, pdl: bool) -> None:
    """Sums in one shot and wide ones over two and over eight ranks, and the rows of an embedding that are on one of them."""
    ids = empty(4, dtype=torch.int64)
    embed(ids, ids, empty(64, width, dtype=dtype), empty(1, 32, dtype=torch.float32), first=64, pdl=pdl)
    for ranks in (2, 8):
        end = OneShot([0] * ranks, 1, 128, width, META)
        delta = empty(4, width, dtype=dtype)
        end.sum(delta)
        end.gather(empty(4, 3, dtype=torch.int32))
        end.add_norm(delta, delta, delta[0], 1e-6)
        end.add(delta, delta, pdl=pdl)
        end.collect(delta[:1], pdl=pdl)
        with end.clock.timed():
            end.sum(delta)
        weight, outlet = empty(width, 512, dtype=dtype), end.outlet(delta[:1])
        config = GemvConfig(4, 256, prefetch=12)
        gemv(empty(1, 512, dtype=dtype), weight, config=config, pdl=pdl, late=True, to=outlet)
        wide = WideSum([0] * ranks, ROWS, width * dtype.itemsize, end)
        for wide.two_shots, wide.flagless in ((0, 0), (1, 0), (0, 8)):
            wide.sum(delta)
            wide.add_norm(delta, delta, delta[0], 1e-6)


def attention_kinds(kernels: CudaKernels) -> None:
    """What only models through Transformers ask for: soft caps, odd head sizes."""
    for heads, kv_heads, size, window, cap in (
        (8, 4, 256, 4096, 50.0),
        (32, 32, 96, 0, 0.0),
        (32, 8, 80, 2047, 0.0),
    ):
        spec = AttentionSpec(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=size, scale=1.0, window=window, soft_cap=cap
        )
        cache = tuple(empty(64, 16, kv_heads, size, dtype=torch.bfloat16) for _ in range(2))
        for queries, contexts in (([1, 1], [40, 4000]), ([700], [4000])):
            at = layout(queries, contexts)
            q = empty(sum(queries), heads, size, dtype=torch.bfloat16)
            kernels.write_kv(q[:, :kv_heads], q[:, :kv_heads], cache, kernels.plan(at))
            kernels.attend(q, spec, cache, kernels.plan(at))


def candidates(capability: int) -> dict[str, Any]:
    """Candidates compiled beside each other as tuning does it, and what its measurements would then still compile."""
    pdl, anew = capability >= 90, list[str]()
    shapes = [GemvShape(1, 512, 1024, False, True), GemvShape(1, 256, 512, True, False)]
    driver.set_active(AbsentDriver(capability))
    with mock.patch.object(tuning, "_COMPILERS", 2):
        late = tuning.compile_candidates(shapes[:1], dtype=torch.float16, pdl=pdl, seconds=0.0)
        there = tuning.compile_candidates(shapes, dtype=torch.bfloat16, pdl=pdl, seconds=60.0)
        again = tuning.compile_candidates(shapes, dtype=torch.bfloat16, pdl=pdl, seconds=0.0)
    compiled, run = JITFunction._do_compile, JITFunction.run

    def noted(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
        anew.append(self.__name__)
        return compiled(self, *args, **kwargs)

    def unlaunched(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    def time_of_launches(launches: list[Callable[[], object]]) -> float:
        return float(launches[0]() is None)

    cache = tuning.TuningCache(None, "absent", torch.bfloat16)
    with (
        mock.patch.object(JITFunction, "_do_compile", noted),
        mock.patch.object(JITFunction, "run", unlaunched),
        mock.patch.object(tuning, "time_of_launches", time_of_launches),
    ):
        measured = [
            tuning.tune_gemv(
                shape, cache, dtype=torch.bfloat16, device=META, pdl=pdl, candidates=there[shape],
                weights=[empty(shape.n * (2 if shape.gated else 1), shape.k, dtype=torch.bfloat16)] * 1024,
            )
            for shape in shapes
        ]  # fmt: skip
    return {
        "wanted": [len(candidate_configs(shape)) for shape in shapes], "there": [len(there[shape]) for shape in shapes],
        "again": [len(again[shape]) for shape in shapes], "measured": [len(times) for times in measured],
        "late": len(late[shapes[0]]), "compiled anew": len(anew),
    }  # fmt: skip


def compile_selection(capability: int, report: Report) -> None:
    """Each kernel at least once, in the forms that a chat with the first model uses."""
    kernels = make_kernels(capability)
    model = make_model(MODELS["qwen3-0.6b"], kernels, torch.bfloat16)
    fused(model, 1, torch.bfloat16, only_default, report)
    fused(model, 4, torch.bfloat16, only_matrix_units, report)
    sampling(1, model.config.vocab_size, kernels.pdl)
    for dtype in DTYPES.values():
        exchanges(model.config.hidden_size, dtype, kernels.pdl)
    for name in ("a graph of 16", "a prefill graph"):
        forward(model, STEPS[name], torch.bfloat16)
    at = layout([1], [40])
    k = empty(1, model.config.num_kv_heads, model.config.head_dim, dtype=torch.bfloat16)
    kernels.write_kv(k, k, make_cache(model.config, torch.bfloat16)[0], kernels.plan(at))
    invariant = make_model(MODELS["qwen3-0.6b"], make_kernels(capability, deterministic=True), torch.bfloat16)
    forward(invariant, STEPS["decodes beside a chunk"], torch.bfloat16)
    for deterministic in (False, True):  # tensors without memory also refuse whoever asks for their numbers
        kernels = make_kernels(capability, deterministic=deterministic)
        mixture = make_model(MODELS["qwen3-30b-a3b"], kernels, torch.float16)
        for name in ("a graph of 16", "eager decodes"):
            forward(mixture, STEPS[name], torch.float16)


def compile_all(capability: int, names: list[str], dtypes: list[torch.dtype], report: Report) -> None:
    """Every model, dtype, step and candidate configuration."""
    for dtype in dtypes:
        kernels, invariant = make_kernels(capability), make_kernels(capability, deterministic=True)
        for name in names:
            model = make_model(MODELS[name], kernels, dtype)
            for rows in (1, 2, 4, 8):
                fused(model, rows, dtype, candidate_configs, report)
                sampling(rows, model.config.vocab_size, kernels.pdl)
            exact = make_model(MODELS[name], invariant, dtype)
            exchanges(model.config.hidden_size, dtype, kernels.pdl)
            for step in STEPS.values():
                forward(model, step, dtype)
                forward(exact, step, dtype)
    attention_kinds(make_kernels(capability))
    attention_kinds(make_kernels(capability, deterministic=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, choices=sorted(CHIPS), default=90)
    parser.add_argument(
        "--all", action="store_true", help="every model, dtype, step and configuration (minutes)"
    )
    parser.add_argument("--candidates", action="store_true", help="as tuning compiles them, and nothing else")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="with --all: only these")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="with --all: only these")
    options = parser.parse_args()
    if options.candidates:
        print(json.dumps(candidates(options.capability)))
        return 0
    report, began = Report(), time.perf_counter()
    with compiling(options.capability, report), torch.inference_mode():
        if options.all:
            dtypes = [DTYPES[name] for name in options.dtype or DTYPES]
            compile_all(options.capability, options.model or list(MODELS), dtypes, report)
        else:
            compile_selection(options.capability, report)
    print(
        json.dumps(
            {
                "capability": options.capability,
                "triton": triton.__version__,
                "seconds": round(time.perf_counter() - began, 1),
                "slowest": round(report.slowest, 1),
                "kernels": report.kernels,
                "failures": report.failures,
            }
        )
    )
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

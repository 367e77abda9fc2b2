"""All layers in one call of machine code: the bits of layer by layer, whatever the layers and the sequences are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as tf
from grids import on_grid
from paged import Paged, lay_out
from safetensors.torch import load_file, save_file
from tiny_models import COMMON, GQA, llama, qwen3, save_tiny

from nanochat.engine.models import ModelConfig, load_model
from nanochat.engine.models.decoder import Decoder
from nanochat.kernels import cpu, native

if not native.available():
    pytest.skip("no machine code on this machine", allow_module_level=True)

CPU = torch.device("cpu")
FAMILIES = {
    "llama": lambda: llama(head_dim=32, attention_bias=True, mlp_bias=True),
    "qwen3": lambda: qwen3(num_key_value_heads=1, head_dim=64),
    "mistral": lambda: tf.MistralConfig(**COMMON, **GQA, head_dim=32, sliding_window=11),
    "smollm3": lambda: tf.SmolLM3Config(
        **COMMON, **GQA, head_dim=32, no_rope_layers=[1, 0, 1], pad_token_id=0
    ),
}
TABLES = [[9, 2, 17, 5, 11], [1], [12, 3, 7], [20, 21, 22, 23]]


def loaded(folder, dtype=torch.bfloat16):
    return load_model(folder, ModelConfig.from_folder(folder), dtype=dtype, device=CPU)


@pytest.fixture(params=sorted(FAMILIES))
def folder(request, tmp_path):
    path = tmp_path / request.param
    save_tiny(FAMILIES[request.param], path)
    return path


def with_two_ropes(model):
    """Layers take turns with another one, as in Gemma, whose norms machine code does not know."""
    weights = model.weights
    ropes = [weights.ropes[0], replace(weights.ropes[0], theta=50.0)]
    layers = [replace(layer, rope=number % 2) for number, layer in enumerate(weights.layers)]
    turned = replace(weights, layers=layers, ropes=ropes)
    return Decoder(model.config, turned, model.kernels, torch.bfloat16, CPU, None)


def quantized(folder):
    """The matrices lie on grids of 4 and 8 bits, which machine code reads as such."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            tensors[name] = on_grid(tensor, 4 if "mlp" in name else 8).to(tensor.dtype)
    save_file(tensors, file, metadata={"format": "pt"})


def steps(vocab):
    """Prompts of one, three and nine rows, then replies of all of them, then of some; (tokens, start, table) each."""
    draw = torch.Generator().manual_seed(5)

    def tokens(count):
        return torch.randint(0, vocab, (count,), generator=draw).tolist()

    ends = [0, 0, 0, 0]

    def chunk(number, count):
        ends[number] += count
        return tokens(count), ends[number] - count, TABLES[number]

    yield [chunk(0, 1)]
    yield [chunk(0, 3), chunk(1, 9), chunk(2, 4)]
    for _ in range(3):
        yield [chunk(0, 16)]
    yield [chunk(3, 11)]
    for _ in range(3):
        yield [chunk(number, 1) for number in (3, 0, 1, 2)]
        yield [chunk(2, 2), chunk(0, 1)]
    yield [chunk(0, 1)]


@pytest.mark.parametrize(
    "change", [None, with_two_ropes, quantized], ids=["as it is", "two ropes", "quantized"]
)
def test_the_bits_are_those_of_layer_by_layer(folder, change, monkeypatch):
    monkeypatch.setattr(cpu, "_PART", 16)  # contexts are cut
    if change is quantized:
        quantized(folder)
    model = with_two_ropes(loaded(folder)) if change is with_two_ropes else loaded(folder)
    assert model._stack is not None
    planes = {matrix.planes for layer in model.weights.layers for matrix in (layer.qkv, layer.mlp.down)}
    assert planes == ({1, 2} if change is quantized else {0})
    at_once, other_cache, one_by_one = (Paged(model, dtype=torch.bfloat16) for _ in range(3))
    for parts in steps(model.config.vocab_size):
        found = at_once.batch(parts)
        again = other_cache.batch(parts)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, again, strict=True))
        with monkeypatch.context() as without:
            without.setattr(model, "_stack", None)
            expected = one_by_one.batch(parts)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
        assert all(torch.isfinite(part).all() for part in found)
    for paged in (at_once, other_cache):
        for ours, theirs in zip(paged.cache, one_by_one.cache, strict=True):
            for mine, other in zip(ours, theirs, strict=True):
                assert torch.equal(mine.view(torch.int16), other.view(torch.int16))


def test_what_a_step_found_stays_when_another_one_follows(folder):
    model, paged = loaded(folder), Paged(loaded(folder), dtype=torch.bfloat16)

    def forward(token, start):
        layout, positions = lay_out([(start, 1)], [TABLES[1]])
        return model.forward(torch.tensor([token]), positions, layout, paged.cache)

    first = forward(5, 0)
    before = first.clone()
    assert not torch.equal(forward(9, 1), before)
    assert torch.equal(first, before)


def test_a_call_returns_to_python_once(folder, monkeypatch):
    model, calls = loaded(folder), []
    for name in ("multiply", "attend", "normalize", "perform"):
        work = getattr(model.kernels._code, name)
        monkeypatch.setattr(
            model.kernels._code, name, lambda *args, name=name, work=work: (calls.append(name), work(*args))
        )
    Paged(model, dtype=torch.bfloat16).step([5], 0, TABLES[1])
    assert calls in (["perform"], ["perform", "multiply"])  # logits, where the vocabulary is a multiple of 16


def test_what_it_does_not_know_goes_layer_by_layer(tmp_path):
    for name, make in {
        "capped": lambda: tf.Gemma3TextConfig(
            **COMMON, **GQA, head_dim=32, pad_token_id=0
        ),  # norms after each half
        "narrow": lambda: llama(),  # heads of 16
        "experts": lambda: tf.Qwen3MoeConfig(
            **COMMON, **GQA, head_dim=32, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2
        ),
    }.items():
        save_tiny(make, tmp_path / name)
        model = loaded(tmp_path / name)
        assert model._stack is None
        assert torch.isfinite(Paged(model, dtype=torch.bfloat16).step([5, 6], 0, TABLES[1])).all()
    save_tiny(lambda: llama(head_dim=32), tmp_path / "wide")
    assert loaded(tmp_path / "wide", torch.float32)._stack is None
    model = loaded(tmp_path / "wide")
    assert torch.isfinite(
        Paged(model, dtype=torch.bfloat16).step([*range(17)], 0, TABLES[0])
    ).all()  # 17 rows

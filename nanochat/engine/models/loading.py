"""From a folder of safetensors to a native decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.engine.models.config import ModelConfig
from nanochat.engine.models.decoder import Decoder, DecoderWeights
from nanochat.engine.models.drawn import DrawnWeights
from nanochat.engine.models.embedding import Embedding, EmbeddingShare, RowsOnDisk
from nanochat.engine.models.layers import LayerReader, Piece
from nanochat.engine.parallel.shares import refuse_unsplittable, vocabulary_share
from nanochat.engine.tensor_files import TORCH_DTYPES
from nanochat.engine.weights import Checkpoint
from nanochat.errors import InvalidModel
from nanochat.kernels.bundle import Gather, Kernels, Reduce
from nanochat.kernels.packed import PackedLinear

_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_HARMLESS = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")  # buffers that old checkpoints carry
_COMPARED = 8 * 2**20  # bytes at a time
_OTHER_PARTS = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


def load_decoder(
    folder: Path,
    config: ModelConfig,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    rank: int,
    ranks: int,
    progress: Callable[[int, int], None] | None,
    reduce: Reduce | None,
    gather: Gather | None,
    drawn: bool = False,
) -> Decoder:
    """See `load_model`."""
    assert ranks == 1 or (reduce is not None and gather is not None)
    refuse_unsplittable(config, ranks)
    with DrawnWeights(folder, config, device, dtype) if drawn else Checkpoint(folder) as checkpoint:
        if progress is not None:  # a rank reads its share: to whoever waits for it, that is all
            checkpoint.progress = lambda done, total: progress(min(done * ranks, total), total)
        reader = LayerReader(checkpoint, config, kernels, dtype, device, rank, ranks)
        embed, head = _embedding_and_head(checkpoint, config, reader, kernels, reduce)
        layers = [reader.layer(index) for index in range(config.num_layers)]
        final_norm = reader.norm(f"{reader.prefix}norm.weight")
        _account_for_all(checkpoint, reader)
    weights = DecoderWeights(embed, layers, final_norm, head, reader.ropes)
    decoder = Decoder(config, weights, kernels, dtype, device, reduce, gather)
    decoder.num_bytes, decoder.bytes_read = reader.num_bytes, checkpoint.bytes_read
    return decoder


def _embedding_and_head(
    checkpoint: Checkpoint,
    config: ModelConfig,
    reader: LayerReader,
    kernels: Kernels,
    reduce: Reduce | None,
) -> tuple[Callable[[Tensor], Tensor], Any]:
    """They come first: while the largest matrix is packed it is in memory twice, and then little else is."""
    name, shape = f"{reader.prefix}embed_tokens.weight", (config.vocab_size, config.hidden_size)
    rows = vocabulary_share(config.vocab_size, reader.rank, reader.ranks)
    table = reader.stacked([Piece(name, shape, rows)])
    embed = Embedding(table) if reduce is None else EmbeddingShare(table, rows.start, reduce)
    drawn = isinstance(checkpoint, DrawnWeights)
    stored = next((head for head in _HEADS if head in checkpoint), None)
    if not config.tied_embeddings:
        return embed, kernels.pack(reader.stacked([Piece(stored or _HEADS[0], shape, rows)]))
    if drawn or stored is None or _is_same(checkpoint, reader, stored, shape, rows, table):
        head = kernels.pack(table, kept=True)
    else:
        head = kernels.pack(reader.stacked([Piece(stored, shape, rows)]))
    # Rows of a stored head may differ on one rank and not on another. Where the embedding lies must not depend on that:
    # a table in memory is summed over the ranks, and all have to take part.
    if not isinstance(head, PackedLinear) or drawn:
        return embed, head
    entry = checkpoint.entry(name, shape)
    return RowsOnDisk(
        entry.path, entry.offset, config.hidden_size, TORCH_DTYPES[entry.dtype], table.dtype
    ), head


def _is_same(
    checkpoint: Checkpoint,
    reader: LayerReader,
    head: str,
    shape: tuple[int, int],
    rows: slice,
    table: Tensor,
) -> bool:
    """Whether a head that is stored although it is tied is the embedding; if not, it counts, as it does for Transformers.

    Read a few rows at a time, up to the first difference.
    """
    at_once = max(_COMPARED // (shape[1] * table.itemsize), 1)
    for ours in table.split(at_once):
        theirs = torch.empty_like(ours)
        checkpoint.read(head, theirs, shape=shape, rows=slice(rows.start, rows.start + len(ours)))
        if not torch.equal(ours, theirs):
            return False
        rows = slice(rows.start + len(ours), rows.stop)
    reader.used.add(head)
    return True


def _account_for_all(checkpoint: Checkpoint, reader: LayerReader) -> None:
    """Every tensor was read, or is known not to matter."""
    unknown: list[str] = []
    for name in checkpoint.entries:
        if name in reader.used:
            continue
        if name in _HEADS or name.endswith(_HARMLESS) or name.startswith(_OTHER_PARTS):
            checkpoint.skip(name)
        else:
            unknown.append(name)
    if unknown:
        raise InvalidModel(
            f"{checkpoint.folder.name} has {len(unknown)} tensors that this {reader.config.architecture} does "
            f"not have, the first is {sorted(unknown)[0][:100]}: config and weights disagree; fetch the model again"
        )

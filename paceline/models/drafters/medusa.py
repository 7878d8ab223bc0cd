"""Knows how Medusa heads are stored: by their authors, merged with the target, and by vLLM. The tensors count."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from paceline.layers.linear import Linear
from paceline.layers.placement import Placement
from paceline.models.base import CausalLM
from paceline.models.checkpoint import weights_are_there
from paceline.models.config import ModelConfig
from paceline.models.drafters.medusa_heads import MedusaHead, MedusaHeads, ResidualBlock
from paceline.models.drafters.source import MEDUSA_FILE, DraftSource, Tensors
from paceline.models.drafters.vocabulary import OTHER, checked_tokens
from paceline.models.family import Part, TensorNames
from paceline.models.filling import outline_of, read_weights
from paceline.models.hub import configs_of, resolve_model
from paceline.models.quantization import Quantization, linears, outline_matrices
from paceline.models.quantization_config import read_quantization

PREFIX = r"(?P<prefix>medusa_heads?\.)?"
BLOCKS = (r"(?P<head>\d+)\.(?P<block>\d+)\.linear", r"blocks\.(?P<head>\d+)\.layers\.(?P<block>\d+)")
"""What residual blocks are called: by the authors, by vLLM."""
MATRICES = (r"(?P<head>\d+)\.\d+", r"lm_heads\.(?P<head>\d+)")
"""What output matrices are called."""
SHARED = (r"lm_heads\.(?P<head>0)", r"lm_head")
"""What the only one is called where vLLM's ``original_lm_head`` says that all heads have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaConfig(ModelConfig):
    """Medusa heads."""

    blocks: tuple[tuple[bool, ...], ...]
    """Of each head, whether each of its blocks has a bias."""
    head_rows: int
    shares_matrix: bool
    """All heads have one output matrix."""


def _found(source: DraftSource, patterns: tuple[str, ...]) -> Iterator[re.Match[str]]:
    names = {entry.name.rpartition(".weight")[0] for entry in source.entries if entry.name.endswith(".weight")}
    for name in sorted(names):
        matches = (re.fullmatch(PREFIX + pattern, name) for pattern in patterns)
        yield from (match for match in matches if match is not None)


def load_medusa_heads(path: str | Path, target: CausalLM, *, quantization: Quantization | None = None) -> MedusaHeads:
    """Loads the Medusa heads that were trained for ``target``, in the target's dtype and on its device.

    Args:
        path: a directory with config.json and safetensors, or a Hub id.
        target: the model whose hidden rows they read.
        quantization: how their linears are quantised while they are read.

    Raises:
        CheckpointError: the directory is incomplete, corrupt or unsupported, or the heads do not fit the target.
        ConfigError: they cannot be quantised so.
    """
    directory = resolve_model(path)
    source = DraftSource.read(directory, target, weights=True)
    if not any(True for _ in _found(source, BLOCKS)):
        raise source.misfit(f"holds no Medusa heads, {_said(source)}", "Give the directory of Medusa heads.")
    names, config = _from_tensors(source)
    heads = read_weights(
        directory,
        partial(build, config),
        names,
        source.entries,
        Placement(target.dtype, target.device),
        as_stored=read_quantization(source.fields),
        wanted=quantization,
    )
    tokens = source.under(names).load("token_map")
    if tokens is not None and config.head_rows != config.vocab_size:  # else it only picks among all tokens
        tokens = checked_tokens(source, tokens.long(), "token_map")
        heads.token_map = None if tokens is None else tokens.to(target.device)
    return heads


def outline_medusa_heads(
    path: str | Path, target: CausalLM, *, quantization: Quantization | None = None
) -> MedusaHeads:
    """The heads as ``load_medusa_heads`` would make them: parameters have sizes and no memory; raises as it does."""
    directory = configs_of(path)
    there = weights_are_there(directory) or (directory / MEDUSA_FILE).is_file()
    source = DraftSource.read(directory, target, weights=there)
    config = _from_tensors(source)[1] if there else _from_config(source)
    heads = outline_of(partial(build, config), directory, target.dtype)
    if quantization is not None:
        outline_matrices(heads, {name: quantization.layout(name, one) for name, one in linears(heads).items()})
    return heads


def _said(source: DraftSource) -> str:
    return f"its tensors begin with {', '.join(entry.name for entry in source.entries[:3])}"


def _from_tensors(source: DraftSource) -> tuple[TensorNames, MedusaConfig]:
    names: dict[str, Part] = {}
    tensors = source.under(TensorNames(names={}))
    heads = {int(match["head"]) for match in _found(source, BLOCKS)}
    blocks: dict[int, list[bool]] = {head: [] for head in sorted(heads)}
    for match in sorted(_found(source, BLOCKS), key=lambda match: (int(match["head"]), int(match["block"]))):
        head, place = int(match["head"]), int(match["block"])
        blocks[head].append(tensors.has(f"{match[0]}.bias", unknown=False))
        names[match[0]] = Part(f"heads.{head}.blocks.{place}.linear")
    if list(blocks) != list(range(len(blocks))):
        raise source.misfit(f"has blocks of heads {list(blocks)}, and none between", "Download the heads again.")
    shared = source.fields.flag("original_lm_head", False)
    found = list(_found(source, SHARED if shared else MATRICES))
    matrices = {0 if shared else int(match["head"]): match[0] for match in found}
    without = [head for head in ([0] if shared else blocks) if head not in matrices]
    if without:
        raise source.misfit(f"head {without[0]} has no output matrix", "Download the heads again.")
    names |= {name: Part(f"heads.{head}.head") for head, name in matrices.items()}
    rows = tensors.rows(matrices[0]) or 0
    _check(source, tensors, names, rows)
    merged = any(match["prefix"] for match in _found(source, BLOCKS))
    # Beside merged heads lie the tensors of their target.
    skipped = (r".*token_map", *((r"(?!medusa_heads?\.).*",) if merged else ()))
    prefixes = (("medusa_heads.", ""), ("medusa_head.", ""))
    config = _config(source, tuple(tuple(some) for some in blocks.values()), rows, shared=shared)
    return TensorNames(names=names, skipped=skipped, prefixes=prefixes), config


def _check(source: DraftSource, tensors: Tensors, names: dict[str, Part], rows: int) -> None:
    """
    Raises:
        CheckpointError: heads for rows of another width, or for another vocabulary.
    """
    target, block = source.target.config, next(iter(names))
    width = tensors.rows(block)
    if width != target.hidden_size:
        raise source.misfit(f"made for a target of hidden_size {width}, and the target has {target.hidden_size}", OTHER)
    named = [entry for entry in source.entries if entry.name.endswith("token_map")]
    if rows not in (target.vocab_size, named[0].shape[0] if named and named[0].shape else None):
        more = f"token_map {list(named[0].shape)}" if named else "there is no token_map"
        raise source.misfit(f"heads have {rows} rows, the target {target.vocab_size} tokens, and {more}", OTHER)


def _from_config(source: DraftSource) -> MedusaConfig:
    fields, vocab_size = source.fields, source.target.config.vocab_size
    heads = fields.integer("medusa_num_heads", fields.integer("num_heads", 5))
    layers = fields.integer("medusa_num_layers", fields.integer("num_hidden_layers", 1))
    blocks = ((fields.flag("medusa_fc_bias", "medusa_num_heads" in fields.values),) * layers,) * heads
    shared = fields.flag("original_lm_head", False)
    return _config(source, blocks, fields.integer("truncated_vocab_size", vocab_size), shared=shared)


def _config(source: DraftSource, blocks: tuple[tuple[bool, ...], ...], rows: int, *, shared: bool) -> MedusaConfig:
    target = source.target.config
    return MedusaConfig(
        family="medusa",
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        num_layers=0,
        max_position_embeddings=target.max_position_embeddings,
        eos_token_ids=target.eos_token_ids,
        bos_token_id=target.bos_token_id,
        tied=False,
        dtype=target.dtype,
        blocks=blocks,
        head_rows=rows,
        shares_matrix=shared,
    )


def build(config: MedusaConfig, on: Placement) -> MedusaHeads:
    size = config.hidden_size

    def block(biased: bool) -> ResidualBlock:
        return ResidualBlock(Linear.empty(size, (size,), bias=biased, on=on))

    def matrix() -> Linear:
        return Linear.empty(size, (config.head_rows,), bias=False, on=on)

    only = matrix() if config.shares_matrix else None
    heads = [MedusaHead([block(biased) for biased in head], only or matrix()) for head in config.blocks]
    return MedusaHeads(config, heads)

"""MTP modules of every layout compute what their makers describe, and those that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.core.errors import CheckpointError
from paceline.core.layer import PassContext
from paceline.models import load_model
from paceline.models.drafters import load_draft_module, outline_draft_module
from tests.draft_checkpoints_mtp import deepseek_mtp
from tests.models.drafters.mtp_layouts import LAYOUTS, StraightModule
from tests.models.drafters.straight import rms_norm
from tests.support.checkpoints import dense_attend, edit_json
from tests.support.zoo import VOCAB_SIZE, random_tokens, tiny


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    return LAYOUTS[request.param](tmp_path)


def our_pass(module, tokens, inputs):
    """The same of our module."""
    taps = () if module.norm_output else (1,)
    context = PassContext(attend=dense_attend(module), taps=taps, inputs=inputs)
    with torch.inference_mode():
        hidden, features = module(tokens, 1 + torch.arange(len(tokens)), context)
        return module.logits(hidden), hidden if module.norm_output else features


def test_a_draft_is_what_the_maker_describes(layout):
    target = load_model(layout.target, dtype="float64")
    module = load_draft_module(layout.directory, target)
    straight = StraightModule(layout, target)
    final = target.norm.weight.double()
    count, depth = 9, 3
    features = torch.randn(count, target.config.hidden_size, generator=torch.Generator().manual_seed(4)).double()
    kept = module.fuse(features)
    theirs = rms_norm(features, final, straight.config["rms_norm_eps"])
    torch.testing.assert_close(kept, theirs)
    assert module.taps == (target.config.num_layers,)
    tokens = torch.tensor(random_tokens(count))
    for _ in range(depth):  # each drafted token reads what came of the row before
        found, ours_next = our_pass(module, tokens, kept)
        expected, theirs_next = straight.forward(tokens, theirs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours_next, theirs_next, rtol=1e-9, atol=1e-9)
        tokens = torch.cat((tokens, expected[-1:].argmax(-1)))
        kept, theirs = torch.cat((kept, ours_next[-1:])), torch.cat((theirs, theirs_next[-1:]))
    assert len(set(tokens.tolist())) > 4


def test_table_and_output_matrix_are_the_targets(layout):
    target = load_model(layout.target)
    module = load_draft_module(layout.directory, target)
    assert module.embedding.tokens is target.embedding.tokens
    assert module.head is target.head
    own = {id(parameter) for parameter in module.parameters()} - {id(parameter) for parameter in target.parameters()}
    assert all(parameter.shape != target.head.weight.shape for parameter in module.parameters() if id(parameter) in own)
    outline = outline_draft_module(layout.directory, target)
    assert [part.shape for part in outline.parameters()] == [part.shape for part in module.parameters()]


def refused(directory: Path, target: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_draft_module(directory, load_model(target))
    lines = str(caught.value).split("\n")
    assert len(lines) == 2
    assert all(lines)


def edit(directory: Path, rename=lambda name: name, **more: torch.Tensor) -> None:
    tensors = {rename(name): tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name} | more
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("lost", ["token", "hidden", "norm", "layer"])
def test_a_missing_tensor_is_named(layout, lost):
    part = f"{layout.layer}mlp.up_proj" if lost == "layer" else getattr(layout, lost)
    name = f"{layout.prefix}{part}.weight"
    edit(layout.directory, lambda other: "" if other == name else other)
    refused(layout.directory, layout.target, f"tensor '{name}' is missing")


def test_a_matrix_of_another_shape_is_refused(layout):
    name = f"{layout.prefix}{layout.project}.weight"
    edit(layout.directory, **{name: torch.zeros(32, 32)})
    refused(layout.directory, layout.target, r"has shape \[32, 32\], config.json implies \[32, 64\]")


@pytest.mark.parametrize(("key", "value"), [("hidden_size", 64), ("vocab_size", VOCAB_SIZE + 1)])
def test_a_module_for_another_target_is_refused(tmp_path, key, value):
    tiny(tmp_path, "llama")
    deepseek_mtp(tmp_path / "mtp", tmp_path)
    edit_json(tmp_path / "mtp" / "config.json", **{key: value})
    refused(tmp_path / "mtp", tmp_path, f"{key} is {value}, and the target has")
    tiny(tmp_path / "other", "gpt_neox")
    refused(tmp_path / "mtp", tmp_path / "other", "an MTP module for a target of family 'gpt_neox'")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("mlp.experts.3.gate_proj", "is a mixture of experts"),
        ("mlp.gate", "is a mixture of experts"),
        ("self_attn.kv_a_proj_with_mqa", "has multi-head latent attention"),
    ],
)
def test_layers_of_other_kinds_are_refused(tmp_path, tensor, kind):
    tiny(tmp_path, "llama")
    deepseek_mtp(tmp_path / "mtp", tmp_path)
    edit(tmp_path / "mtp", **{f"model.layers.0.{tensor}.weight": torch.zeros(2, 2)})
    load_draft_module(tmp_path / "mtp", load_model(tmp_path))  # of the trunk it is nobody's matter
    edit(tmp_path / "mtp", **{f"model.layers.2.{tensor}.weight": torch.zeros(2, 2)})
    refused(tmp_path / "mtp", tmp_path, f"the layer of the MTP module {kind}")


def test_a_target_without_a_module_is_told_from_one_with(tmp_path):
    tiny(tmp_path, "qwen3")
    refused(tmp_path, tmp_path, "is no draft module that is known")


@pytest.mark.parametrize("name", ["mimo", "speculators"])
def test_config_alone_tells_of_a_module(tmp_path, name):
    """As much memory as its weights will take, before they are there."""
    layout = LAYOUTS[name](tmp_path)
    target = load_model(layout.target)
    module = load_draft_module(layout.directory, target)
    (layout.directory / "model.safetensors").unlink()
    outline = outline_draft_module(layout.directory, target)
    assert [part.shape for part in outline.parameters()] == [part.shape for part in module.parameters()]

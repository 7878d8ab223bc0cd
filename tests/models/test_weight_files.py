"""Which files a checkpoint's tensors are read from, where more than one might be meant."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.core.errors import CheckpointError
from paceline.models import load_model
from tests.support.checkpoints import full_logits, tiny_llama

PROMPT = [0, 17, 250, 3, 99, 99, 4, 201, 64, 5]
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture
def sharded(tmp_path):
    tiny_llama(tmp_path, max_shard_size="40KB")
    return tmp_path


@pytest.fixture
def expected(sharded):
    return full_logits(load_model(sharded), PROMPT)


def shards(path):
    return sorted(path.glob("model-*.safetensors"))


def tensors_of(path):
    return {name: tensor for file in shards(path) for name, tensor in load_file(file).items()}


def first_shard_alone(path):
    save_file(load_file(shards(path)[0]), path / SINGLE)


def half_of_them(path):
    tensors = tensors_of(path)
    save_file({name: tensors[name] for name in sorted(tensors)[::2]}, path / SINGLE)


def none_of_them(path):
    save_file({}, path / SINGLE)


def cut_off(path):
    save_file(tensors_of(path), path / SINGLE)
    (path / SINGLE).write_bytes((path / SINGLE).read_bytes()[:-9])


def empty(path):
    (path / SINGLE).touch()


PARTIAL = [first_shard_alone, half_of_them, none_of_them, cut_off, empty]


@pytest.mark.parametrize("spoil", PARTIAL, ids=lambda spoil: spoil.__name__)
def test_a_whole_index_is_preferred_to_a_part(sharded, expected, spoil, caplog):
    spoil(sharded)
    assert torch.equal(full_logits(load_model(sharded), PROMPT), expected)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("paceline")]
    assert len(told) == 1
    assert SINGLE in told[0]
    assert INDEX in told[0]


def no_shard(path):
    for file in shards(path):
        file.unlink()


def one_shard_less(path):
    shards(path)[1].unlink()


def one_shard_cut_off(path):
    file = shards(path)[1]
    file.write_bytes(file.read_bytes()[:-9])


def index_of_nothing(path):
    (path / INDEX).write_text("{}")


def index_that_leaves_the_directory(path):
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map | {"model.norm.weight": "../x.safetensors"}}))


def index_that_knows_tensors_of_old(path):
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": shards(path)[0].name}
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map | more}))


BROKEN = [
    no_shard,
    one_shard_less,
    one_shard_cut_off,
    index_of_nothing,
    index_that_leaves_the_directory,
    index_that_knows_tensors_of_old,
]


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_whole_file_is_preferred_to_a_broken_index(sharded, expected, spoil, caplog):
    save_file(tensors_of(sharded), sharded / SINGLE)
    spoil(sharded)
    assert torch.equal(full_logits(load_model(sharded), PROMPT), expected)
    assert not [record for record in caplog.records if record.name.startswith("paceline")]


def test_a_whole_file_beside_a_whole_index_counts_as_in_transformers(sharded, expected):
    tensors = tensors_of(sharded)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * 2}, sharded / SINGLE)
    assert (full_logits(load_model(sharded), PROMPT) - expected).abs().max() > 0.1


@pytest.mark.parametrize("part", [first_shard_alone, half_of_them], ids=lambda part: part.__name__)
def test_what_is_whole_nowhere_is_refused_by_both_names(sharded, part):
    part(sharded)
    one_shard_less(sharded)
    with pytest.raises(CheckpointError, match=rf"is missing from the safetensors\n{INDEX} cannot be used .*-00002-of-"):
        load_model(sharded)


def test_what_is_broken_everywhere_is_refused_by_both_names(sharded):
    cut_off(sharded)
    one_shard_less(sharded)
    with pytest.raises(CheckpointError, match=rf"{SINGLE} is truncated .*; and .*-00002-of-.* is missing\nDownload"):
        load_model(sharded)

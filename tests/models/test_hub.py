"""A snapshot in the Hub's cache serves without a network if it has what is read; huggingface_hub itself looks it up."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import constants

from paceline import LLM, CheckpointError, SamplingParams
from paceline.cli.main import run
from paceline.core.config import EngineConfig
from paceline.engine.fit import fit
from paceline.engine.process.client import EngineProcess
from paceline.models import is_quantised, load_config, load_model
from paceline.models.hub import resolve_model
from tests.support.checkpoints import tiny_llama, tiny_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny"
UNREAD = ["merges.txt", "tokenizer.model", "vocab.json", "README.md", "added_tokens.json", "original/x.safetensors"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache without network, in which a model lies as a download leaves it: files, branch and the list of files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "models--someone--tiny"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    tiny_llama(snapshot, max_shard_size="40KB")
    tiny_tokenizer(snapshot)
    assert len(list(snapshot.glob("model-*.safetensors"))) > 2
    return snapshot


def listed(snapshot, *more):
    """What the repository has according to the cache: what lies there, and more."""
    files = {path.name: {"size": 1, "blob_id": "0" * 40} for path in snapshot.iterdir()}
    files |= {name: {"size": 1, "blob_id": "0" * 40} for name in more}
    trees = snapshot.parents[1] / "trees"
    trees.mkdir(exist_ok=True)
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))


def test_files_that_nobody_reads_may_be_missing(cache):
    listed(cache, *UNREAD)
    assert resolve_model(NAME) == cache
    llm = LLM(NAME, max_model_len=64)
    assert llm.generate(["Count"], SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids


@pytest.mark.parametrize("stray", ["adapter_model.safetensors", "model.fp16.safetensors"])
def test_weights_that_the_index_does_not_name_may_be_missing(cache, stray):
    listed(cache, *UNREAD, stray)
    assert load_model(NAME).config.vocab_size == 320


def test_a_cache_without_a_list_of_files_serves(cache):
    assert load_model(NAME).config.vocab_size == 320


READ = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


@pytest.mark.parametrize("name", [*READ, "model-00002-of-00004.safetensors", "model.safetensors.index.json"])
def test_files_that_are_read_may_not(cache, name):
    listed(cache, *UNREAD, name)
    (cache / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=rf"'someone/tiny' .* cannot be fetched .*incomplete: .*{name}.*\nGive a"):
        resolve_model(NAME)


def test_configs_alone_serve_what_reads_configs_alone(cache):
    listed(cache, *UNREAD)
    for path in cache.iterdir():
        if path.name not in ("config.json", "generation_config.json"):
            path.unlink()
    assert not is_quantised(NAME)
    with pytest.raises(CheckpointError, match="incomplete"):
        load_config(NAME)


def test_another_model_is_not_in_the_cache(cache):
    shutil.rmtree(cache)
    with pytest.raises(CheckpointError, match="cannot be fetched from the Hugging Face Hub"):
        resolve_model(NAME)


OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def branches(cache):
    """The same model with a branch "old", in which it has other weights and a longer context."""
    old = cache.parent / OTHER
    old.mkdir()
    tiny_llama(old, seed=3, max_positions=48)
    tiny_tokenizer(old)
    (cache.parents[1] / "refs" / "old").write_text(OTHER)
    return cache, old


@pytest.mark.parametrize("revision", ["old", OTHER])
def test_a_revision_is_the_one_that_is_loaded(branches, revision):
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)

    def written(model, **options):
        return LLM(model, num_blocks=32, **options).generate([[5, 6, 7]], params)[0].outputs[0].token_ids

    main, old = branches
    assert written(NAME, revision=revision) == written(old) != written(NAME) == written(main)
    assert written(str(main), revision=revision) == written(main)  # a directory has no revisions
    assert fit(NAME, EngineConfig(revision=revision)).max_model_len == 48
    draft = {"method": "draft_model", "model": NAME, "num_speculative_tokens": 2}
    llm = LLM(old, num_blocks=64, speculative_config=draft | {"revision": revision})
    assert torch.equal(weight(llm.engine.proposer.model), weight(llm.engine.runner.model))
    with pytest.raises(CheckpointError, match=r"'someone/tiny' at revision 'new' is not"):
        LLM(NAME, revision="new")
    with pytest.raises(CheckpointError, match=r"'someone/tiny' at revision 'new' is not"):
        LLM(old, speculative_config=draft | {"revision": "new"})


def test_a_revision_is_the_one_that_is_quantised(branches, tmp_path):
    main, old = branches
    assert run(["quantize", NAME, str(tmp_path / "out"), "--revision", "old", "--no-compare"]) == 0
    for name, source in (("main", main), ("old", old)):
        assert run(["quantize", str(source), str(tmp_path / name), "--no-compare"]) == 0
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "main", "old")}
    assert weights["out"] == weights["old"] != weights["main"]


def weight(model):
    return model.embedding.tokens.weight


def test_a_revision_reaches_the_child_process(branches, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", constants.HF_HUB_CACHE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    engine = EngineProcess(NAME, num_blocks=32, revision="old")
    try:
        assert engine.facts.max_model_len == 48
    finally:
        engine.close()

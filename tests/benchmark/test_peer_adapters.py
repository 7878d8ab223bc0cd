"""Adapters of other engines: the GGUF copy read back, and the engines themselves where their environments are at hand.

``PACELINE_PEERS`` names the directory of the environments, as ``paceline bench peers --environments`` makes them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline import LLM
from paceline.benchmark.accuracy import write_greedily
from paceline.benchmark.peers import ReadyPeer, Task, peers, prepare
from paceline.benchmark.peers.adapters import exports
from paceline.models import load_model
from tests.support.calls import random_prompt
from tests.support.checkpoints import edit_json, full_logits, tiny_llama, tiny_tokenizer

ENVIRONMENTS = os.environ.get("PACELINE_PEERS")
PLAIN = [name for name, peer in peers._parts.items() if not peer.needs_draft]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Sizes that every engine can hold: heads of 32, rows that are whole groups of 32."""
    directory = tmp_path_factory.mktemp("model")
    tiny_llama(directory, hidden=64, intermediate=96, num_heads=2, num_kv_heads=1, dtype=torch.bfloat16)
    tiny_tokenizer(directory)
    return directory


def test_a_copy_is_made_once_and_anew_for_another_model(model, tmp_path, monkeypatch):
    monkeypatch.setenv(exports.VARIABLE, str(tmp_path / "copies"))
    made = []

    def make(path):
        made.append(path)
        path.write_text("copy")

    first = exports.exported(str(model), "x.gguf", make)
    assert exports.exported(str(model), "x.gguf", make) == first
    assert len(made) == 1
    assert first.read_text() == "copy"
    other = tmp_path / "other"
    tiny_llama(other, layers=1)
    assert exports.exported(str(other), "x.gguf", make) != first
    assert len(made) == 2


def test_an_interrupted_copy_is_not_taken_for_a_whole_one(model, tmp_path, monkeypatch):
    monkeypatch.setenv(exports.VARIABLE, str(tmp_path))

    def half(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exports.exported(str(model), "x.gguf", half)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("kind", "most"), [("f32", 0.0), ("bf16", 0.0), ("q8_0", 0.01), ("q4_0", 0.15)])
def test_the_gguf_file_holds_the_model(model, tmp_path, kind, most):
    gguf = pytest.importorskip("gguf")
    from paceline.benchmark.peers.adapters import gguf_export  # noqa: PLC0415

    path = tmp_path / "model.gguf"
    gguf_export.export(str(model), path, kind)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("llama.attention.head_count_kv").contents() == 1
    found = {one.name: gguf.quants.dequantize(one.data, one.tensor_type) for one in reader.tensors}
    stored = dict(gguf_export.tensors(model))
    assert len(found) == len(stored)
    for name, values in stored.items():
        heads = 2 if "q_proj" in name else 1 if "k_proj" in name else None
        wanted = values if heads is None else gguf_export.interleaved(values, heads)
        have = found[gguf_export.renamed(name)].reshape(wanted.shape)
        assert abs(have - wanted).max() <= most * abs(wanted).max()
    query = next(values for name, values in stored.items() if "q_proj" in name)
    assert (gguf_export.interleaved(query, 2)[:4] == query[[0, 16, 1, 17]]).all()


def test_models_that_would_be_described_wrongly_are_refused(tmp_path):
    pytest.importorskip("gguf")
    from paceline.benchmark.peers.adapters import gguf_export  # noqa: PLC0415

    tiny_llama(tmp_path, rope={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(ValueError, match="linear rotations"):
        gguf_export.export(str(tmp_path), tmp_path / "model.gguf", "f32")
    edit_json(tmp_path / "config.json", model_type="qwen3")
    with pytest.raises(ValueError, match="qwen3"):
        gguf_export.export(str(tmp_path), tmp_path / "model.gguf", "f32")


@pytest.mark.parametrize("name", PLAIN)
def test_a_peer_chooses_our_tokens(name, model, tmp_path, monkeypatch):
    """Also the numeric check of the permuted rows: unpermuted ones rotate wrongly, and choose other tokens."""
    peer = peers[name]
    python = Path(ENVIRONMENTS or ".") / peer.place() / "bin" / "python"
    if ENVIRONMENTS is None or not python.exists():
        pytest.skip(f"there is no environment {peer.place()} in $PACELINE_PEERS")
    monkeypatch.setenv(exports.VARIABLE, str(tmp_path))
    llm = LLM(str(model), dtype="float32", device="cpu")
    prompts = [random_prompt(seed, 9 + 4 * seed) for seed in range(1, 4)]
    expected = [one.answer for one in write_greedily(llm, prompts, 8)]
    task = Task(model=str(model), draft=None, prompts=prompts, expected=expected, threads=1)
    found = prepare(name, peer, task, start=lambda: python)
    assert isinstance(found, ReadyPeer), found.reason
    with found.process:
        answers = found.process.generate(prompts, 8)
        counts = [count for _, count in answers.steps]
        assert counts == sorted(counts)
        assert counts[-1] == 8 if len(counts) <= 9 else 24
        if peer.least_agreement == 0.9:
            assert found.best.same_choices >= 0.9


def test_rows_in_another_order_choose_other_tokens(model, tmp_path):
    """The control of the test above: a copy that mistakes the order of query rows is found out."""
    pytest.importorskip("gguf")
    from paceline.benchmark.peers.adapters import gguf_export  # noqa: PLC0415

    shutil.copytree(model, tmp_path / "wrong")
    path = tmp_path / "wrong" / "model.safetensors"
    weights = {
        name: torch.from_numpy(gguf_export.interleaved(values.float().numpy(), 2).copy())
        if "q_proj" in name
        else values
        for name, values in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    prompt = random_prompt(0, 64)
    right, wrong = (full_logits(load_model(one, dtype="float32"), prompt) for one in (model, tmp_path / "wrong"))
    assert (right.argmax(-1) == wrong.argmax(-1)).float().mean() < 0.9

"""A file of a checkpoint that was not fetched is named as such, whichever it is, by all that read it."""

from __future__ import annotations

import pytest

from paceline import LLM, CheckpointError
from paceline.cli.main import run
from paceline.core.files import is_fetched
from paceline.models import Quantization, load_model
from paceline.models.publishing import quantise_checkpoint
from tests.support.checkpoints import tiny_llama, tiny_tokenizer

POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 4976698672
"""
FORMS = {
    "pointer": POINTER,
    "with carriage returns": POINTER.replace("\n", "\r\n"),
    "extended": POINTER.replace("oid", "ext-0-foo sha256:" + "0" * 64 + "\noid", 1),
    "early": POINTER.replace("git-lfs.github", "hawser.github"),
}
FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model-00002-of-00004.safetensors",
    "model.safetensors.index.json",
]


@pytest.fixture
def model(tmp_path):
    tiny_llama(tmp_path, max_shard_size="40KB")
    tiny_tokenizer(tmp_path)
    return tmp_path


def replaced(path, text):
    path.unlink(missing_ok=True)
    path.write_bytes(text.encode())


@pytest.mark.parametrize("name", FILES)
def test_a_pointer_is_named(model, name):
    assert (model / name).exists() or name in ("special_tokens_map.json", "chat_template.jinja")
    replaced(model / name, POINTER)
    expected = rf"{name} is a Git LFS pointer to a file of 4976698672 bytes, .*\nRun `git lfs pull` in {model}, or "
    with pytest.raises(CheckpointError, match=expected):
        LLM(model)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_nothing_is_named(model, name):
    """As caches of the Hub have it whose blobs were removed."""
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../blobs/0123")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to ../blobs/0123, which is missing\nDownload"):
        LLM(model)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_a_pointer(tmp_path, form):
    tiny_llama(tmp_path)
    replaced(tmp_path / "model.safetensors", form)
    with pytest.raises(CheckpointError, match=r"model.safetensors is a Git LFS pointer to a file of 4976698672 bytes"):
        load_model(tmp_path)


def test_a_pointer_to_a_single_file_gives_way_to_a_whole_index(model):
    replaced(model / "model.safetensors", POINTER)
    assert load_model(model).config.vocab_size == 320


def test_a_link_to_nothing_that_is_the_only_file_of_weights(tmp_path):
    tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("gone")
    with pytest.raises(CheckpointError, match=r"model.safetensors is a link to gone, which is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [*FILES[1:-1], "merges.txt"])
def test_a_quantised_copy_has_no_pointers(model, tmp_path_factory, name):
    """Also of files that only other programs read; and nothing is written."""
    replaced(model / name, POINTER)
    out = tmp_path_factory.mktemp("out") / "int8"
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer"):
        quantise_checkpoint(model, out, Quantization("int8"))
    assert list(out.parent.iterdir()) == []


def test_files_that_only_speak_of_pointers_are_files(tmp_path):
    for name, text in {"a": "version", "b": "# version https://git-lfs.github.com/spec/v1", "c": ""}.items():
        (tmp_path / name).write_text(text)
        assert is_fetched(tmp_path / name)
    assert not is_fetched(tmp_path / "absent")
    assert not is_fetched(tmp_path)


def test_the_command_line_says_it_in_two_lines(model, capsys):
    replaced(model / "tokenizer.json", POINTER)
    assert run(["generate", str(model), "--prompt", "Count"]) != 0
    told = capsys.readouterr().err
    assert "is a Git LFS pointer" in told
    assert "Traceback" not in told

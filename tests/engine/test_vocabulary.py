"""A tokenizer whose ids the model lacks is refused at load; what it only has by name, when somebody asks for it."""

from __future__ import annotations

import json

import pytest
import tokenizers

from paceline import LLM, CheckpointError, InvalidRequestError, SamplingParams
from tests.support.calls import assert_idle, greedy, make, only
from tests.support.checkpoints import tiny_llama, tiny_tokenizer

SIZE = 320


def rewrite(path, change):
    values = json.loads((path / "tokenizer.json").read_text())
    change(values)
    (path / "tokenizer.json").write_text(json.dumps(values))


def with_gap(values):
    """As many tokens as the model has, of which the last has a number of its own."""
    vocabulary = values["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = SIZE + 70


def with_beginning(values):
    """Every text begins with a token that the model lacks."""
    values["added_tokens"].append(values["added_tokens"][0] | {"id": SIZE, "content": "<|start|>"})
    begin = {"id": "<|start|>", "ids": [SIZE], "tokens": ["<|start|>"]}
    pieces = [{"SpecialToken": {"id": "<|start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|start|>": begin},
    }


REFUSED = {"larger": (SIZE - 1, None), "with a gap": (SIZE, with_gap), "with a beginning": (SIZE, with_beginning)}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_of_another_model_is_refused(name, tmp_path):
    vocab_size, change = REFUSED[name]
    tiny_llama(tmp_path, vocab_size=vocab_size)
    tiny_tokenizer(tmp_path, vocab_size=SIZE)
    if change is not None:
        rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json makes 1 tokens .* vocab_size is {vocab_size}"):
        LLM(tmp_path)


@pytest.fixture(scope="module")
def with_image(tmp_path_factory) -> LLM:
    """A text model whose tokenizer has the token of an image, as Gemma 3's small one."""
    path = tmp_path_factory.mktemp("image")
    tiny_llama(path, vocab_size=SIZE)
    tiny_tokenizer(path, vocab_size=SIZE)
    backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    backend.add_special_tokens(["<image>"])
    assert backend.token_to_id("<image>") == SIZE
    backend.save(str(path / "tokenizer.json"))
    return make(path, dtype="float32")


def test_texts_without_it_are_answered(with_image):
    assert only(with_image.generate("the dog", greedy(ignore_eos=True))).finish_reason == "length"
    # In a message it is text like any other.
    chat = with_image.chat([{"role": "user", "content": "an <image> here"}], greedy(ignore_eos=True))
    assert only(chat).finish_reason == "length"


def test_texts_with_it_are_refused_alone(with_image):
    with pytest.raises(
        InvalidRequestError, match=f"the prompt has token {SIZE}, the model's end at {SIZE - 1}"
    ) as found:
        with_image.generate(["the dog", "an <image> here"], greedy())
    assert found.value.param == "prompt"
    assert_idle(with_image.engine)


@pytest.mark.parametrize("word", ["<image>", "a<image>"])
def test_it_may_be_a_bad_word(word, with_image):
    params = SamplingParams(max_tokens=4, ignore_eos=True, bad_words=[word])
    assert only(with_image.generate("the dog", params)).finish_reason == "length"

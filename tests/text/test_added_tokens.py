"""Tokens, names and ends that only tokenizer_config.json and the chat template tell, as transformers reads them."""

from __future__ import annotations

import json
import os

import pytest
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from paceline import LLM, SamplingParams
from paceline.core.errors import CheckpointError
from paceline.models import load_config
from paceline.text import Tokenizer, bad_word_ids
from tests.support.checkpoints import edit_json, tiny_llama
from tests.support.tokenizers import byte_fallback, byte_level, unigram, write_byte_level

TEXTS = ["a<x> b", "a <x>  b<y>c", "<x><y><z>", "dog<z>y z", "hello<|end|> <x>the", "<X> a"]
FLAGS = [
    {},
    {"special": True},
    {"rstrip": True},
    {"lstrip": True, "special": True},
    {"single_word": True},
    {"normalized": False},
    {"special": True, "rstrip": True, "normalized": True},
]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("first", [320, 400])
def test_tokens_of_added_tokens_decoder_have_the_ids_of_transformers(tmp_path, flags, first):
    listed = {str(first + place): {"content": name, **flags} for place, name in enumerate(("<y>", "<x>", "<z>"))}
    write_byte_level(tmp_path, added_tokens_decoder=listed)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert set(ours.special_ids) == {i for i, token in theirs.added_tokens_decoder.items() if token.special}


def test_what_tokenizer_json_has_is_changed_as_the_config_says(tmp_path):
    word = byte_level().backend.id_to_token(300)
    write_byte_level(tmp_path, added_tokens_decoder={"300": {"content": word, "rstrip": True, "special": True}})
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in (f"a{word}  b", "hello the end", *TEXTS):
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("additional_special_tokens", 5),
        ("additional_special_tokens", [5]),
        ("extra_special_tokens", "<x>"),
        ("eos_token", 7),
        ("pad_token", {"content": []}),
        ("added_tokens_decoder", [1]),
        ("added_tokens_decoder", {"a": {"content": "<x>"}}),
        ("added_tokens_decoder", {"320": "<x>"}),
        ("added_tokens_decoder", {"320": {"content": 4}}),
        ("added_tokens_decoder", {"320": {"content": "<x>", "rstrip": "no"}}),
    ],
)
def test_a_field_of_a_wrong_type_is_named(tmp_path, field, value):
    write_byte_level(tmp_path, **{field: value})
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: {field}.* must be"):
        Tokenizer.load(tmp_path)


def edited(change):
    backend = tokenizers.Tokenizer.from_str(byte_level().backend.to_str())
    change(backend)
    return backend


FLAGS_OFF = {"single_word": False, "lstrip": False, "rstrip": False}


def doubling(backend):
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace("a", "bb"), normalizers.Replace("b", "aa")] * 20  # 2^40 characters of one
    )


def one_million(backend):
    backend.normalizer = normalizers.Replace("a", "b" * 1_000_000)


def between_all(backend):
    backend.normalizer = normalizers.Replace(tokenizers.Regex(""), "b" * 1000)


def prefix(backend):
    backend.normalizer = normalizers.Prepend("b" * 1_000_000)


def decoder(backend):
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "b" * 1_000_000)])


def repeated(backend):
    backend.post_processor = processors.TemplateProcessing(single=" ".join(["$A"] * 1000), special_tokens=[])


def bytes_of_bytes(backend):
    backend.normalizer = normalizers.Sequence([normalizers.ByteLevel()] * 30)  # 2^30 characters of one


def bytes_of_bytes_while_split(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 30)


def marks(backend):
    each = [pre_tokenizers.Split(tokenizers.Regex("."), "isolated"), pre_tokenizers.Metaspace()]
    backend.pre_tokenizer = pre_tokenizers.Sequence(each * 100)


def prefix_of_each_piece(backend):
    backend.normalizer = normalizers.Prepend("b" * 1000)


def one_token_often(backend):
    template = {"id": "<x>", "ids": [5] * 1000, "tokens": ["<x>"] * 1000}
    backend.post_processor = processors.TemplateProcessing(single=f"{'<x> ' * 500}$A", special_tokens=[template])


def many_templates(backend):
    one = processors.TemplateProcessing(single=" ".join(["<x>"] * 500 + ["$A"]), special_tokens=[("<x>", 5)])
    backend.post_processor = processors.Sequence([one] * 100)


GROWING = [doubling, one_million, between_all, prefix, decoder, repeated, bytes_of_bytes, bytes_of_bytes_while_split]
GROWING += [marks, prefix_of_each_piece, one_token_often, many_templates]


@pytest.mark.parametrize("change", GROWING)
def test_a_tokenizer_that_multiplies_text_is_refused(tmp_path, change):
    write_byte_level(tmp_path)
    edited(change).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its (\w+izer|decoder|post_processor)"):
        Tokenizer.load(tmp_path)


def test_what_multiplies_text_is_refused_before_added_tokens_are_normalized(tmp_path):
    """The library would make 2^40 characters of one token while it loads."""
    write_byte_level(tmp_path)
    backend = edited(doubling)
    state = json.loads(backend.to_str())
    state["added_tokens"].append({"id": 999, "content": "a", "special": False, "normalized": True} | FLAGS_OFF)
    for step in state["normalizer"]["normalizers"]:
        del step["type"]  # which the library can do without
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"its normalizer makes 1\.\d+e\+12 characters of one"):
        Tokenizer.load(tmp_path)


FIELDS = ["normalizer", "pre_tokenizer", "decoder", "post_processor", "model", "added_tokens"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [5, "x", [], [1], {"type": 3}, {"normalizers": 3}, {"single": [4], "decoders": [0]}])
def test_parts_of_wrong_types_are_refused_by_name(tmp_path, field, value):
    write_byte_level(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text()) | {field: value}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    if (field, value) != ("added_tokens", []):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("place", ["vocabulary", "added_tokens", "added_tokens_decoder"])
def test_a_very_long_token_is_refused(tmp_path, place):
    long = "x" * 1_000_000
    write_byte_level(tmp_path)
    if place == "added_tokens_decoder":
        edit_json(tmp_path / "tokenizer_config.json", **{place: {"320": {"content": long}}})
    elif place == "added_tokens":
        backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        backend.add_tokens([long])
        backend.save(str(tmp_path / "tokenizer.json"))
    else:
        state = json.loads((tmp_path / "tokenizer.json").read_text())
        state["model"]["vocab"][long] = 999
        (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"a token has 1000000 characters, at most 8192"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("affix", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_a_long_mark_of_each_token_is_refused(tmp_path, affix):
    write_byte_level(tmp_path)
    edit_json(tmp_path / "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": [], affix: "b" * 100_000})
    with pytest.raises(CheckpointError, match=rf"its {affix} has 100000 characters"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_a_file_that_is_read_whole_has_a_longest(tmp_path, name):
    tiny_llama(tmp_path)
    write_byte_level(tmp_path)
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(CheckpointError, match=rf"{name} has over 64 MiB"):
        load_config(tmp_path) if name in ("config.json", "generation_config.json") else Tokenizer.try_load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused(tmp_path, name, kind):
    tiny_llama(tmp_path)
    write_byte_level(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=rf"{name} is a pipe, a socket or a device"):
        load_config(tmp_path) if "tokenizer" not in name else Tokenizer.try_load(tmp_path)


END, OTHER = 1, 40


def answer(directory, token, **params):
    """What comes of a model that wants nothing but ``token``."""
    params = {"max_tokens": 4, "temperature": 0, "logit_bias": {token: 100.0}, **params}
    return LLM(directory, num_blocks=32).generate([[5, 6, 7]], SamplingParams(**params))[0].outputs[0]


@pytest.fixture
def chat_model(tmp_path):
    tiny_llama(tmp_path)
    write_byte_level(tmp_path)
    edit_json(tmp_path / "config.json", eos_token_id=2)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3]}))
    return tmp_path


@pytest.mark.parametrize("token", [END, 2, 3])
def test_the_ends_of_config_generation_config_and_tokenizer_all_count(chat_model, token):
    found = answer(chat_model, token)
    assert (found.finish_reason, len(found.token_ids)) == ("stop", 1)
    assert len(answer(chat_model, token, ignore_eos=True).token_ids) == 4
    assert len(answer(chat_model, OTHER).token_ids) == 4


def ends_of(directory, names, template, **config):
    listed = {str(320 + place): {"content": name, "special": True} for place, name in enumerate(names)}
    write_byte_level(directory, added_tokens_decoder=listed, chat_template=template, **config)
    tokenizer = Tokenizer.load(directory)
    return {tokenizer.backend.id_to_token(token) for token in tokenizer.end_token_ids}


def test_the_end_of_a_turn_in_the_template_ends_an_answer(tmp_path):
    names = ["<|im_end|>", "<|eot_id|>", "<|return|>", "<|call|>", "<end_of_turn>"]
    assert ends_of(tmp_path, names, "{{ m }}<|im_end|>") == {"<|end|>", "<|im_end|>"}
    assert ends_of(tmp_path, names, "{{ m }}<|eot_id|><end_of_turn>") == {"<|end|>", "<|eot_id|>", "<end_of_turn>"}
    assert ends_of(tmp_path, names, None) == {"<|end|>"}
    # Of harmony's messages "<|end|>" is not the answer's end; here it is by name.
    harmony = ends_of(tmp_path, names, "<|end|><|return|><|call|>", eos_token="<|return|>")
    assert harmony == {"<|return|>", "<|call|>"}


ENDS = ["[|endofturn|]", "<|assistant_end|>", "<|end_of_sentence|>", "<seed:eos>", "<|eos|>", "[e~[", "</s>", "[EOS]"]


@pytest.mark.parametrize("name", [*ENDS, "<|im_end|>", "<end_of_turn>"])
@pytest.mark.parametrize("special", [True, False])
def test_published_ends_count_whether_or_not_they_are_called_special(tmp_path, name, special):
    listed = {"320": {"content": name, "special": special}}
    write_byte_level(tmp_path, added_tokens_decoder=listed, chat_template=f"{{{{ m }}}}{name}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.backend.token_to_id(name) in tokenizer.end_token_ids


@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram, lambda: byte_fallback("always")])
@pytest.mark.parametrize("before", ["", " ", "hello ", "\n", "(", "hello\n", "hello (", "[", '"', "hello<", "lo-"])
def test_a_bad_word_is_found_wherever_it_stands(make, before):
    tokenizer = make()
    written = tokenizer.encode(before + "hello", add_special_tokens=False)
    found = bad_word_ids(tokenizer, ["hello"])
    assert any(tuple(written[-len(ids) :]) == ids for ids in found)
    assert len(found) == len(set(found)) <= 12

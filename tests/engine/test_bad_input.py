"""Nothing invalid gets past the door: the field is named, nothing is held, and whoever runs is not disturbed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from paceline import LLM, CheckpointError, ConfigError, InvalidRequestError, SamplingParams
from paceline.engine.input_processor import InputProcessor
from tests.support.calls import (
    VOCAB_SIZE,
    assert_idle,
    begin,
    finish,
    greedy,
    make,
    only,
    random_prompt,
    seeded,
    tokens_of,
)
from tests.support.engines import Models

GOOD = random_prompt(2, 8)

BAD_PROMPTS = {
    "no prompts": ([], "prompts"),
    "nothing": (None, "prompts"),
    "a number": (5, "prompts"),
    "a set": ({1, 2}, "prompts"),
    "empty text": ("", "prompt"),
    "empty ids": ([[]], "prompt"),
    "empty ids in a dict": ({"prompt_token_ids": []}, "prompt"),
    "a dict of something else": ({"text": "hello"}, "prompt"),
    "an empty dict": ({}, "prompt"),
    "bytes": (b"hello", "prompts"),
    "bytes among prompts": ([GOOD, b"hello"], "prompt"),
    "a set among prompts": ([GOOD, {5, 6}], "prompt"),
    "a float among integers": ((5, 6.0), "prompt_token_ids"),
    "an integer that cannot be shown": ([10**5000], "prompt_token_ids"),
    "None among prompts": ([GOOD, None], "prompt"),
    "a float": ([[1.0]], "prompt_token_ids"),
    "text for an id": ([["a"]], "prompt_token_ids"),
    "bool": ([True, 4], "prompt_token_ids"),
    "bool later": ([4, True], "prompt_token_ids"),
    "negative": ([4, -1], "prompt_token_ids"),
    "beyond the vocabulary": ([VOCAB_SIZE], "prompt_token_ids"),
    "far beyond": ([[2**70]], "prompt_token_ids"),
    "nested": ([4, [5]], "prompt_token_ids"),
    "deeply nested": ([[4, [5]]], "prompt_token_ids"),
    "as long as the context": ([[5] * 128], "prompt"),
    "a lone surrogate": ("\ud800", "prompt"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompts(name, plain: LLM) -> None:
    prompts, field = BAD_PROMPTS[name]
    with pytest.raises(InvalidRequestError) as caught:
        plain.generate(prompts, greedy())
    assert caught.value.param == field
    assert_idle(plain.engine)


def test_the_keys_of_a_prompt_are_named(plain: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"must be prompt_token_ids or prompt, got \['prompt_tokens'\]"):
        plain.generate({"prompt_tokens": GOOD})


def test_any_sequence_of_integers_is_a_prompt(plain: LLM) -> None:
    expected = tokens_of(plain.generate(GOOD, greedy()))
    same = tuple(GOOD)
    arrays = [np.int64(token) for token in GOOD]
    for prompts in (same, [same], (same,), [GOOD], {"prompt_token_ids": same}, [{"prompt_token_ids": GOOD}], arrays):
        (output,) = plain.generate(prompts, greedy())
        assert tokens_of([output]) == expected
        assert output.prompt is None
        assert output.prompt_token_ids == GOOD
        assert {type(token) for token in output.prompt_token_ids} == {int}


def test_the_output_has_the_prompts_text(plain: LLM) -> None:
    outputs = plain.generate(["hello", {"prompt": "hello"}, {"prompt": "hello", "prompt_token_ids": GOOD}], greedy())
    assert [output.prompt for output in outputs] == ["hello"] * 3
    assert [output.prompt_token_ids for output in outputs][1:] == [outputs[0].prompt_token_ids, GOOD]


@pytest.mark.parametrize("speculate", ["nope", None, 1], ids=str)
def test_speculate_is_true_or_false(speculate, plain: LLM) -> None:
    for call in (plain.generate, plain.chat):
        with pytest.raises(InvalidRequestError) as caught:
            call(GOOD if call == plain.generate else [{"role": "user", "content": "x"}], greedy(), speculate=speculate)
        assert caught.value.param == "speculate"
    assert_idle(plain.engine)


@pytest.mark.parametrize("priority", ["high", None, 1.5, True, 2**31, -(2**31) - 1, [1, 2, 3], [0, "x"]], ids=str)
def test_priorities_are_integers_one_or_one_per_prompt(priority, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plain.generate([GOOD, GOOD], greedy(), priority=priority)
    assert caught.value.param == "priority"
    assert_idle(plain.engine)


@pytest.mark.parametrize("name", ["client", "cache_salt"])
@pytest.mark.parametrize("value", [7, None, "x" * 1025, b"x"], ids=lambda value: str(value)[:9])
def test_names_are_short_texts(name, value, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plain.generate(GOOD, greedy(), **{name: value})
    assert caught.value.param == name
    assert_idle(plain.engine)


def test_call_options_change_no_token(plain: LLM) -> None:
    expected = tokens_of(plain.generate([GOOD, GOOD[:3]], greedy()))
    options = {"priority": [np.int64(3), -1], "client": ["a", "b"], "cache_salt": "x"}
    assert tokens_of(plain.generate([GOOD, GOOD[:3]], greedy(), **options)) == expected


@pytest.mark.parametrize("content", [{"content": 5}, {"content": None}, {"content": ["x"]}, {}], ids=str)
def test_content_is_text(content, plain: LLM) -> None:
    for messages in ([{"role": "user"} | content], [[{"role": "user", "content": "x"}, {"role": "user"} | content]]):
        with pytest.raises(InvalidRequestError, match="content") as caught:
            plain.chat(messages, greedy())
        assert caught.value.param == "messages"


BAD_PARAMS = {
    "logit_bias": {"logit_bias": {VOCAB_SIZE: 1.0}},
    "allowed_token_ids": {"allowed_token_ids": [3, VOCAB_SIZE]},
    "stop_token_ids": {"stop_token_ids": [2**31 - 1]},
    "min_tokens": {"min_tokens": 121, "max_tokens": None},
    "bad_words": {"bad_words": ["\ud800"]},
}


@pytest.mark.parametrize("field", BAD_PARAMS)
def test_params_that_do_not_fit_the_model(field, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        plain.generate(GOOD, greedy(**BAD_PARAMS[field]))
    assert caught.value.param == field
    assert_idle(plain.engine)


@pytest.mark.parametrize(
    "params", [[], [greedy()] * 3, {"max_tokens": 3}, "greedy", 7, [greedy(), None], [greedy(), {}]], ids=str
)
def test_params_that_are_not_one_per_prompt(params, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plain.generate([GOOD, GOOD], params)
    assert caught.value.param == "params"
    assert_idle(plain.engine)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "hello",
        ["hello"],
        [[]],
        [{}],
        [{"role": "pirate", "content": "x"}],
        [{"role": [], "content": "x"}],
        [[{"role": "user"}], 5],
    ],
    ids=str,
)
def test_bad_conversations(messages, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        plain.chat(messages, greedy())
    assert_idle(plain.engine)


def test_one_bad_prompt_stops_the_whole_call(plain: LLM) -> None:
    before = plain.stats()
    with pytest.raises(InvalidRequestError):
        plain.generate([GOOD, GOOD, [VOCAB_SIZE]], greedy())
    assert plain.stats() == before


def test_texts_need_a_tokenizer(checkpoints) -> None:
    llm = make(checkpoints.without_tokenizer)
    calls = {
        "prompt": lambda: llm.generate("hello"),
        "stop": lambda: llm.generate(GOOD, greedy(stop="x")),
        "bad_words": lambda: llm.generate(GOOD, greedy(bad_words=["x"])),
        None: lambda: llm.chat([{"role": "user", "content": "x"}]),
    }
    for field, call in calls.items():
        with pytest.raises(InvalidRequestError, match="tokenizer") as caught:
            call()
        if field != "bad_words":
            assert caught.value.param == field
    assert_idle(llm.engine)


@pytest.mark.parametrize("speculation", [None, {"method": "draft_model", "model": "near"}], ids=["off", "near"])
def test_whoever_runs_is_not_disturbed(speculation, models: Models) -> None:
    alone = models.engine()
    expected = finish(alone, [begin(alone, GOOD, seeded())])
    engine = models.engine(speculation, num_blocks=7)
    processor = InputProcessor(engine, None)
    running = begin(engine, GOOD, seeded(), processor=processor)
    bad = [
        ([], greedy()),
        ([5] * 128, greedy()),
        ([VOCAB_SIZE], greedy()),
        (GOOD, greedy(logit_bias={VOCAB_SIZE: 1.0})),
        (GOOD, greedy(stop="x")),
        ([5] * 112, greedy(max_tokens=None)),
    ]

    def refuse() -> None:
        for prompt, params in bad:
            with pytest.raises(InvalidRequestError):
                processor.group(processor.encode(prompt), params)

    assert finish(engine, [running], refuse) == expected
    assert_idle(engine)


@pytest.mark.parametrize("drafter", [None, "near"])
@pytest.mark.parametrize(("length", "max_tokens"), [(8, 100), (48, None), (47, 2), (60, 20)])
def test_a_request_larger_than_the_cache_is_told_what_fits(drafter, length, max_tokens, checkpoints) -> None:
    """And the number in the message does fit, while one more does not."""
    draft = getattr(checkpoints, drafter) if drafter else None
    prompt = random_prompt(1, length)

    def ask(num_blocks: int, limit: int | None) -> LLM:
        llm = make(checkpoints.llama, draft, block_size=8, num_blocks=num_blocks)
        assert len(only(llm.generate(prompt, greedy(max_tokens=limit, ignore_eos=True))).token_ids) == (
            limit or min(128, 8 * num_blocks) - length
        )
        assert_idle(llm.engine)
        return llm

    with pytest.raises(InvalidRequestError) as caught:
        ask(6, max_tokens)
    assert caught.value.code == "context_length_exceeded"
    option, number = re.search(r"set (\w+) to at (?:most|least) (\d+)", str(caught.value)).groups()
    right, wrong = (int(number), int(number) + 1) if option == "max_tokens" else (int(number), int(number) - 1)
    ask(*((6, right) if option == "max_tokens" else (right, max_tokens)))
    with pytest.raises(InvalidRequestError):
        ask(*((6, wrong) if option == "max_tokens" else (wrong, max_tokens)))


@pytest.mark.parametrize("drafter", [None, "near"])
def test_no_limit_named_is_what_the_cache_leaves(drafter, checkpoints) -> None:
    draft = getattr(checkpoints, drafter) if drafter else None
    llm = make(checkpoints.llama, draft, block_size=8, num_blocks=6)
    assert llm.max_model_len == 48
    for length in (1, 8, 47):
        params = greedy(max_tokens=None, ignore_eos=True)
        assert len(only(llm.generate(random_prompt(1, length), params)).token_ids) == 48 - length
    with pytest.raises(InvalidRequestError, match="min_tokens must be at most 40"):
        llm.generate(random_prompt(1, 8), greedy(max_tokens=None, min_tokens=41))
    assert_idle(llm.engine)


BAD_OPTIONS = {
    "an unknown option": ({"max_seqs": 4}, "max_seqs"),
    "the config's own name": ({"speculative": {"method": "ngram"}}, "speculative_config"),
    "speculation by name": ({"speculative_config": "ngram"}, "ngram"),
    "speculation as a number": ({"speculative_config": 4}, "method"),
    "no method": ({"speculative_config": {"num_speculative_tokens": 3}}, "method"),
    "method": ({"speculative_config": {"method": "guess"}}, "guess.*\n.*draft_model"),
    "an option of no method": ({"speculative_config": {"method": "ngram", "depth": 3}}, "depth"),
    "no draft": ({"speculative_config": {"method": "draft_model"}}, "model"),
    "no tokens": ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 0}}, "num_speculative_tokens"),
    "65 tokens": ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 65}}, "num_speculative_tokens"),
    "lookup": ({"speculative_config": {"method": "ngram", "prompt_lookup_max": 1}}, "prompt_lookup_max"),
    "verifier": ({"speculative_config": {"method": "ngram", "verifier": "trust"}}, "trust.*\n.*match"),
    "policy": ({"scheduling_policy": "random"}, "random.*\n.*fcfs"),
    "cache": ({"cache": "infinite"}, "infinite.*\n.*paged"),
    "backend": ({"attention_backend": "magic"}, "magic.*\n.*sdpa"),
    "dtype": ({"dtype": "int3"}, "int3.*\n.*float32"),
    "kv dtype": ({"kv_cache_dtype": "int3"}, "int3.*\n.*float32"),
    "device": ({"device": "abacus"}, "abacus.*\n.*cpu"),
    "a device without support": ({"device": "mps"}, "mps.*\n.*cpu"),
    "a device without memory": ({"device": "meta"}, "meta.*\n.*cpu"),
    "max_model_len": ({"max_model_len": 129}, "max_model_len.*\n.*128"),
    "max_model_len 1": ({"max_model_len": 1}, "max_model_len"),
    "num_blocks": ({"num_blocks": 0}, "num_blocks"),
    "num_blocks beyond int32": ({"num_blocks": 10**13}, "num_blocks must be .*2147483647.* or None, got 10{13}"),
    "num_blocks beyond memory": (
        {"num_blocks": 2**31 - 1},
        "num_blocks=2147483647 .*\nSet num_blocks to at most [1-9]",
    ),
    "block_size": ({"block_size": 1.5}, "block_size"),
    "max_num_seqs": ({"max_num_seqs": True}, "max_num_seqs"),
    "max_num_batched_tokens": ({"max_num_batched_tokens": "many"}, "max_num_batched_tokens"),
    "block_size beyond reason": ({"block_size": 10**9}, r"block_size must be an integer in \[1, 4096\], got 10{9}"),
    "max_num_seqs beyond reason": ({"max_num_seqs": 10**9}, r"max_num_seqs .*4096\]"),
    "lookup beyond reason": ({"speculative_config": {"method": "ngram", "prompt_lookup_max": 33}}, r"_max .*32\]"),
    "seed": ({"seed": 2**63}, "seed"),
    "a seed that cannot be shown": ({"seed": 10**5000}, "seed .*-bit integer"),
    "prefix caching": (
        {"enable_prefix_caching": "banana"},
        "enable_prefix_caching must be true or false, got 'banana'",
    ),
    "prefix caching as a number": ({"enable_prefix_caching": 1}, "enable_prefix_caching must be true or false"),
    "a draft's number": (
        {"speculative_config": {"method": "draft_model", "model": 5}},
        "model must be text or None, got",
    ),
    "a method's list": ({"speculative_config": {"method": []}}, r"method must be text, got \[\]"),
    "a name's number": ({"speculative_config": {"method": "ngram", 5: 1, "x": 2}}, "option 5\n"),
}
TEXTS = ("dtype", "device", "kv_cache_dtype", "cache", "scheduling_policy", "attention_backend")


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name, checkpoints) -> None:
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ConfigError, match=message):
        make(checkpoints.llama, **options)


@pytest.mark.parametrize("value", [[], {}, 5, True], ids=str)
@pytest.mark.parametrize("option", TEXTS)
def test_names_are_text(option, value, checkpoints) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be text, got {re.escape(repr(value))}"):
        make(checkpoints.llama, **{option: value})


@pytest.mark.parametrize("model", [5, [], b"model"], ids=str)
def test_a_model_is_named_by_text(model) -> None:
    with pytest.raises(ConfigError, match="model must be a directory or a Hub id, got"):
        LLM(model)


def test_paths_name_models_too(checkpoints) -> None:
    draft = {"method": "draft_model", "model": checkpoints.near}
    llm = LLM(checkpoints.llama, speculative_config=draft, device="cpu", max_num_seqs=1)
    assert llm.model_name == str(checkpoints.llama)


def test_as_many_pages_as_memory_holds(checkpoints, monkeypatch) -> None:
    page = 2 * 2 * 2 * 8 * 8 * 8  # layers, K and V, heads, dimensions, tokens, bytes
    monkeypatch.setattr("paceline.engine.memory.free_bytes", lambda device: 6 * page + 1)
    options = {"block_size": 8, "num_blocks": 5}
    assert make(checkpoints.llama, **options).stats()["pages"]["total"] == 5
    with pytest.raises(ConfigError, match="Set num_blocks to at most 5"):
        make(checkpoints.llama, **options | {"num_blocks": 6})
    with pytest.raises(ConfigError, match="Set block_size lower"):
        make(checkpoints.llama, **options | {"block_size": 64})


def test_a_draft_with_another_vocabulary(checkpoints) -> None:
    with pytest.raises(ConfigError, match=f"{VOCAB_SIZE + 1}.*{VOCAB_SIZE}"):
        make(checkpoints.llama, checkpoints.other_vocabulary)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(checkpoints) -> None:
    with pytest.raises(ConfigError, match='device="cuda"'):
        make(checkpoints.llama, device="cuda")


def test_models_that_are_not_there(checkpoints, tmp_path) -> None:
    for model in (tmp_path, tmp_path / "absent", checkpoints.llama / "config.json"):
        with pytest.raises(CheckpointError, match=re.escape(str(model))):
            make(model)
        with pytest.raises(CheckpointError, match=re.escape(str(model))):
            make(checkpoints.llama, model)


def test_an_interrupted_call_gives_everything_back(checkpoints, plain: LLM, monkeypatch) -> None:
    """Also what had finished in the step that was interrupted."""
    llm = make(checkpoints.llama, checkpoints.near)
    prompts = [random_prompt(seed, 9) for seed in range(4)]
    for part, name in (
        (llm.engine.committing, "commit"),
        (llm.engine.runner, "forward"),
        (llm.engine.proposer, "graph_draft"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                llm.generate(prompts, greedy(max_tokens=1))
        assert_idle(llm.engine)
    assert tokens_of(llm.generate(prompts, seeded())) == tokens_of(plain.generate(prompts, seeded()))


def _interrupt(*_arguments) -> None:
    raise KeyboardInterrupt


def test_nothing_asked_is_the_default(plain: LLM) -> None:
    assert len(only(plain.generate(GOOD, None)).token_ids) == SamplingParams().max_tokens

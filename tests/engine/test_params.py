"""Sampling parameters through the whole engine, with speculation off, always right and sometimes right."""

from __future__ import annotations

import pytest

from paceline import LLM
from tests.support.calls import END, VOCAB_SIZE, assert_idle, greedy, make, only, random_prompt, seeded, tokens_of

PROMPT = random_prompt(4, 11)


@pytest.fixture(scope="module")
def readable(plain: LLM) -> list[int]:
    """Tokens of printable ASCII, from which answers are made whose text can be searched."""
    texts = {token: plain.tokenizer.decode([token]) for token in range(3, VOCAB_SIZE)}
    return [token for token, text in texts.items() if text.isascii() and text.isprintable() and text]


def test_end_of_sequence(llm: LLM) -> None:
    answer = only(llm.generate(PROMPT, greedy(logit_bias={END: 100.0}, min_tokens=5)))
    assert answer.token_ids.index(END) == 5
    assert len(answer.token_ids) == 6
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)


def test_ignore_eos(llm: LLM) -> None:
    answer = only(llm.generate(PROMPT, greedy(logit_bias={END: 100.0}, ignore_eos=True)))
    assert answer.token_ids == [END] * 12
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("place", range(1, 9))
def test_stop_tokens_end_the_answer_anywhere_in_a_draft(place, llm: LLM, plain: LLM) -> None:
    free = only(plain.generate(PROMPT, seeded())).token_ids
    place = free.index(free[place])
    answer = only(llm.generate(PROMPT, seeded(stop_token_ids=[free[place], 300])))
    assert answer.token_ids == free[: place + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", free[place])
    assert answer.text == llm.tokenizer.decode(free[:place])
    kept = only(llm.generate(PROMPT, seeded(stop_token_ids=[free[place]], include_stop_str_in_output=True)))
    assert kept.text == llm.tokenizer.decode(free[: place + 1])


def test_stop_tokens_are_banned_before_min_tokens(llm: LLM) -> None:
    answer = only(llm.generate(PROMPT, greedy(stop_token_ids=[9], logit_bias={9: 100.0}, min_tokens=4)))
    assert answer.token_ids.index(9) == 4
    assert answer.stop_reason == 9


@pytest.mark.parametrize("start", range(0, 12, 2))
def test_stop_strings_end_the_answer_anywhere_in_a_draft(start, llm: LLM, plain: LLM, readable) -> None:
    """The string is complete in the middle of a token and of a step; nothing after it is kept or shown."""
    controls = {"allowed_token_ids": readable, "max_tokens": 24}
    free = only(plain.generate(PROMPT, seeded(**controls)))
    stop = free.text[start + 3 : start + 6]
    cut = free.text.index(stop)
    answer = only(llm.generate(PROMPT, seeded(**controls, stop=["never appears", stop])))
    assert answer.text == free.text[:cut]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.token_ids == free.token_ids[: len(answer.token_ids)]
    assert (
        len(llm.tokenizer.decode(answer.token_ids[:-1]))
        < cut + len(stop)
        <= len(llm.tokenizer.decode(answer.token_ids))
    )
    kept = only(llm.generate(PROMPT, seeded(**controls, stop=stop, include_stop_str_in_output=True)))
    assert kept.text == free.text[: cut + len(stop)]
    assert kept.token_ids == answer.token_ids


def test_a_stop_string_inside_one_step_of_several_tokens(perfect: LLM, plain: LLM, readable) -> None:
    free = only(plain.generate(PROMPT, seeded(allowed_token_ids=readable)))
    stop = plain.tokenizer.decode(free.token_ids[2:4])
    (output,) = perfect.generate(PROMPT, seeded(allowed_token_ids=readable, stop=stop))
    assert output.outputs[0].token_ids == free.token_ids[:4]
    assert output.metrics.mean_acceptance_length == 4.0  # one step, of whose seven tokens four were kept
    assert output.metrics.num_accepted == 4
    assert_idle(perfect.engine)


def test_stop_strings_wait_for_min_tokens(llm: LLM, plain: LLM, readable) -> None:
    controls = {"allowed_token_ids": readable[:2], "max_tokens": 12}
    free = only(plain.generate(PROMPT, seeded(**controls)))
    stop = plain.tokenizer.decode(free.token_ids[:1])
    answer = only(llm.generate(PROMPT, seeded(**controls, stop=stop, min_tokens=6)))
    assert len(answer.token_ids) > 6
    assert answer.text.startswith(stop)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 8])
def test_max_tokens(max_tokens, llm: LLM, plain: LLM) -> None:
    answer = only(llm.generate(PROMPT, seeded(max_tokens=max_tokens)))
    assert answer.token_ids == only(plain.generate(PROMPT, seeded(max_tokens=20))).token_ids[:max_tokens]
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(("length", "max_tokens"), [(1, None), (100, 500), (120, None), (126, 500), (127, None)])
def test_the_end_of_the_context(length, max_tokens, llm: LLM, plain: LLM) -> None:
    prompt, params = random_prompt(length, length), greedy(max_tokens=max_tokens, ignore_eos=True)
    answer = only(llm.generate(prompt, params))
    assert length + len(answer.token_ids) == 128 == llm.max_model_len
    assert answer.finish_reason == "length"
    assert answer.token_ids == only(plain.generate(prompt, params)).token_ids
    assert_idle(llm.engine)


def test_a_shorter_context_than_the_models(checkpoints) -> None:
    llm = make(checkpoints.llama, checkpoints.near, max_model_len=32)
    assert len(only(llm.generate(PROMPT, greedy(max_tokens=None, ignore_eos=True))).token_ids) == 32 - len(PROMPT)


def test_allowed_and_biased_tokens(llm: LLM, plain: LLM) -> None:
    allowed = list(range(20, 40))
    answer = only(llm.generate(PROMPT, seeded(allowed_token_ids=allowed, max_tokens=30)))
    assert set(answer.token_ids) <= set(allowed)
    assert len(set(answer.token_ids)) > 5
    free = only(plain.generate(PROMPT, seeded())).token_ids
    biased = only(llm.generate(PROMPT, seeded(logit_bias=dict.fromkeys(free, -100.0)))).token_ids
    assert not set(biased) & set(free)
    assert biased == only(plain.generate(PROMPT, seeded(logit_bias=dict.fromkeys(free, -100.0)))).token_ids


def test_bad_words_never_appear(llm: LLM, plain: LLM, readable) -> None:
    controls = {"allowed_token_ids": readable[:6], "max_tokens": 40}
    free = only(plain.generate(PROMPT, seeded(**controls)))
    letters = [plain.tokenizer.decode([token]) for token in free.token_ids[:2]]
    words = [letters[0], letters[1] * 2]
    banned = [plain.tokenizer.encode(word, add_special_tokens=False) for word in words]
    answer = only(llm.generate(PROMPT, seeded(**controls, bad_words=words)))
    assert answer.token_ids == only(plain.generate(PROMPT, seeded(**controls, bad_words=words))).token_ids
    for word in banned:
        found = [answer.token_ids[i : i + len(word)] for i in range(len(answer.token_ids))]
        assert word not in found


def test_white_space_is_banned(llm: LLM) -> None:
    word = "\n"
    tokens = llm.tokenizer.encode(word, add_special_tokens=False)
    controls = {"allowed_token_ids": [*tokens, 300], "logit_bias": dict.fromkeys(tokens, 50.0)}
    assert word in only(llm.generate(PROMPT, greedy(**controls))).text
    assert word not in only(llm.generate(PROMPT, greedy(**controls, bad_words=[word]))).text


def test_unseeded_calls_differ_and_repeat_with_the_engines_seed(checkpoints) -> None:
    params = seeded(None, max_tokens=16)
    first, again, other = (make(checkpoints.llama, seed=seed) for seed in (1, 1, 2))
    texts = tokens_of(first.generate([PROMPT, PROMPT], params))
    assert texts[0] != texts[1]
    assert tokens_of(again.generate([PROMPT, PROMPT], params)) == texts
    assert tokens_of(other.generate([PROMPT, PROMPT], params)) != texts

"""Prompts have the lengths that were asked for; every format of prompts is read, and a bad line is named."""

from __future__ import annotations

import json

import pytest

from paceline.benchmark.drive import DECODE, PREFILL, drive
from paceline.benchmark.workloads import (
    ChatDialogue,
    TextPrompt,
    TokenDialogue,
    fitted,
    plain_token_ids,
    read_prompts,
    shared_prefix,
    synthetic,
)
from paceline.core.call import CallOptions
from paceline.core.errors import ConfigError
from paceline.core.params import SamplingParams

VOCABULARY = range(3, 320)


@pytest.mark.parametrize("length", [1, 2, 17, 200])
def test_synthetic_prompts_have_exactly_their_length(length):
    dialogues = synthetic(5, length, vocabulary=VOCABULARY, seed=4)
    prompts = [dialogue.prompt([]) for dialogue in dialogues]
    assert [len(prompt) for prompt in prompts] == [length] * 5
    assert dialogues == synthetic(5, length, vocabulary=VOCABULARY, seed=4)
    assert dialogues != synthetic(5, length, vocabulary=VOCABULARY, seed=5)
    assert {token for prompt in prompts for token in prompt} <= set(VOCABULARY)


def test_texts_are_made_to_length_from_their_end():
    assert fitted([1, 2, 3, 4, 5], 3) == [3, 4, 5]
    assert fitted([1, 2, 3], 3) == [1, 2, 3]
    assert fitted([1, 2, 3], 8) == [2, 3, 1, 2, 3, 1, 2, 3]
    for tokens, length in (([], 3), ([1], 0)):
        with pytest.raises(ConfigError):
            fitted(tokens, length)


def test_dialogues_share_their_beginning_and_grow_by_the_answers():
    dialogues = shared_prefix(3, 20, 5, 2, vocabulary=VOCABULARY, seed=0)
    firsts = [dialogue.prompt([]) for dialogue in dialogues]
    assert len({tuple(prompt[:20]) for prompt in firsts}) == 1
    assert len({tuple(prompt[20:]) for prompt in firsts}) == 3
    second = dialogues[0].prompt([[7, 8, 9]])
    assert len(second) == 20 + 5 + 3 + 5
    assert second[:28] == [*firsts[0], 7, 8, 9]


def test_shapes_that_make_no_sense_are_refused():
    for count, prefix, turn, turns in ((0, 0, 1, 1), (1, -1, 1, 1), (1, 0, 0, 1), (1, 0, 1, 0)):
        with pytest.raises(ConfigError):
            shared_prefix(count, prefix, turn, turns, vocabulary=VOCABULARY, seed=0)


def test_special_tokens_are_in_no_prompt(llm):
    ids = plain_token_ids(320, llm.tokenizer, frozenset({9}))
    assert set(range(320)) - set(ids) == {9} | set(llm.tokenizer.special_ids)


LINES = {
    "spec-bench": [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        {"question_id": 82, "category": "qa", "turns": ["Who?"]},
    ],
    "humaneval": [{"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": ""}],
    "gsm8k": [{"question": "How many?", "answer": "#### 3"}],
    "plain": [{"prompt": "Once", "category": "tales"}, {"prompt": "Twice"}],
}
FOUND = {
    "spec-bench": [TextPrompt("mt_bench", ("Write.", "Again.")), TextPrompt("qa", ("Who?",))],
    "humaneval": [TextPrompt("humaneval", ("def f():\n",), chat=False)],
    "gsm8k": [TextPrompt("gsm8k", ("How many?",))],
    "plain": [TextPrompt("tales", ("Once",), chat=False), TextPrompt("plain", ("Twice",), chat=False)],
}


@pytest.mark.parametrize("form", LINES)
@pytest.mark.parametrize("named", [True, False])
def test_every_format_is_read(tmp_path, form, named):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES[form])) + "\n\n")
    assert read_prompts(path, form if named else None) == FOUND[form]


@pytest.mark.parametrize(
    ("form", "line", "cause"),
    [
        ("plain", "{", "not JSON"),
        ("plain", "[1]", "JSON object"),
        ("plain", '{"text": "x"}', "'prompt' is missing"),
        ("plain", '{"prompt": ""}', "must be text"),
        ("gsm8k", '{"question": 3, "answer": "x"}', "must be text, got 3"),
        ("humaneval", '{"prompt": "x"}', "'task_id' is missing"),
        ("spec-bench", '{"question_id": 1, "category": "qa", "turns": []}', "list of texts"),
        ("spec-bench", '{"question_id": 1, "category": "qa", "turns": "x"}', "list of texts"),
        ("spec-bench", '{"question_id": 1, "category": 2, "turns": ["x"]}', "'category' must be text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, form, line, cause):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(LINES[form][0]) + "\n" + line)
    with pytest.raises(ConfigError, match=cause) as refused:
        read_prompts(path, form)
    assert str(refused.value).startswith(f"{path}:2: ")


def test_files_that_hold_nothing_are_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    for content, cause in ((b"", "no prompts"), (b"\xff\xfe", "cannot be read"), (b'{"other": 1}', "no known format")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=cause):
            read_prompts(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "missing")
    with pytest.raises(ConfigError, match="unknown prompt format"):
        read_prompts(path, "other")


def test_turns_of_text_go_through_the_chat_template(llm):
    dialogue = ChatDialogue(llm.tokenizer, ("Hello", "And then?"), "qa")
    answer = llm.tokenizer.encode("the dog")
    first, second = dialogue.prompt([]), dialogue.prompt([answer])
    assert first == llm.tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    assert second[: len(first)] == first
    assert len(second) > len(first) + len(answer)


@pytest.mark.parametrize("speculate", [True, False])
def test_turns_are_driven_one_after_the_other_to_their_exact_lengths(llm, speculate):
    dialogues = [*shared_prefix(3, 16, 4, 2, vocabulary=VOCABULARY, seed=0), TokenDialogue(((5, 6, 7),), "alone")]
    params = [SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)] * 4
    found = drive(llm, dialogues, params, CallOptions(speculate=speculate, cache_salt=str(speculate)))
    assert sorted((a.category, a.turn, a.num_prompt_tokens, len(a.token_ids)) for a in found.answers) == [
        ("alone", 0, 3, 9),
        *[("shared prefix", 0, 20, 9)] * 3,
        *[("shared prefix", 1, 33, 9)] * 3,
    ]
    assert all(len(answer.times.times) == 9 for answer in found.answers)
    assert all(answer.times.time_to_first_token > 0 for answer in found.answers)
    assert sum(phase.num_tokens for phase in found.phases.values()) == 7 * 9
    assert found.phases[DECODE].num_steps > 0
    assert 0 < found.phases[PREFILL].seconds + found.phases[DECODE].seconds <= found.seconds
    yields = max(count for answer in found.answers for _, count in answer.times.steps)
    assert (yields > 1) == speculate

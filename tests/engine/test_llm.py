"""The public ``LLM``: what may be asked, what comes back, and that the tokens are those of transformers."""

from __future__ import annotations

import json

import pytest
import torch

from paceline import LLM, RequestOutput, SamplingParams, SpeculativeConfig
from tests.support.calls import END, assert_idle, greedy, make, only, random_prompt, seeded, tokens_of

TEXT = "The quick brown fox"
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def test_every_way_to_write_a_prompt(plain: LLM) -> None:
    ids = plain.tokenizer.encode(TEXT)
    ways = [TEXT, ids, tuple(ids), {"prompt_token_ids": ids}, {"prompt": TEXT}, [TEXT], [ids]]
    expected = only(plain.generate(TEXT, greedy())).token_ids
    assert [only(plain.generate(way, greedy())).token_ids for way in ways] == [expected] * len(ways)
    together = plain.generate([TEXT, ids, {"prompt_token_ids": ids}], greedy())
    assert tokens_of(together) == [[expected]] * 3


def test_params_for_all_or_one_each(plain: LLM) -> None:
    long, short = greedy(max_tokens=9), greedy(max_tokens=4)
    together = plain.generate([TEXT, TEXT], [long, short])
    assert [len(output.outputs[0].token_ids) for output in together] == [9, 4]
    assert together[1].outputs[0].token_ids == together[0].outputs[0].token_ids[:4]
    assert len(only(plain.generate(TEXT)).token_ids) == SamplingParams().max_tokens


def test_chat_goes_through_the_template(llm: LLM, plain: LLM) -> None:
    other = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]
    prompts = [plain.tokenizer.encode_chat(one) for one in (CHAT, other)]
    expected = tokens_of(plain.generate(prompts, greedy()))
    assert tokens_of(llm.chat(CHAT, greedy())) == expected[:1]
    outputs = llm.chat([CHAT, other], greedy())
    assert tokens_of(outputs) == expected
    assert [output.prompt_token_ids for output in outputs] == prompts


def test_what_comes_back(llm: LLM) -> None:
    (output,) = llm.generate(TEXT, greedy(logprobs=2))
    assert isinstance(output, RequestOutput)
    assert output.prompt == TEXT
    assert output.prompt_token_ids == llm.tokenizer.encode(TEXT)
    assert output.finished
    (answer,) = output.outputs
    assert (answer.index, answer.finish_reason, answer.stop_reason, answer.error) == (0, "length", None, None)
    assert len(answer.token_ids) == len(answer.logprobs) == len(answer.token_drafted) == 12
    assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
    assert answer.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in answer.logprobs))
    metrics = output.metrics
    assert metrics.num_accepted == sum(answer.token_drafted)
    assert metrics.time_to_first_token > 0
    assert metrics.time_per_output_token >= 0
    assert metrics.mean_acceptance_length == 12 / (12 - metrics.num_accepted)


def test_metrics_of_speculation(plain: LLM, perfect: LLM) -> None:
    (without,), (with_drafts,) = (llm.generate(TEXT, greedy(max_tokens=14)) for llm in (plain, perfect))
    assert without.metrics.num_drafted == without.metrics.num_accepted == 0
    assert without.metrics.mean_acceptance_length == 1.0
    assert not any(without.outputs[0].token_drafted)
    assert with_drafts.metrics.num_drafted == with_drafts.metrics.num_accepted == 12
    assert with_drafts.metrics.mean_acceptance_length == 7.0
    assert with_drafts.outputs[0].token_drafted == ([True] * 6 + [False]) * 2


def test_stats_add_up(checkpoints) -> None:
    llm = make(checkpoints.llama, checkpoints.near)
    outputs = llm.generate([random_prompt(seed, 12) for seed in range(4)], seeded(max_tokens=10))
    stats = json.loads(json.dumps(llm.stats()))
    speculation = stats["speculation"]
    assert 0 < speculation["num_accepted"] < speculation["num_drafted"]
    assert sum(speculation["accepted_per_position"]) == speculation["num_accepted"]
    assert speculation["accepted_per_position"] == sorted(speculation["accepted_per_position"], reverse=True)
    assert speculation["accepted_per_position"][0] <= speculation["num_drafts"]
    for name in ("num_drafted", "num_accepted"):
        assert speculation[name] == sum(getattr(output.metrics, name) for output in outputs)
    assert stats["num_generated_tokens"] == 40
    assert stats["finished"] == {"length": 4}
    assert (speculation["num_failures"], speculation["num_rejected_drafts"], speculation["disabled"]) == (0, 0, False)
    assert set(stats["memory_bytes"]) == {"target_weights", "draft_weights", "kv_target", "kv_draft"}
    assert min(stats["memory_bytes"].values()) > 0
    pages = stats["pages"]
    assert pages["free"] + pages["cached"] == pages["total"] > pages["referenced"] == 0
    assert_idle(llm.engine)


@pytest.mark.parametrize(
    "speculation",
    [
        None,
        {"method": "ngram"},
        {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_min": 1, "prompt_lookup_max": 3},
        SpeculativeConfig(method="ngram", prompt_lookup_min=1),
        {"method": "draft_model", "model": "far", "num_speculative_tokens": 2, "verifier": "match"},
        {"method": "draft_model", "model": "gpt2"},
    ],
    ids=str,
)
def test_every_kind_of_speculation_gives_the_same_tokens(speculation, checkpoints, plain: LLM) -> None:
    if isinstance(speculation, dict) and "model" in speculation:
        speculation = {**speculation, "model": str(getattr(checkpoints, speculation["model"]))}
    llm = make(checkpoints.llama, speculative_config=speculation)
    prompts = [random_prompt(5, 20), random_prompt(6, 9)]
    assert tokens_of(llm.generate(prompts, seeded())) == tokens_of(plain.generate(prompts, seeded()))
    drafted = llm.stats()["speculation"]["num_drafted"]
    assert tokens_of(llm.generate(prompts, seeded(), speculate=False)) == tokens_of(plain.generate(prompts, seeded()))
    assert llm.stats()["speculation"]["num_drafted"] == drafted
    assert bool(drafted) == (speculation is not None)


def test_the_next_turn_finds_the_whole_answer_cached(checkpoints, plain: LLM) -> None:
    """Also if the answer ended inside a draft."""
    prompt = random_prompt(7, 9)
    free = only(plain.generate(prompt, seeded(max_tokens=20))).token_ids
    stop = next(token for place, token in enumerate(free) if place >= 10 and token not in free[:place])
    for draft in (None, checkpoints.llama):
        llm = make(checkpoints.llama, draft, depth=6, block_size=4)
        turn = prompt + only(llm.generate(prompt, seeded(max_tokens=20, stop_token_ids=[stop]))).token_ids
        (output,) = llm.generate([*turn, 5], greedy())
        assert output.metrics.num_cached_tokens >= len(turn) - 4
        assert tokens_of([output]) == tokens_of(plain.generate([*turn, 5], greedy()))


def test_auto_without_the_embedded_target_does_not_speculate(checkpoints) -> None:
    assert LLM(str(checkpoints.llama), device="cpu").engine.proposer is None


@pytest.mark.parametrize("params", [greedy(max_tokens=30), seeded(8, max_tokens=30)], ids=["greedy", "seeded"])
def test_text_is_the_decoded_tokens(params, llm: LLM) -> None:
    for output in llm.generate([random_prompt(seed, 7) for seed in range(3)], params):
        (answer,) = output.outputs
        assert answer.text == llm.tokenizer.decode(answer.token_ids)
        assert answer.text


def test_special_tokens_show_on_demand_but_never_the_one_that_ended_the_answer(llm: LLM) -> None:
    forced = {"logit_bias": {END: 100.0}, "min_tokens": 2, "skip_special_tokens": False}
    answer = only(llm.generate(TEXT, greedy(**forced)))
    assert answer.token_ids[-1] == END
    assert answer.text == llm.tokenizer.decode(answer.token_ids[:-1], skip_special_tokens=False)
    shown = only(llm.generate(TEXT, greedy(allowed_token_ids=[END], ignore_eos=True, skip_special_tokens=False)))
    assert shown.text == llm.tokenizer.decode([END] * 12, skip_special_tokens=False) != ""


def test_a_model_without_a_tokenizer_takes_and_gives_token_ids(checkpoints, plain: LLM) -> None:
    llm = make(checkpoints.without_tokenizer)
    prompt = random_prompt(1, 9)
    answer = only(llm.generate(prompt, greedy(detokenize=True)))
    assert answer.token_ids == only(plain.generate(prompt, greedy())).token_ids
    assert answer.text == ""


def test_detokenize_false_gives_tokens_without_text(plain: LLM) -> None:
    silent, usual = (only(plain.generate(TEXT, greedy(detokenize=detokenize))) for detokenize in (False, True))
    assert silent.token_ids == usual.token_ids
    assert silent.text == ""


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("drafter", [None, "far"])
def test_greedy_tokens_are_those_of_transformers(family, drafter, checkpoints) -> None:
    llm = make(getattr(checkpoints, family), getattr(checkpoints, drafter) if drafter else None)
    prompts = [random_prompt(seed, length) for seed, length in ((1, 5), (2, 21), (3, 40))]
    outputs = llm.generate(prompts, greedy(max_tokens=24))
    reference = checkpoints.reference[family]
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        assert output.outputs[0].token_ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("ask", ["generate", "chat"])
def test_a_salt_separates_whoever_asks(ask, checkpoints):
    """Also on its way through the calls of an LLM."""
    llm = make(checkpoints.llama, block_size=4)
    prompt = {"generate": random_prompt(4, 20), "chat": [{"role": "user", "content": "hello there " * 2}]}[ask]

    def cached(salt: str) -> int:
        return getattr(llm, ask)(prompt, greedy(max_tokens=2), cache_salt=salt)[0].metrics.num_cached_tokens

    assert cached("mine") == cached("another's") == 0
    assert cached("mine") == cached("another's") > 0

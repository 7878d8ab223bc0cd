"""What people write who come from vLLM and transformers works, or is refused by name with what to write instead."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from paceline import LLM, ConfigError, InvalidRequestError, SamplingParams
from paceline.core.config import EngineConfig
from tests.support.calls import VOCAB_SIZE, assert_idle, greedy, make, random_prompt, tokens_of

ONE, TWO = random_prompt(1, 8), random_prompt(2, 8)
HELLO = [{"role": "user", "content": "hello"}]


def same(outputs, expected) -> None:
    assert tokens_of(outputs) == expected
    for output in outputs:
        assert {type(token) for token in output.prompt_token_ids} == {int}


@pytest.mark.parametrize(
    "make_prompts",
    [
        lambda: np.array([ONE, TWO]),
        lambda: [np.array(ONE, dtype=np.uint16), np.array(TWO)],
        lambda: torch.tensor([ONE, TWO]),
        lambda: [torch.tensor(ONE, dtype=torch.int32), torch.tensor(TWO)],
        lambda: (torch.tensor(ids) for ids in (ONE, TWO)),
        lambda: (ids for ids in (ONE, TWO)),
        lambda: map(tuple, (ONE, TWO)),
        lambda: deque([ONE, [torch.tensor(token) for token in TWO]]),
        lambda: dict(enumerate((ONE, TWO))).values(),
        lambda: {"input_ids": [ONE, TWO]},
        lambda: {"input_ids": torch.tensor([ONE, TWO]), "token_type_ids": torch.zeros(2, 8, dtype=torch.int64)},
        lambda: {"input_ids": [[0, 0, *ONE], [*TWO, 0, 0]], "attention_mask": [[0] * 2 + [1] * 8, [1] * 8 + [0] * 2]},
        lambda: [{"input_ids": torch.tensor([ONE])}, {"input_ids": TWO}],
        lambda: [{"prompt_token_ids": np.array(ONE), "multi_modal_data": None}, {"prompt_token_ids": TWO}],
    ],
)
def test_arrays_tensors_and_generators_are_prompts(make_prompts, plain: LLM) -> None:
    expected = tokens_of(plain.generate([ONE, TWO], greedy()))
    same(plain.generate(make_prompts(), greedy()), expected)
    assert len(plain.embed(make_prompts())) == 2


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, iter, deque], ids=lambda kind: kind.__name__)
def test_integers_in_anything_are_one_prompt(kind, plain: LLM) -> None:
    same(plain.generate(kind(ONE), greedy()), tokens_of(plain.generate(ONE, greedy())))


VLLM = {"tensor_parallel_size": 1, "trust_remote_code": False, "disable_log_stats": True, "swap_space": 4}
VLLM |= {"load_format": "auto", "enable_chunked_prefill": True, "disable_log_stats": True, "task": "generate"}
VLLM |= {"quantization_param_path": None, "block_size": None, "seed": None, "num_blocks": None, "hf_overrides": {}}


def test_options_of_vllm_that_ask_for_nothing_pass(checkpoints, plain: LLM) -> None:
    path = checkpoints.llama
    llm = LLM(path, tokenizer=str(path), max_model_len=128, **VLLM)
    assert llm.engine.config == EngineConfig(max_model_len=128)
    same(llm.generate([ONE], greedy()), tokens_of(plain.generate([ONE], greedy())))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel_size", 2),
        ("trust_remote_code", True),
        ("enable_lora", True),
        ("gpu_memory_utilization", 0.9),
        ("enable_prefix_cachin", False),
        ("tokenizer", "another"),
        ("load_format", "dummy"),
    ],
)
def test_options_that_ask_for_something_are_refused_by_name(checkpoints, name, value) -> None:
    with pytest.raises(ConfigError, match=f"unknown engine option '{name}'"):
        LLM(checkpoints.llama, **{name: value})


def test_texts_in_an_array_or_a_generator(plain: LLM) -> None:
    expected = tokens_of(plain.generate(["hello", "there"], greedy()))
    for prompts in (np.array(["hello", "there"]), (text for text in ("hello", "there")), io.StringIO("hello\nthere")):
        texts = (line.strip() for line in prompts) if isinstance(prompts, io.StringIO) else prompts
        assert tokens_of(plain.generate(texts, greedy())) == expected


def test_what_a_tokenizer_of_transformers_returns(plain: LLM, checkpoints) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoints.llama / "tokenizer.json"), pad_token="</s>")
    texts = ["hello", "hello there, you"]
    expected = tokens_of(plain.generate(texts, greedy()))
    for side in ("left", "right"):
        tokenizer.padding_side = side
        assert tokens_of(plain.generate(tokenizer(texts, padding=True, return_tensors="pt"), greedy())) == expected
    assert tokens_of(plain.generate(tokenizer(texts), greedy())) == expected
    assert tokens_of(plain.generate(tokenizer(texts[0], return_tensors="pt").input_ids, greedy())) == expected[:1]


def test_names_of_vllm(plain: LLM) -> None:
    expected = tokens_of(plain.generate([ONE, TWO], greedy()))
    ask = plain.generate
    same(ask([ONE, TWO], sampling_params=greedy(), use_tqdm=False, lora_request=None), expected)
    same(ask(prompts=[ONE, TWO], sampling_params=[greedy(), greedy()], use_tqdm=True), expected)
    same(ask(prompt_token_ids=[ONE, TWO], sampling_params=greedy()), expected)
    same(ask(prompt_token_ids=ONE, sampling_params=greedy()), expected[:1])
    same(ask(None, greedy(), prompt_token_ids=np.array([ONE, TWO])), expected)
    outputs = ask(["one", "two"], greedy(), prompt_token_ids=[ONE, TWO])
    same(outputs, expected)
    assert [output.prompt for output in outputs] == ["one", "two"]
    same(ask([ONE, TWO], (greedy() for _ in range(2)), priority=np.array([1, 0])), expected)


def test_chat_as_in_vllm(plain: LLM) -> None:
    expected = tokens_of(plain.chat(HELLO, greedy()))
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    more = {"chat_template": None, "tools": [], "chat_template_content_format": "auto", "continue_final_message": False}
    assert tokens_of(plain.chat(HELLO, sampling_params=greedy(), use_tqdm=False, **more)) == expected
    assert tokens_of(plain.chat(messages=iter(parts), sampling_params=greedy())) == expected
    assert tokens_of(plain.chat((one for one in [HELLO, parts]), greedy())) == expected * 2
    ids = plain.chat(HELLO, greedy(), add_generation_prompt=False)[0].prompt_token_ids
    assert ids == plain.tokenizer.encode_chat(HELLO, add_generation_prompt=False)


def test_a_prompt_brings_its_own_salt(checkpoints) -> None:
    llm = make(checkpoints.llama, block_size=4)
    prompt = random_prompt(4, 20)

    def cached(salt: str | None, **more: str) -> int:
        outputs = llm.generate({"prompt_token_ids": prompt, "cache_salt": salt}, greedy(max_tokens=2), **more)
        return outputs[0].metrics.num_cached_tokens

    assert cached("mine") == cached("another's") == cached(None) == 0
    assert cached("mine") > 0
    assert cached(None, cache_salt="mine") > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_tokens": 5}, ["max_tokens", "SamplingParams(max_tokens=...)"]),
        ({"max_new_tokens": 5}, ["max_new_tokens", "SamplingParams(max_tokens=...)"]),
        ({"lora_request": object()}, ["lora_request", "Leave it out"]),
        ({"sampling_params": greedy()}, ["params and sampling_params"]),
        ({"prompt_token_ids": [ONE, TWO]}, ["1 prompts, but 2 prompt_token_ids"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_there_is_not_is_refused_by_name(arguments, words, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plain.generate("hello", greedy(), **arguments)
    assert all(word in str(caught.value) for word in words)
    assert_idle(plain.engine)


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt": "hello", "multi_modal_data": {"image": object()}},
        {"prompt_token_ids": ONE, "attention_mask": [1] * 8},
        {"input_ids": [ONE], "token_type_ids": [[1] * 8]},
        {"input_ids": [ONE], "attention_mask": [[1] * 7]},
        {"prompt_embeds": torch.zeros(3, 4)},
        {"prompt": {"prompt": "hello"}},
        np.array([1.5, 2.5]),
        torch.tensor([[True, False]]),
        np.zeros((2, 2, 2), dtype=np.int64),
        np.array(["hello"]).astype("S"),
        torch.tensor([-100, 5]),
    ],
    ids=lambda prompt: str(prompt)[:40],
)
def test_what_no_prompt_can_hold_is_refused(prompt, plain: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        plain.generate(prompt, greedy())
    assert_idle(plain.engine)


def test_which_of_many_was_bad(plain: LLM) -> None:
    prompts = [list(ONE) for _ in range(5011)]
    prompts[4710] = [*ONE, VOCAB_SIZE]
    with pytest.raises(InvalidRequestError, match=rf"^prompts\[4710\] of 5011: .*got {VOCAB_SIZE}") as caught:
        plain.generate(prompts, greedy())
    assert caught.value.param == "prompt_token_ids"
    with pytest.raises(InvalidRequestError, match=r"^prompts\[2\] of 3: ") as caught:
        plain.embed([ONE, "hello", [5] * 4000])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(InvalidRequestError, match=r"^prompts\[1\] of 2: .*stop"):
        plain.generate([ONE, ONE], [greedy(), greedy(stop_token_ids=[VOCAB_SIZE])])
    with pytest.raises(InvalidRequestError, match=r"^params\[1\] of 2: "):
        plain.generate([ONE, ONE], [greedy(), {"max_tokens": 3}])
    with pytest.raises(InvalidRequestError, match=r"^messages\[1\] of 3: .*'robot'"):
        plain.chat([HELLO, [{"role": "robot", "content": "x"}], HELLO], greedy())
    long = [{"role": "user", "content": "word " * 400}]
    with pytest.raises(InvalidRequestError, match=r"^messages\[1\] of 2: ") as caught:
        plain.chat([HELLO, long], greedy())
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(InvalidRequestError, match=r"^messages\[1\] of 2: .*stop"):
        plain.chat([HELLO, HELLO], [greedy(), greedy(stop_token_ids=[VOCAB_SIZE])])
    with pytest.raises(InvalidRequestError) as caught:
        plain.chat(long, greedy())
    assert "prompts" not in str(caught.value)
    with pytest.raises(InvalidRequestError, match=r"^prompt_token_ids must be"):
        plain.generate([VOCAB_SIZE], greedy())
    assert_idle(plain.engine)


class Bar:
    """Stands in tqdm's place, as a program's own class may."""

    def __init__(self, *, total: int, desc: str) -> None:
        self.total, self.done, self.closed = total, 0, False
        Bar.last = self

    def update(self, count: int) -> None:
        assert not self.closed
        self.done += count

    def close(self) -> None:
        self.closed = True


def test_a_bar_of_ones_own_counts_every_prompt(plain: LLM) -> None:
    plain.generate([ONE, TWO, ONE], greedy(), use_tqdm=Bar)
    assert (Bar.last.total, Bar.last.done, Bar.last.closed) == (3, 3, True)


BARS = """
import sys
from paceline import LLM, SamplingParams
from paceline.engine import progress_bar
progress_bar.DELAY_SECONDS = 0
llm = LLM(sys.argv[1], device="cpu", max_num_seqs=2)
llm.generate([[5, 6]] * int(sys.argv[2]), SamplingParams(max_tokens=3), use_tqdm=sys.argv[3] == "on")
"""


def standard_error(model: Path, count: int, wanted: str, *, terminal: bool) -> str:
    mine, its = os.openpty() if terminal else os.pipe()
    if terminal:
        termios = pytest.importorskip("termios")
        termios.tcsetwinsize(its, (24, 80))
    with subprocess.Popen([sys.executable, "-c", BARS, str(model), str(count), wanted], stderr=its) as process:
        os.close(its)
        found = b""
        while True:
            try:
                some = os.read(mine, 4096)
            except OSError:  # how a terminal says that nobody writes any more
                break
            if not some:
                break
            found += some
    os.close(mine)
    assert process.returncode == 0
    return found.decode()


def test_the_bar_shows_on_a_terminal_only(checkpoints) -> None:
    shown = standard_error(checkpoints.llama, 20, "on", terminal=True)
    assert "prompts" in shown
    assert "20/20" in shown
    assert standard_error(checkpoints.llama, 20, "on", terminal=False) == ""
    assert standard_error(checkpoints.llama, 20, "off", terminal=True) == ""
    assert standard_error(checkpoints.llama, 1, "on", terminal=True) == ""


def test_a_closed_standard_error_shows_no_bar(plain: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.TextIOWrapper(io.BytesIO())):
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        assert len(plain.generate([ONE, TWO], SamplingParams(max_tokens=2))) == 2

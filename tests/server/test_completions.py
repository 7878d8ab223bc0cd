"""``/v1/completions`` over the scripted engine: shapes, indexes, echo, places in the text, refusals."""

from __future__ import annotations

import pytest

from paceline.server.legacy_logprobs import LegacyLogprobs
from tests.support.http_calls import HELLO, assert_error, events, post
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tokenizers import KINDS, byte_level

ANSWER = "Hello wörld, this is an answer."
PATH = "/v1/completions"


def choices(body, **fields):
    response = post(ScriptedEngine(), PATH, **({"prompt": "hello", "max_tokens": 100} | body | fields))
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def joined(body):
    """The choices of a streamed call, put together."""
    *chunks, done = events(post(ScriptedEngine(), PATH, stream=True, **({"prompt": "hello", "max_tokens": 100} | body)))
    assert done == "[DONE]"
    found = {}
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        (part,) = chunk["choices"]
        whole = found.setdefault(part["index"], {"text": "", "logprobs": None})
        whole["text"] += part["text"]
        whole["finish_reason"] = part["finish_reason"]
        if part["logprobs"] is not None:
            whole["logprobs"] = whole["logprobs"] or {name: [] for name in part["logprobs"]}
            for name, items in part["logprobs"].items():
                whole["logprobs"][name] += items
    return [found[index] for index in sorted(found)]


def test_a_whole_completion():
    engine = ScriptedEngine()
    body = post(engine, PATH, prompt="hello", max_tokens=100).json()
    prompt, params, _ = engine.calls[0]
    assert prompt == engine.tokenizer.encode("hello")
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert (choice["index"], choice["text"], choice["logprobs"]) == (0, ANSWER, None)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert len(choice["paceline"]["drafted"]) == body["usage"]["completion_tokens"] == len(engine.script)
    assert body["usage"]["prompt_tokens"] == len(prompt)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert body["paceline"]["accepted_tokens"] == 2
    assert post(engine, PATH, prompt="hello").json()["usage"]["completion_tokens"] == 16
    assert params.max_tokens == 100


@pytest.mark.parametrize(
    ("prompt", "number"), [("one", 1), (["one", "two", "three"], 3), ([5, 6, 7], 1), ([[5, 6], [7]], 2), (["one"], 1)]
)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("echo", [False, True])
def test_every_way_to_write_prompts_streaming_or_not(prompt, number, n, echo):
    body = {"prompt": prompt, "n": n, "echo": echo, "logprobs": 1}
    whole = choices(body)
    assert [choice["index"] for choice in whole] == list(range(number * n))
    each = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    for choice, one in zip(whole, [one for one in each for _ in range(n)], strict=True):
        text = one if isinstance(one, str) else byte_level().decode(one)
        assert choice["text"] == (text if echo else "") + ANSWER
    names = ("text", "logprobs", "finish_reason")
    assert joined(body) == [{name: choice[name] for name in names} for choice in whole]


def test_several_prompts_are_calls_of_their_own_with_one_usage():
    engine = ScriptedEngine()
    *_, last, _done = events(
        post(engine, PATH, prompt=[[5, 6], [7]], n=2, stream=True, stream_options={"include_usage": True})
    )
    assert sorted(prompt for prompt, _, _ in engine.calls) == [[5, 6], [7]]
    usage = {"prompt_tokens": 3, "completion_tokens": 64, "total_tokens": 67}
    assert last["choices"] == []
    assert usage.items() <= last["usage"].items()
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    whole = post(engine, PATH, prompt=[[5, 6], [7]], n=2).json()
    assert whole["usage"] == last["usage"]
    assert whole["paceline"]["drafted_tokens"] == 6


def test_best_of_hands_back_what_the_engine_selected():
    engine = ScriptedEngine()
    engine_choices = post(engine, PATH, prompt="x", n=2, best_of=5, max_tokens=3).json()
    assert [choice["index"] for choice in engine_choices["choices"]] == [0, 1]
    assert engine_choices["usage"]["completion_tokens"] == 15
    assert (engine.calls[0][1].n, engine.calls[0][1].best_of) == (2, 5)
    assert_error(post(engine, PATH, prompt="x", n=2, best_of=5, stream=True), 400, param="best_of")
    assert_error(post(engine, PATH, prompt="x", n=2, best_of=1), 400, param="best_of")


def test_echo_with_logprobs_measures_the_prompt():
    engine = ScriptedEngine()
    body = post(engine, PATH, prompt="hello wörld", echo=True, logprobs=1, max_tokens=0).json()
    (choice,) = body["choices"]
    prompt, params, _ = engine.calls[0]
    lists = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == ("hello wörld", "length")
    assert (params.max_tokens, params.prompt_logprobs) == (1, 1)
    assert body["usage"]["completion_tokens"] == 0
    assert {len(items) for items in lists.values()} == {len(prompt)}
    assert (lists["token_logprobs"][0], lists["top_logprobs"][0]) == (None, None)
    assert lists["token_logprobs"][1:] == [-1.5] * (len(prompt) - 1)
    # The token itself is listed, also where it is not among the likeliest.
    assert all(-1.5 in top.values() and max(top.values()) == -0.25 for top in lists["top_logprobs"][1:])
    (streamed,) = joined({"prompt": "hello wörld", "echo": True, "logprobs": 1, "max_tokens": 0})
    assert streamed == {name: choice[name] for name in streamed}


def test_logprobs_of_the_answer_alone():
    (choice,) = choices({"logprobs": 0})
    lists = choice["logprobs"]
    assert [len(top) for top in lists["top_logprobs"]] == [2] * len(ScriptedEngine().script)
    assert set(lists["token_logprobs"]) == {-0.5}
    assert min(min(top.values()) for top in lists["top_logprobs"]) == -9999.0
    assert choices({})[0]["logprobs"] is None


TEXT = "hello 你好 😀 the wörld"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 3, 9])
def test_each_token_begins_where_the_text_says(kind, cut):
    """The text from a token's place to that of the next whole character is what the tokens between them spell."""
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    lists = LegacyLogprobs(tokenizer, skip_special_tokens=True, after=ids[:cut], start=10)
    offsets = lists.part(ids[cut:], [None] * len(ids[cut:]))["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[0] == 10
    ends = [*offsets[1:], 10 + len(lists.text)]
    pieces = [lists.text[start - 10 : end - 10] for start, end in zip(offsets, ends, strict=True)]
    assert "".join(pieces) == lists.text
    names = lists.part([], [])
    assert names["tokens"] == []
    for token, piece in zip(ids[cut:], pieces, strict=True):
        alone = tokenizer.decode([token])
        if "\ufffd" not in alone and piece:
            assert piece.strip() == alone.strip()


def test_parts_of_a_character_share_its_place_and_show_their_bytes():
    tokenizer = byte_level()
    ids = tokenizer.encode("a鿿b", add_special_tokens=False)
    lists = LegacyLogprobs(tokenizer, skip_special_tokens=True).part(ids, [None] * len(ids))
    assert lists["text_offset"] == [0, 1, 1, 1, 2]
    assert lists["tokens"] == ["a", "bytes:\\xe9", "bytes:\\xbf", "bytes:\\xbf", "b"]


def test_what_a_stop_string_cut_off_lies_at_the_end():
    (choice,) = choices({"logprobs": 0, "stop": "this"})
    assert choice["text"] == "Hello wörld, "
    assert max(choice["logprobs"]["text_offset"]) <= len(choice["text"])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "this")


def test_every_extra_reaches_the_engine():
    engine = ScriptedEngine()
    fields = {
        "min_p": 0.1, "top_k": 3, "repetition_penalty": 1.5, "min_tokens": 2, "stop_token_ids": [3], "bad_words": ["x"],
        "allowed_token_ids": [1, 2], "ignore_eos": True, "include_stop_str_in_output": True, "seed": 4,
        "skip_special_tokens": False,
    }  # fmt: skip
    body = fields | {"speculation": False, "priority": -3, "stream": None, "suffix": None, "user": "me"}
    assert post(engine, PATH, prompt="x", **body).status_code == 200
    _, params, options = engine.calls[0]
    given = {name: getattr(params, name) for name in fields}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()} == fields
    assert (options.speculate, options.priority, options.pooling) == (False, -3, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", []), ("prompt", [[]]), ("prompt", ["a", 1]), ("prompt", [1, "a"]), ("prompt", [[1], "a"]),
        ("prompt", 3), ("prompt", None), ("prompt", [True]), ("prompt", [1.0]), ("prompt", [-1]), ("prompt", [320]),
        ("prompt", [[[1]]]), ("prompt", {"a": 1}), ("prompt", ["x"] * 257), ("prompt", [10**30]), ("prompt", ""),
        ("suffix", "end"), ("max_tokens", 0), ("max_tokens", -2), ("logprobs", 21), ("logprobs", -1),
        ("logprobs", True), ("best_of", 65), ("echo", 1), ("n", 0), ("priority", 2**31),
        ("tools", [{"type": "function"}]), ("messages", HELLO), ("stream_options", {"include_usage": True}),
        ("response_format", {"type": "json_object"}),
    ],
)  # fmt: skip
def test_refusals(field, value):
    engine = ScriptedEngine()
    assert_error(post(engine, PATH, **({"prompt": "hello"} | {field: value})), 400, param=field)
    assert not engine.calls
    assert not engine.running


def test_bounds_over_fields():
    engine = ScriptedEngine()
    assert_error(post(engine, PATH, prompt=["x"] * 17, n=64), 400, param="n")
    assert_error(post(engine, PATH, prompt="x", echo=True, max_tokens=0, min_tokens=1), 400, param="min_tokens")
    assert_error(post(engine, PATH, prompt="x", max_tokens=3, max_completion_tokens=4), 400, param="max_tokens")
    assert not engine.calls


@pytest.mark.parametrize("stream", [False, True])
def test_one_prompt_that_fails_ends_the_others(stream):
    engine = ScriptedEngine(pause=0.01)
    honest = engine.generate

    def generate(prompt, params, *, request_id, options):
        if prompt == [7]:
            engine.fault = "error"
        return honest(prompt, params, request_id=request_id, options=options)

    engine.generate = generate
    response = post(engine, PATH, prompt=[[5], [6], [7]], stream=stream)
    if response.status_code == 200:
        assert events(response)[-1]["error"]["code"] == "generation_failed"
    else:
        assert_error(response, 500, code="generation_failed")
    assert len(engine.aborted) == 3
    assert not engine.running


def test_without_a_tokenizer_token_ids_still_do():
    engine = ScriptedEngine(tokenizer=False)
    assert post(engine, PATH, prompt=[5], max_tokens=2).json()["choices"][0]["paceline"]["drafted"] == [False, True]
    assert_error(post(engine, PATH, prompt="hello"), 400, param="prompt")
    assert_error(post(engine, PATH, prompt=[5], echo=True), 400, param="echo")
    assert_error(post(engine, PATH, prompt=[5], logprobs=1), 400, param="logprobs")

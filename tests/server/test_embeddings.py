"""``/v1/embeddings``, ``/tokenize`` and ``/detokenize``: shapes, encodings, refusals."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests.support.http_calls import HELLO, assert_error, post
from tests.support.scripted_engine import ScriptedEngine

ENGINE = ScriptedEngine()


@pytest.mark.parametrize(("given", "number"), [("one", 1), (["one", "two"], 2), ([5, 6], 1), ([[5, 6], [7], [8]], 3)])
def test_one_vector_per_input(given, number):
    engine = ScriptedEngine()
    body = post(engine, "/v1/embeddings", input=given).json()
    assert (body["object"], body["model"]) == ("list", "scripted")
    assert [item["index"] for item in body["data"]] == list(range(number))
    assert all(item["embedding"] == [0.6, -0.8] for item in body["data"])
    num_tokens = sum(len(prompt) for prompt, _, _ in engine.calls)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert body["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": 4 * number}}
    assert [options.pooling for _, _, options in engine.calls] == ["mean"] * number


def test_base64_and_pooling():
    engine = ScriptedEngine()
    body = post(engine, "/v1/embeddings", input="x", encoding_format="base64", pooling="last", priority=2).json()
    found = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_array_equal(found, np.array([0.6, -0.8], dtype=np.float32))
    assert (engine.calls[0][2].pooling, engine.calls[0][2].priority) == ("last", 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", []), ("input", ""), ("input", [""]), ("input", None), ("input", [[]]), ("input", [320]),
        ("input", ["x"] * 2049), ("input", [["a"]]), ("dimensions", 2), ("encoding_format", "int8"),
        ("pooling", "max"), ("stream", True), ("truncate_prompt_tokens", 9),
    ],
)  # fmt: skip
def test_refused_embeddings(field, value):
    engine = ScriptedEngine()
    assert_error(post(engine, "/v1/embeddings", **({"input": "x"} | {field: value})), 400, param=field)
    assert not engine.calls


def test_an_embedding_that_fails():
    engine = ScriptedEngine(fault="error")
    honest = engine.generate

    async def generate(prompt, params, *, request_id, options):
        async for update in honest(prompt, params, request_id=request_id, options=options):
            update.deltas[0] = type(update.deltas[0])(index=0, text="", token_ids=[], finish_reason="error")
            yield update

    engine.generate = generate
    assert_error(post(engine, "/v1/embeddings", input=[5]), 500, code="generation_failed")


def test_tokenize_a_text():
    body = post(ENGINE, "/tokenize", prompt="hello wörld", return_token_strs=True).json()
    assert body["tokens"] == ENGINE.tokenizer.encode("hello wörld")
    assert (body["count"], body["max_model_len"]) == (len(body["tokens"]), 4096)
    assert [ENGINE.tokenizer.backend.token_to_id(name) for name in body["token_strs"]] == body["tokens"]
    bare = post(ENGINE, "/tokenize", prompt="", add_special_tokens=False).json()
    assert (bare["tokens"], bare["count"], bare["token_strs"]) == ([], 0, None)


def test_tokenize_a_conversation():
    body = post(ENGINE, "/tokenize", messages=HELLO).json()
    assert body["tokens"] == ENGINE.tokenizer.encode_chat(HELLO)
    without = post(ENGINE, "/tokenize", messages=HELLO, add_generation_prompt=False, add_special_tokens=False).json()
    assert without["tokens"] == ENGINE.tokenizer.encode_chat(HELLO, add_generation_prompt=False)
    assert without["count"] < body["count"]


def test_detokenize_takes_back_what_tokenize_gave():
    tokens = post(ENGINE, "/tokenize", messages=HELLO).json()["tokens"]
    text = post(ENGINE, "/detokenize", tokens=tokens).json()["prompt"]
    assert text == ENGINE.tokenizer.apply_chat_template(HELLO)
    assert post(ENGINE, "/detokenize", tokens=[]).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": HELLO}), ("/tokenize", {"prompt": 3}),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}), ("/tokenize", {"messages": []}),
        ("/tokenize", {"prompt": "a", "chat_template": "{{ 1 }}"}), ("/detokenize", {}),
        ("/tokenize", {"messages": HELLO, "tools": [{"type": "function"}]}),
        ("/tokenize", {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": False}}),
        ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [320]}), ("/detokenize", {"tokens": "x"}),
        ("/detokenize", {"tokens": [True]}), ("/detokenize", {"tokens": [10**30]}), ("/detokenize", {"tokens": [[1]]}),
    ],
)  # fmt: skip
def test_refused_tokens(path, body):
    assert_error(post(ENGINE, path, **body), 400)


def test_without_a_tokenizer_there_is_nothing_to_tokenize():
    engine = ScriptedEngine(tokenizer=False)
    assert_error(post(engine, "/tokenize", prompt="x"), 400, param="prompt")
    assert_error(post(engine, "/detokenize", tokens=[1]), 400, param="tokens")
    assert_error(post(ENGINE, "/tokenize", prompt="x", model="other"), 404, code="model_not_found")

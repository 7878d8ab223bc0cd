"""Fields beside the schema: what asks for nothing is taken, what is known is refused, the rest is up to an option."""

from __future__ import annotations

from dataclasses import replace

import httpx
import openai
import pytest

from paceline.core.service_config import ServiceConfig
from tests.server.test_metrics import figures
from tests.support.http_calls import HELLO, assert_error, call, chat, complete, post
from tests.support.live_service import live
from tests.support.scripted_engine import ScriptedEngine

REFUSE = ServiceConfig(unknown_fields="refuse")
IGNORED = "x-ignored-fields"
BODIES = {
    "/v1/chat/completions": {"messages": HELLO}, "/v1/completions": {"prompt": "a"}, "/v1/embeddings": {"input": "a"},
    "/chat": {"message": "a"}, "/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [5]},
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"verbosity": "medium"}, {"reasoning_effort": "none"}, {"chat_template_kwargs": {}}, {"repeat_penalty": 1.0},
        {"repeat_penalty": 1}, {"top_logprobs": 0}, {"stream_options": {}}, {"prompt_cache_retention": "24h"},
        {"max_tokens": -1}, {"max_completion_tokens": -1}, {"use_beam_search": False}, {"mirostat": 0}, {"best_of": 1},
        {"guided_json": None}, {"structured_outputs": {}}, {"documents": []}, {"chat_template": ""}, {"echo": False},
        {"thinking": {"type": "disabled"}}, {"add_generation_prompt": True}, {"continue_final_message": False},
        {"trust_remote_code": False}, {"anything": None}, {"anything": []}, {"anything": {}}, {"anything": ""},
        {"n": None, "seed": None, "stop": None, "stream": None, "speculation": None, "logit_bias": None},
        {"parallel_tool_calls": True, "tool_choice": "auto"}, {"typical_p": 1, "tfs_z": 1.0, "n_predict": -1},
        {"cache_prompt": True, "include_reasoning": True, "service_tier": "flex"}, {"seed": -1}, {"bad_words": []},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_changes_nothing(fields):
    """Also where unknown fields are refused, and it is named nowhere."""
    engine = ScriptedEngine()
    for config in (None, REFUSE):
        answer = post(engine, "/v1/chat/completions", config=config, messages=HELLO, **fields)
        assert answer.status_code == 200, answer.text
        assert IGNORED not in answer.headers
    assert complete(engine).status_code == 200
    one, two, plain = [(prompt, params, replace(options, part_of="")) for prompt, params, options in engine.calls]
    assert one == two == plain


@pytest.mark.parametrize("path", BODIES)
def test_null_is_the_default_of_every_field(path):
    engine = ScriptedEngine()
    described = call(engine, "GET", "/openapi.json").json()
    name = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = described["components"]["schemas"][name.rpartition("/")[2]]
    optional = set(schema["properties"]) - set(schema.get("required", ())) - set(BODIES[path])
    assert len(optional) > 1
    answer = post(engine, path, config=REFUSE, **dict.fromkeys(optional) | BODIES[path])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "x", "reasoning_content": "", "id": "", "provider_specific_fields": {"a": 1}},
        {"role": "assistant", "content": "x", "annotations": [{"type": "url"}], "refusal": None, "audio": None},
        {"role": "assistant", "content": "x", "tool_calls": [], "function_call": None, "thinking_blocks": [{"a": 1}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": []}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": [{"type": "input_text", "text": "x"}], "type": "message", "status": "completed"},
        {"role": "user", "content": "x", "name": None, "anything": None, "more": {}},
    ],
)  # fmt: skip
def test_history_as_clients_keep_it(message):
    engine = ScriptedEngine()
    for path in ("/v1/chat/completions", "/chat", "/tokenize"):
        answer = post(engine, path, config=REFUSE, messages=[message])
        assert answer.status_code == 200, answer.text
        assert IGNORED not in answer.headers
    assert engine.calls[0][0] == engine.tokenizer.encode_chat([{"role": message["role"], "content": "x"}])


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields(path):
    """Refused, ignored and named, or ignored, as the option says; named once and by their place."""
    body = BODIES[path] | {"made_up": 1, "other": "x"}
    warned = post(ScriptedEngine(), path, **body)
    assert (warned.status_code, warned.headers[IGNORED]) == (200, "made_up, other")
    silent = post(ScriptedEngine(), path, config=ServiceConfig(unknown_fields="ignore"), **body)
    assert silent.status_code == 200
    assert IGNORED not in silent.headers
    error = assert_error(post(ScriptedEngine(), path, config=REFUSE, **body), 400, param="made_up")
    assert "made_up is not a known field" in error["message"]


def test_unknown_fields_within_others():
    message = {"role": "user", "content": [{"type": "text", "text": "x", "in_part": 1}], "in_message": 1}
    body = {"messages": [message, message], "stream": True, "stream_options": {"in_options": 1}}
    answer = post(ScriptedEngine(), "/v1/chat/completions", **body)
    assert answer.status_code == 200
    named = {"messages.in_part", "messages.in_message", "stream_options.in_options"}
    assert set(answer.headers[IGNORED].split(", ")) == named
    for key in ("messages", "stream_options"):
        alone = {"messages": HELLO, "stream": True} | {key: body[key]}
        assert_error(post(ScriptedEngine(), "/v1/chat/completions", config=REFUSE, **alone), 400, param=key)


def test_names_from_a_client_cannot_write_headers():
    names = ["a\r\nX-Evil: 1", "ключ", "x" * 65, "", " ", *(f"n{number}" for number in range(40))]
    answer = complete(ScriptedEngine(), **dict.fromkeys(names, 1))
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    listed = answer.headers[IGNORED].split(", ")
    assert len(listed) == 17
    assert listed[:5] == ["?"] * 5
    assert listed[-1] == "and 29 more"


def test_ignored_fields_are_counted():
    calls = ("/chat", {"message": "a", "b": 1, "c": 2}), ("/tokenize", {"prompt": "a", "d": 3})
    values, _ = figures(ScriptedEngine(), *calls)
    assert values["ignored_fields_total",] == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("verbosity", "high"), ("reasoning_effort", "low"), ("chat_template_kwargs", {"a": 1}), ("repeat_penalty", 1.1),
        ("guided_choice", ["a"]), ("grammar", "root ::= x"), ("mirostat", 2), ("use_beam_search", True),
        ("structured_outputs", {"regex": "a"}), ("json_schema", {"type": "object"}), ("truncate_prompt_tokens", 5),
        ("prompt", "x"), ("best_of", 2), ("echo", True), ("top_logprobs", 2), ("documents", [{"text": "x"}]),
        ("thinking", {"type": "enabled"}), ("typical_p", 0.5), ("enable_thinking", True), ("mirostat", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("policy", ["refuse", "warn", "ignore"])
def test_what_is_known_and_would_change_the_answer_stays_refused(field, value, policy):
    config = ServiceConfig(unknown_fields=policy)
    answer = post(ScriptedEngine(), "/v1/chat/completions", config=config, messages=HELLO, **{field: value})
    assert_error(answer, 400, param=field)


@pytest.mark.parametrize(
    "history",
    [
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}],
        [{"role": "tool", "content": "4", "tool_call_id": "1"}],
        [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}],
        [{"role": "function", "content": "4", "name": "f"}],
    ],
)
@pytest.mark.parametrize("policy", ["refuse", "warn", "ignore"])
def test_history_with_tools_is_told_what_is_missing(history, policy):
    config = ServiceConfig(unknown_fields=policy)
    answer = post(ScriptedEngine(), "/v1/chat/completions", config=config, messages=HELLO + history)
    error = assert_error(answer, 400, param="messages")
    assert "not supported yet" in error["message"]
    assert "tool" in error["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_minus_one_is_no_limit(name):
    engine = ScriptedEngine()
    for path in ("/v1/chat/completions", "/v1/completions", "/chat"):
        assert post(engine, path, **BODIES[path], **{name: -1}).status_code == 200
    assert {params.max_tokens for _, params, _ in engine.calls} == {2048}
    assert post(engine, "/v1/completions", prompt="a").status_code == 200
    assert engine.calls[-1][1].max_tokens == 16


def test_minus_one_is_no_seed():
    engine = ScriptedEngine()
    assert chat(engine, message="a", seed=-1).status_code == chat(engine, message="a", seed=-2).status_code == 200
    assert [params.seed for _, params, _ in engine.calls] == [None, -2]


def test_the_description_is_of_the_option():
    for policy, taken in (("refuse", {"enum": [None, "", [], {}]}), ("warn", None), ("ignore", None)):
        document = call(ScriptedEngine(), "GET", "/openapi.json", config=ServiceConfig(unknown_fields=policy)).json()
        schemas = document["components"]["schemas"]
        for name in ("ChatCompletionRequest", "Message", "StreamOptions", "TokenizeRequest"):
            assert schemas[name].get("additionalProperties") == taken
        assert schemas["Error"]["additionalProperties"] is False


def test_openai_s_client_with_fields_of_others():
    extra = {"top_k": 5, "repeat_penalty": 1.0, "made_up": {"a": 1}}
    with live(ScriptedEngine()) as service, openai.OpenAI(base_url=f"{service.url}/v1", api_key="x") as client:
        raw = client.chat.completions.with_raw_response.create(
            model="scripted", messages=HELLO, verbosity="medium", reasoning_effort="none", extra_body=extra
        )
        assert raw.parse().choices[0].message.content
        assert raw.headers[IGNORED] == "made_up"
        history = [*HELLO, raw.parse().choices[0].message.model_dump(), *HELLO]
        assert client.chat.completions.create(model="scripted", messages=history).choices
        assert httpx.get(f"{service.url}/health", trust_env=False).status_code == 200

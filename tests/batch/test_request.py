"""What a line of a batch file asks for, and what it cannot ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from batch_files import chat, embedding
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams
from pydantic import TypeAdapter

from nrvna.batch.fields import RefusedError
from nrvna.batch.request import Request, read_request
from nrvna.config import Sampling, of_job
from nrvna.order import Order
from nrvna.task import Task

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read(request: object, base: Order | None = None) -> Request:
    return read_request(json.dumps(request).encode(), base or Order(""))


def order_of(request: object, base: Order | None = None) -> Order:
    [order] = read(request, base).orders
    return order


def refusal(request: object) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        read(request)
    assert "\n" not in str(caught.value)
    return caught.value


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# Messages.


def test_the_last_message_is_the_prompt_and_the_others_come_before() -> None:
    messages = [user("one"), {"role": "assistant", "content": "two"}, user("three")]
    order = order_of(chat("a", messages=messages))
    assert order.prompt == "three"
    assert Task.from_dict(order.task) == Task(messages=(("user", "one"), ("assistant", "two")))


def test_a_system_message_at_the_head_goes_with_the_workspaces_own() -> None:
    order = order_of(chat("a", messages=[{"role": "system", "content": "Be brief."}, user("Hi")]))
    assert Task.from_dict(order.task) == Task(system="Be brief.")


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
def test_the_last_message_keeps_its_role(role: str) -> None:
    order = order_of(chat("a", messages=[user("one"), {"role": role, "content": "two"}]))
    assert Task.from_dict(order.task) == Task(messages=(("user", "one"),), role=role)
    assert order.prompt == "two"


@pytest.mark.parametrize("content", ["", " ", [], [{"type": "text", "text": ""}]])
def test_a_message_may_be_empty(content: Any) -> None:
    empty = {"role": "user", "content": content}
    text = " " if content == " " else ""
    order = order_of(chat("a", messages=[empty]))
    assert (order.prompt, dict(order.task)) == (text, {"role": "user"})
    order = order_of(chat("a", messages=[user("x"), {**empty, "role": "assistant"}]))
    assert (order.prompt, order.task["role"]) == (text, "assistant")
    order = order_of(chat("a", messages=[empty, user("x")]))
    assert Task.from_dict(order.task) == Task(messages=(("user", text),))


def test_an_empty_system_message_stays_in_its_place() -> None:
    order = order_of(chat("a", messages=[{"role": "system", "content": ""}, user("Hi")]))
    assert Task.from_dict(order.task) == Task(messages=(("system", ""),))


def test_an_answer_that_was_refused_is_the_refusal() -> None:
    refused = {"role": "assistant", "content": None, "refusal": "I will not."}
    order = order_of(chat("a", messages=[user("x"), refused, user("y")]))
    assert Task.from_dict(order.task) == Task(messages=(("user", "x"), ("assistant", "I will not.")))


def test_parts_of_text_become_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert order_of(chat("a", messages=[{"role": "user", "content": parts}])).prompt == "one\ntwo"


def test_what_looks_like_a_place_for_a_result_stays_text() -> None:
    assert order_of(chat("a", "{result} {result:x}")).prompt == "{result} {result:x}"


@pytest.mark.parametrize(
    ("messages", "param", "complaint"),
    [
        ([], "body.messages", "must be a list of messages"),
        ("Hi", "body.messages", "must be a list of messages"),
        (["Hi"], "body.messages[0]", "must be a JSON object"),
        ([{"role": "user"}], "body.messages[0].content", "is missing: it must be text, which may be empty"),
        ([{"role": "user", "content": None}], "body.messages[0].content", "is missing"),
        ([user("x"), {"role": "assistant", "content": None}], "body.messages[1].content", "is missing"),
        ([{"role": "king", "content": "x"}], "body.messages[0].role", "is 'king', but must be system or developer"),
        ([{**user("x"), "mood": 1}], "body.messages[0].mood", "has no field 'mood'"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "body.messages[0].content[0].type",
            "is 'image_url', but the model reads text alone",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            "body.messages[0].content[0].type",
            "the model reads text alone",
        ),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
            "body.messages[0].tool_calls",
            "the model is given no tools",
        ),
        ([user("a\0b")], None, "NUL"),
        ([user("a\ud800")], None, "not UTF-8"),
    ],
)
def test_messages_that_cannot_be_are_named(messages: object, param: str | None, complaint: str) -> None:
    error = refusal(chat("a", messages=messages))
    assert complaint in str(error) and error.param == param and error.custom_id == "a"


# Settings.


@pytest.mark.parametrize(
    ("body", "setting"),
    [
        ({"temperature": 0}, {"temp": 0}),
        ({"top_p": 0.5, "top_k": 7, "min_p": 0.1}, {"top_p": 0.5, "top_k": 7, "min_p": 0.1}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"max_tokens": 9}, {"predict": 9}),
        ({"max_tokens": 9, "max_completion_tokens": 7}, {"predict": 7}),
        ({"stop": "[END]"}, {"stop": ("[END]",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1, "frequency_penalty": -1}),
        ({"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
        ({"logit_bias": {"50256": -100, "7": 1.5}}, {"logit_bias": ((50256, -100), (7, 1.5))}),
        ({"min_tokens": 3, "ignore_eos": True}, {"min_tokens": 3, "ignore_eos": True}),
        ({"typical_p": 0.5, "mirostat": 2, "samplers": ["top_k"]}, {"typical_p": 0.5, "mirostat": 2}),
        ({"seed": 5}, {"seed": 5}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": -2}, {"seed": 0xFFFFFFFD}),
        ({"seed": 2**62}, {"seed": 2**62 % 0xFFFFFFFF}),
        ({"temperature": None, "stop": None, "seed": None}, {"temp": 0.8, "stop": (), "seed": None}),
    ],
)
def test_settings_are_what_openai_vllm_and_llama_server_call_them(body: dict[str, Any], setting: Any) -> None:
    order = order_of(chat("a", **body))
    sampling = of_job(Sampling(), json.loads(json.dumps(dict(order.settings))))
    assert {name: getattr(sampling, name) for name in setting} == setting


def test_a_line_says_more_than_the_command_did() -> None:
    order = order_of(chat("a", temperature=0), Order("", settings={"temp": 1, "top_k": 3}, model="m", tags=("t",)))
    assert dict(order.settings) == {"temp": 0, "top_k": 3}
    assert (order.model, order.tags) == ("m", ("t",))


def test_each_of_n_choices_is_a_job_with_a_seed_of_its_own() -> None:
    request = read(chat("a", n=3, seed=5))
    assert [order.settings["seed"] for order in request.orders] == [5, 6, 7]
    assert len(read(chat("a", n=2)).orders) == 2
    drawn = read(chat("a", n=2, seed=-1), Order("", settings={"seed": 5}))
    assert [order.settings["seed"] for order in drawn.orders] == [-1, -1]


# Forms of the answer.

SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"b": {"type": "integer"}, "a": {"type": "string"}},
    "required": ["a"],
}


@pytest.mark.parametrize(
    ("body", "task"),
    [
        ({"response_format": {"type": "text"}}, Task()),
        ({"response_format": {"type": "json_object"}}, Task(json_schema='{"type": "object"}')),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            Task(json_schema=json.dumps(SCHEMA)),
        ),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Task(json_schema=json.dumps(SCHEMA))),
        ({"response_format": {"type": "json_object", "schema": {}}}, Task(json_schema='{"type": "object"}')),
        ({"response_format": {"type": "json_object", "schema": None}}, Task(json_schema='{"type": "object"}')),
        (
            {"response_format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
            Task(json_schema=json.dumps(SCHEMA)),
        ),
        ({"guided_json": SCHEMA}, Task(json_schema=json.dumps(SCHEMA))),
        ({"guided_json": json.dumps(SCHEMA)}, Task(json_schema=json.dumps(SCHEMA))),
        ({"guided_choice": ["yes", "no"]}, Task(choices=("yes", "no"))),
        ({"guided_grammar": 'root ::= "a"'}, Task(grammar='root ::= "a"')),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, Task(choices=("yes", "no"))),
        ({"grammar": 'root ::= "a"'}, Task(grammar='root ::= "a"')),
        ({"json_schema": SCHEMA}, Task(json_schema=json.dumps(SCHEMA))),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
            Task(template_kwargs={"enable_thinking": False, "reasoning_effort": "low"}),
        ),
    ],
)
def test_the_form_of_an_answer_becomes_the_jobs_task(body: dict[str, Any], task: Task) -> None:
    assert Task.from_dict(order_of(chat("a", **body)).task) == task


# What is refused.


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        ({"temperature": "hot"}, "temperature", "is 'hot', but must be a number from 0 to 10"),
        ({"temperature": "0.5"}, "temperature", "is '0.5', but must be a number"),
        ({"temperature": True}, "temperature", "is True, but must be a number"),
        ({"temperature": 11}, "temperature", "must be a number from 0 to 10"),
        ({"top_p": float("nan")}, "top_p", "must be a number from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens", "must be a whole number from 1"),
        ({"max_tokens": 1.5}, "max_tokens", "must be a whole number"),
        ({"stop": ""}, "stop", "must be a text, or a JSON list of texts"),
        ({"stop": [1]}, "stop", "must be a text, or a JSON list of texts"),
        ({"seed": 1.5}, "seed", "must be a whole number"),
        ({"logit_bias": {"hello": "no"}}, "logit_bias", "biases from -1000 to 1000"),
        ({"n": 0}, "n", "is 0, but must be a whole number from 1 to 128"),
        ({"n": 129}, "n", "must be a whole number from 1 to 128"),
        ({"stream": True}, "stream", "a batch's answers come in a file"),
        ({"logprobs": True}, "logprobs", "no probabilities of tokens"),
        ({"top_logprobs": 5}, "top_logprobs", "no probabilities of tokens"),
        ({"tools": [{"type": "function"}]}, "tools", "no tools"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"functions": [{"name": "f"}]}, "functions", "no tools"),
        ({"modalities": ["text", "audio"]}, "modalities", "the answer is text"),
        ({"web_search_options": {}}, "web_search_options", "nothing leaves this machine"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be text or json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "has no field 'schema'"),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "thing"}}},
            "response_format.schema",
            "body.response_format.schema: ",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}},
            "response_format.json_schema.schema",
            "body.response_format.json_schema.schema: ",
        ),
        ({"guided_choice": ["one"]}, "guided_choice", "a single choice"),
        ({"guided_grammar": "root ::= nowhere"}, "guided_grammar", "body.guided_grammar: "),
        ({"guided_json": {}, "guided_choice": ["a", "b"]}, "guided_json", "an answer follows one form"),
        ({"guided_regex": "a+"}, "guided_regex", "body has no field 'guided_regex' that nrvna knows"),
        ({"temprature": 1, "topp": 2}, "temprature", "body has no field 'temprature', 'topp' that nrvna knows"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "must be a JSON object"),
        ({"model": 5}, "model", "is 5, but must be text"),
    ],
)
def test_a_field_that_cannot_be_served_is_named(body: dict[str, Any], param: str, complaint: str) -> None:
    error = refusal(chat("a", **body))
    assert complaint in str(error) and error.param == f"body.{param}" and error.custom_id == "a"


def test_tools_that_may_not_be_used_are_no_obstacle() -> None:
    assert order_of(chat("a", tools=[{"type": "function"}], tool_choice="none")).prompt == "Say hi."
    assert order_of(chat("a", tools=[], tool_choice="auto")).prompt == "Say hi."


@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        (b"nonsense", "invalid_json_line", "it is no JSON: Expecting value at character 1"),
        (b'{"a": ', "invalid_json_line", "it is no JSON"),
        (b"[" * 100_000, "invalid_json_line", "it is nested more than 100 deep"),
        (b'{"custom_id": "\xff"}', "invalid_json_line", "it is not UTF-8: byte 0xff"),
        (b"[1]", "invalid_type", "it must be a JSON object"),
        (b"{}", "missing_required_parameter", "custom_id is missing"),
        (b'{"custom_id": 5}', "invalid_value", "custom_id is 5, but must be text"),
        (b'{"custom_id": ""}', "invalid_value", "custom_id is empty"),
        (b'{"custom_id": "a"}', "missing_required_parameter", "method is missing"),
        (b'{"custom_id": "a", "method": "GET"}', "invalid_value", "method is 'GET', but must be POST"),
        (b'{"custom_id": "a", "method": "POST"}', "missing_required_parameter", "url is missing"),
        (
            b'{"custom_id": "a", "method": "POST", "url": "/v1/responses"}',
            "invalid_url",
            "nrvna answers /v1/chat/completions and /v1/embeddings alone",
        ),
        (
            b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}',
            "missing_required_parameter",
            "body is missing",
        ),
        (
            b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}, "tag": 1}',
            "unknown_parameter",
            "a request has no field 'tag'",
        ),
    ],
)
def test_a_line_that_is_no_request_says_why(line: bytes, code: str, complaint: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_request(line, Order(""))
    assert complaint in str(caught.value) and caught.value.code == code


def test_a_url_may_come_without_its_version_as_azures_do() -> None:
    asked = [{**chat("a"), "url": "/chat/completions"}, {**embedding("b", "x"), "url": "/embeddings"}]
    assert [read(request).url for request in asked] == ["/v1/chat/completions", "/v1/embeddings"]
    assert refusal({**chat("a"), "url": "/completions"}).code == "invalid_url"
    assert refusal({**chat("a"), "url": ["/embeddings"]}).code == "invalid_url"


def test_what_is_too_large_for_a_job_is_refused_with_its_line() -> None:
    messages = [user("é" * 6_000_000), user("short")]
    assert "more than the 16777216 bytes allowed" in str(refusal(chat("a", messages=messages)))
    assert "more than the 16777216 allowed" in str(refusal(chat("a", "x" * 17_000_000)))


@given(JSON)
def test_whatever_a_body_is_it_is_a_request_or_refused_in_one_line(body: Any) -> None:
    for url in ("/v1/chat/completions", "/v1/embeddings"):
        refused = {"custom_id": "a", "method": "POST", "url": url, "body": body}
        assert refusal(refused).custom_id == "a"


@given(st.sampled_from(sorted(CompletionCreateParamsNonStreaming.__annotations__)), JSON)
def test_whatever_a_field_holds_it_is_served_or_refused_in_one_line(name: str, value: Any) -> None:
    try:
        request = read(chat("a", **{name: value}))
    except RefusedError as error:
        assert "\n" not in str(error)
    else:
        for order in request.orders:
            of_job(Sampling(), json.loads(json.dumps(dict(order.settings))))


# Embeddings.


def test_each_input_is_a_job_for_a_vector() -> None:
    request = read(embedding("a", ["one", "two"], encoding_format="base64", dimensions=576, user="me"))
    assert [order.prompt for order in request.orders] == ["one", "two"]
    assert all(Task.from_dict(order.task) == Task(kind="embed") for order in request.orders)
    assert request.wants == {"encoding_format": "base64", "dimensions": 576}
    assert len(read(embedding("a", "one")).orders) == 1


@pytest.mark.parametrize(
    ("body", "param", "complaint"),
    [
        ({"input": []}, "input", "must be a text, or a list of texts"),
        ({"input": [1, 2]}, "input[0]", "tokens are not supported"),
        ({"input": [[1], [2]]}, "input[0]", "tokens are not supported"),
        ({"input": ["a", {}]}, "input[1]", "must be text"),
        ({"input": ["a", ""]}, "input[1]", "the text is empty"),
        ({"input": ["a"] * 2049}, "input", "has 2049 texts: 2048 are allowed"),
        ({"encoding_format": "int8"}, "encoding_format", "must be float or base64"),
        ({"dimensions": 0}, "dimensions", "must be a whole number from 1 on"),
        ({"truncate": True}, "truncate", "body has no field 'truncate'"),
    ],
)
def test_an_input_that_cannot_be_is_named(body: dict[str, Any], param: str, complaint: str) -> None:
    error = refusal(embedding("a", "x", **body))
    assert complaint in str(error) and error.param == f"body.{param}"


# OpenAI's own types.


@pytest.mark.parametrize("name", sorted(CompletionCreateParamsNonStreaming.__annotations__))
def test_every_field_of_openais_type_is_known(name: str) -> None:
    try:
        body: dict[str, Any] = {name: {"unlike": "any"}}
        read(chat("a", **body))
    except RefusedError as error:
        assert error.code != "unknown_parameter" or error.param != f"body.{name}"


@pytest.mark.parametrize("name", sorted(EmbeddingCreateParams.__annotations__))
def test_every_field_of_openais_embedding_type_is_known(name: str) -> None:
    try:
        read(embedding("a", "x", **{name: {"unlike": "any"}}))
    except RefusedError as error:
        assert error.code != "unknown_parameter" or error.param != f"body.{name}"


def test_a_request_written_by_openais_types_is_read() -> None:
    params: CompletionCreateParamsNonStreaming = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "Name a fish.", "name": "me"},
            {"role": "assistant", "content": "Cod.", "refusal": None},
            {"role": "user", "content": [{"type": "text", "text": "Another."}]},
        ],
        "frequency_penalty": 0.5,
        "logit_bias": {"50256": -100},
        "logprobs": False,
        "max_completion_tokens": 20,
        "metadata": {"job": "x"},
        "modalities": ["text"],
        "n": 2,
        "parallel_tool_calls": False,
        "presence_penalty": 0.1,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
        "seed": 42,
        "service_tier": "auto",
        "stop": ["\n\n"],
        "store": False,
        "stream": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "me",
    }
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(params)
    request = read({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": params})
    first, second = request.orders
    assert first.prompt == "Another." and first.settings["seed"] == 42 and second.settings["seed"] == 43
    assert Task.from_dict(first.task).messages[0] == ("developer", "Be brief.")

"""A batch through a real daemon with the real model: every line that is written is what OpenAI's own types take."""

from __future__ import annotations

import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from batch_files import chat, embedding, read_lines, write_lines
from openai.types import CreateEmbeddingResponse
from openai.types.batch_error import BatchError
from openai.types.chat import ChatCompletion
from openai.types.shared import ErrorObject
from processes import command
from pydantic import BaseModel

from nrvna.workspace import Workspace

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
USER = {"role": "user", "content": "Name a fish."}
REQUESTS = [
    chat("plain", "Name a prime."),
    chat("spoken", messages=[{"role": "developer", "content": "Be brief."}, USER], temperature=0.5, top_p=0.9),
    chat("short", "Count to a hundred.", max_completion_tokens=5, min_tokens=5),
    chat("several", "Say a word.", n=3, seed=7, temperature=1.5, max_tokens=8),
    chat("stopped", "Count from one to nine in digits.", stop=["3", "three"], max_tokens=60),
    chat("object", "Describe a person.", response_format={"type": "json_object"}, max_tokens=60),
    chat(
        "schema",
        "Describe a person.",
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}},
    ),
    chat("choice", "Is the sky blue?", guided_choice=["yes", "no"]),
    chat("system last", messages=[USER, {"role": "system", "content": "Answer in capitals."}]),
    chat("tool last", messages=[USER, {"role": "tool", "tool_call_id": "1", "content": "Cod."}]),
    chat("effort", reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}, max_tokens=4),
    chat("biased", "Say hi.", logit_bias={"28": -100}, max_tokens=4),
    embedding("vector", "A text to be found again."),
    embedding("vectors", ["one", "two", "one"]),
    embedding("packed", "A text to be found again.", encoding_format="base64", dimensions=576),
]
BAD = [
    b"{nonsense",
    chat("picture", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    chat("tools", tools=[{"type": "function", "function": {"name": "f"}}]),
    embedding("short vector", "x", dimensions=8),
    chat("too long", "word " * 3000),
]


@pytest.fixture(scope="module")
def written(served: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    """The output file's lines by their custom_id, and the error file's lines."""
    folder = tmp_path_factory.mktemp("batch")
    path = write_lines(folder / "in.jsonl", [each for pair in zip(REQUESTS, BAD, strict=False) for each in pair])
    with path.open("ab") as file:
        write_lines(rest := folder / "rest", REQUESTS[len(BAD) :])
        file.write(rest.read_bytes())
    queued = command("wrk", served.path, "--batch", path)
    assert queued.returncode == 2, queued.stderr
    done = command("flw", "-w", served.path, "--batch", queued.stdout.strip(), "-o", folder / "out.jsonl")
    assert done.returncode == 1, done.stderr
    lines = read_lines(folder / "out.jsonl")
    return {line["custom_id"]: line for line in lines}, read_lines(folder / "out_errors.jsonl")


def surplus_of(model: BaseModel) -> list[str]:
    """The fields that a type does not know, wherever they are in it."""
    found = list(model.model_extra or {})
    for value in dict(model).values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                found += surplus_of(each)
    return found


def completion(written: tuple[dict[str, Any], list[Any]], custom_id: str) -> ChatCompletion:
    return ChatCompletion.model_validate(written[0][custom_id]["response"]["body"], strict=True)


def test_all_that_can_be_answered_is_in_the_order_of_the_file(written: tuple[dict[str, Any], list[Any]]) -> None:
    lines, errors = written
    assert list(lines) == [request["custom_id"] for request in REQUESTS]
    assert [line["custom_id"] for line in errors] == [None, "picture", "tools", "short vector", "too long"]


def test_every_line_has_the_fields_of_openais_batch_output(written: tuple[dict[str, Any], list[Any]]) -> None:
    lines, errors = written
    ids = set()
    for line in [*lines.values(), *errors]:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["id"].startswith("batch_req_")
        ids.add(line["id"])
    assert len(ids) == len(lines) + len(errors)
    for line in lines.values():
        assert list(line["response"]) == ["status_code", "request_id", "body"]
        assert line["response"]["status_code"] == 200 and line["error"] is None


@pytest.mark.parametrize("custom_id", [each["custom_id"] for each in REQUESTS if "chat" in each["url"]])
def test_every_completion_is_openais_type(written: tuple[dict[str, Any], list[Any]], custom_id: str) -> None:
    body = completion(written, custom_id)
    assert surplus_of(body) == []
    assert body.model == "SmolLM2-135M-Instruct.Q4_1" and body.created > 1_700_000_000
    assert body.usage and body.usage.total_tokens == body.usage.prompt_tokens + body.usage.completion_tokens
    assert body.usage.prompt_tokens > 0
    assert all(choice.message.content for choice in body.choices)


@pytest.mark.parametrize("custom_id", ["vector", "vectors"])
def test_every_list_of_vectors_is_openais_type(written: tuple[dict[str, Any], list[Any]], custom_id: str) -> None:
    body = CreateEmbeddingResponse.model_validate(written[0][custom_id]["response"]["body"], strict=True)
    assert surplus_of(body) == []
    assert [each.index for each in body.data] == list(range(len(body.data)))
    for each in body.data:
        assert len(each.embedding) == 576
        assert math.isclose(math.hypot(*each.embedding), 1, rel_tol=1e-5)


def test_every_error_is_openais_type(written: tuple[dict[str, Any], list[Any]]) -> None:
    for line in written[1]:
        assert surplus_of(BatchError.model_validate(line["error"], strict=True)) == []
        assert line["error"]["message"] and "\n" not in line["error"]["message"]
        if line["response"]:
            assert line["response"]["status_code"] == 400
            about = ErrorObject.model_validate(line["response"]["body"]["error"], strict=True)
            assert surplus_of(about) == [] and about.message == line["error"]["message"]


def test_an_answer_that_its_limit_cut_says_so(written: tuple[dict[str, Any], list[Any]]) -> None:
    body = completion(written, "short")
    assert body.choices[0].finish_reason == "length"
    assert body.usage and body.usage.completion_tokens == 5


def test_several_choices_are_in_one_response_and_differ(written: tuple[dict[str, Any], list[Any]]) -> None:
    body = completion(written, "several")
    assert [choice.index for choice in body.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in body.choices}) > 1
    alone = completion(written, "plain")
    assert body.usage and alone.usage
    assert body.usage.prompt_tokens < 2 * alone.usage.prompt_tokens


def test_a_stop_text_ends_the_answer_without_it(written: tuple[dict[str, Any], list[Any]]) -> None:
    choice = completion(written, "stopped").choices[0]
    assert "3" not in (choice.message.content or "") and "three" not in (choice.message.content or "")


def test_an_answer_follows_its_schema(written: tuple[dict[str, Any], list[Any]]) -> None:
    choice = completion(written, "schema").choices[0]
    assert choice.finish_reason == "stop"
    answer = json.loads(choice.message.content or "")
    assert set(answer) == {"name", "age"} and answer["age"] <= 120
    assert completion(written, "choice").choices[0].message.content in ("yes", "no")


def test_vectors_in_base64_are_the_same_numbers(written: tuple[dict[str, Any], list[Any]]) -> None:
    plain, packed = (written[0][name]["response"]["body"]["data"][0]["embedding"] for name in ("vector", "packed"))
    assert struct.pack("<576f", *plain) == base64.b64decode(packed)


def test_what_the_daemon_refuses_comes_with_its_reason(written: tuple[dict[str, Any], list[Any]]) -> None:
    short, long = written[1][3:]
    assert short["error"]["code"] == "unsupported_dimensions" and "vectors of 576" in short["error"]["message"]
    assert long["error"]["code"] == "job_failed" and "tokens, but" in long["error"]["message"]
    assert long["response"] is None


def test_a_file_as_vllms_examples_have_it_is_answered(served: Workspace, tmp_path: Path) -> None:
    lines = [
        '{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
        '"meta-llama/Meta-Llama-3-8B-Instruct", "messages": [{"role": "system", "content": "You are a helpful '
        'assistant."},{"role": "user", "content": "Hello world!"}],"max_completion_tokens": 1000}}',
        '{"custom_id": "request-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
        '"meta-llama/Meta-Llama-3-8B-Instruct", "messages": [{"role": "system", "content": "You are an unhelpful '
        'assistant."},{"role": "user", "content": "Hello world!"}],"max_completion_tokens": 1000}}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines).replace("1000", "20"))
    queued = command("wrk", served.path, "--batch", tmp_path / "in.jsonl")
    assert queued.returncode == 0, queued.stderr
    done = command("flw", "-w", served.path, "--batch", queued.stdout.strip(), "-o", "-")
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        ChatCompletion.model_validate(json.loads(line)["response"]["body"], strict=True)

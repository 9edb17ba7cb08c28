"""What wrk asks, a real daemon answers: constraints, choices, vectors, as a shell sees them."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_models import RANK, make_bert
from processes import DaemonProcess, command

import nrvna
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]


def asked(workspace: Workspace, *arguments: str | Path) -> tuple[str, str]:
    """The id and the answer of a job, once it is there."""
    queued = command("wrk", workspace.path, *arguments)
    assert queued.returncode == 0, queued.stderr
    job_id = queued.stdout.strip()
    done = command("flw", "-w", workspace.path, job_id)
    assert done.returncode == 0, done.stderr
    return job_id, done.stdout


def receipt(workspace: Workspace, job_id: str) -> dict[str, object]:
    shown = command("flw", "--receipt", workspace.path, job_id)
    assert shown.returncode == 0
    content = json.loads(shown.stdout)
    assert isinstance(content, dict)
    return content


def test_a_choice_comes_with_probabilities_in_the_receipt(served: Workspace) -> None:
    job_id, answer = asked(served, "Is the sky blue?", "--choices", "yes,no")
    assert answer in ("yes\n", "no\n")
    probabilities = receipt(served, job_id)["probabilities"]
    assert isinstance(probabilities, dict) and set(probabilities) == {"yes", "no"}


def test_an_answer_that_follows_a_schema_is_json(served: Workspace) -> None:
    _, answer = asked(
        served,
        "Name a number.",
        "--schema",
        '{"type": "object", "properties": {"n": {"type": "integer", '
        '"maximum": 99}}, "required": ["n"], "additionalProperties": false}',
    )
    assert set(json.loads(answer)) == {"n"}


def test_settings_of_the_call_are_the_jobs_own(served: Workspace) -> None:
    job_id, _ = asked(served, "Say something.", "--predict", "3", "--min-tokens", "3")
    found = receipt(served, job_id)
    assert (found["generated_tokens"], found["finish_reason"]) == (3, "length")


def batch_of(served: Workspace, tmp_path: Path, *bodies: dict[str, object]) -> list[dict[str, Any]]:
    """The responses to a batch of chats, once all are there."""
    url = "/v1/chat/completions"
    lines = [{"custom_id": str(n), "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = command("wrk", served.path, "--batch", tmp_path / "in.jsonl").stdout.strip()
    assert command("flw", "-w", served.path, "--batch", batch, "-o", tmp_path / "out.jsonl").returncode == 0
    return [json.loads(line)["response"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_a_conversation_with_empty_messages_is_answered(served: Workspace, tmp_path: Path) -> None:
    said = {"role": "user", "content": "Hi."}
    conversations = [
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": []}],
        [{"role": "system", "content": ""}, said],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " "}],
        [said, {"role": "assistant", "content": ""}, said],
    ]
    found = batch_of(served, tmp_path, *({"messages": messages, "max_tokens": 3} for messages in conversations))
    assert [response["status_code"] for response in found] == [200] * 5
    assert all(response["body"]["choices"][0]["message"]["content"] for response in found)


def test_answers_with_a_seed_of_minus_one_differ_and_their_receipts_name_the_seed(
    served: Workspace, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "Write something random."}]
    found = batch_of(served, tmp_path, *[{"messages": messages, "max_tokens": 8, "temperature": 1.5, "seed": -1}] * 3)
    answers = [each["body"]["choices"][0]["message"]["content"] for each in found]
    assert len(set(answers)) == 3
    sampled = [receipt(served, each["request_id"])["sampling"] for each in found]
    assert (
        len({sampling["seed"] for sampling in sampled if isinstance(sampling, dict) and sampling["seed"] >= 0}) == 3
    )


def test_a_job_whose_task_makes_no_sense_fails_with_the_reason(served: Workspace) -> None:
    job_id = served.submit("Hello", task={"kind": "sing"})
    done = command("flw", "-w", served.path, job_id)
    assert done.returncode == 1
    assert "kind is 'sing', but must be answer, embed, rerank" in done.stderr


def test_a_model_that_writes_makes_vectors_too(served: Workspace) -> None:
    job_id, answer = asked(served, "A sentence.", "--embed")
    vector = np.load(io.BytesIO(Path(served.find(job_id).directory, "result.npy").read_bytes()))
    assert vector.dtype == np.float32 and vector.shape == (576,)
    assert np.array_equal(np.array(json.loads(answer), np.float32), vector)
    assert math.isclose(float(np.linalg.norm(vector)), 1, abs_tol=1e-5)


def test_a_model_made_for_vectors_serves_them_and_says_what_it_cannot(
    start_daemon: StartDaemon, workspace: Workspace, embedder_file: Path
) -> None:
    start_daemon(workspace.path, model=embedder_file)
    near, far = (
        np.array(json.loads(asked(workspace, text, "--embed")[1])) for text in ("A dog ran.", "Stocks fell sharply.")
    )
    like = np.array(json.loads(asked(workspace, "The puppy was running.", "--embed")[1]))
    assert like @ near > like @ far + 0.2
    refused = command("flw", "-w", workspace.path, workspace.submit("Hello"))
    assert (refused.returncode, "ask for one with `wrk --embed`" in refused.stderr) == (1, True)
    refused = command("flw", "-w", workspace.path, workspace.submit("q", task={"kind": "rerank", "documents": ["a"]}))
    assert (refused.returncode, "cannot rank" in refused.stderr) == (1, True)


def test_many_texts_become_vectors_in_their_order(
    start_daemon: StartDaemon, workspace: Workspace, embedder_file: Path, tmp_path: Path
) -> None:
    start_daemon(workspace.path, model=embedder_file)
    texts = [f"{word} number {number}" for number in range(40) for word in ("apple", "engine")]
    (tmp_path / "texts").write_text("\n".join(texts))
    queued = command("wrk", workspace.path, "--embed", "--lines", tmp_path / "texts")
    assert command("flw", "-w", workspace.path).returncode == 0
    jobs = [workspace.find(job_id) for job_id in queued.stdout.split()]
    vectors = np.array([json.loads(workspace.answer(job)) for job in jobs])
    again = np.array(json.loads(asked(workspace, texts[17], "--embed")[1]))
    assert int(np.argmax(vectors @ again)) == 17


def test_documents_come_back_best_first(start_daemon: StartDaemon, workspace: Workspace, tmp_path: Path) -> None:
    # Random weights: the order means nothing, but it is the scores' and every document is there once.
    start_daemon(workspace.path, model=make_bert(tmp_path / "reranker.gguf", pooling=RANK))
    (tmp_path / "documents").write_text("a tree\na house\na river\n")
    job_id, answer = asked(workspace, "Where do fish live?", "--rerank", tmp_path / "documents")
    rows = [line.split("\t") for line in answer.splitlines()]
    assert {(number, text) for _, number, text in rows} == {("1", "a tree"), ("2", "a house"), ("3", "a river")}
    scores = [float(score) for score, _, _ in rows]
    assert scores == sorted(scores, reverse=True)
    saved = np.load(io.BytesIO(Path(workspace.find(job_id).directory, "result.npy").read_bytes()))
    assert saved[int(rows[0][1]) - 1] == pytest.approx(scores[0], abs=1e-5)


def test_documents_are_called_by_the_numbers_of_their_lines(
    start_daemon: StartDaemon, workspace: Workspace, tmp_path: Path
) -> None:
    start_daemon(workspace.path, model=make_bert(tmp_path / "reranker.gguf", pooling=RANK))
    (tmp_path / "documents").write_text("old mill\n\n\nstone \u2028 bridge\n\nform\x0cfeed\n")
    job_id, answer = asked(workspace, "Where do fish live?", "--rerank", tmp_path / "documents")
    texts = {number: text for _, number, text in (line.split("\t") for line in answer.split("\n")[:-1])}
    assert texts == {"1": "old mill", "4": "stone \u2028 bridge", "6": "form\x0cfeed"}
    ranking = nrvna.Workspace(workspace.path).job(job_id).ranking()
    assert {each.place: each.document for each in ranking} == dict(enumerate(texts[number] for number in "146"))


def test_a_vector_job_survives_the_death_of_its_engine(
    start_daemon: StartDaemon, workspace: Workspace, embedder_file: Path
) -> None:
    daemon = start_daemon(workspace.path, model=embedder_file)
    os.kill(daemon.engine_pid(), signal.SIGKILL)
    _, answer = asked(workspace, "A sentence.", "--embed")
    assert len(json.loads(answer)) == 384

"""What becomes of one line of a batch file: its line in the output file, or in the error file."""

from __future__ import annotations

import array
import base64
import hashlib
import sys
from enum import StrEnum
from os.path import basename, join
from typing import Any

from nrvna.batch.ledger import Entry, Ledger
from nrvna.batch.request import EMBEDDINGS
from nrvna.errors import JobNotFoundError
from nrvna.files import is_folder
from nrvna.job import Job, JobState, Receipt, seconds_of
from nrvna.jsontext import read_json
from nrvna.workspace import Workspace

# How OpenAI's API calls why an answer ends.
_FINISH = {"stop": "stop", "length": "length", "context": "length"}
# What a failed job's receipt says, as a code.
_CODES = {"cancelled": "cancelled", "timeout": "timeout", "thinking": "no_answer"}


class State(StrEnum):
    """How a request is doing, in the words of OpenAI's API; the last is one whose ``wrk`` was interrupted."""

    COMPLETED = "completed"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    NOT_QUEUED = "not_queued"


class _UnfinishedError(Exception):
    """There is no response yet."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state = state


class _FailedError(Exception):
    """There is no response, and never will be."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Responses:
    """The responses to a batch's requests, as far as they are there when they are asked for.

    ``is_being_queued``: a ``wrk`` was at it when this was made. Raises WorkspaceError.
    """

    def __init__(self, workspace: Workspace, ledger: Ledger) -> None:
        self._workspace = workspace
        self._ledger = ledger
        # In this order: what a wrk did before it ended is in the ledger then.
        self.is_being_queued = ledger.is_being_queued
        self.news = ledger.refresh()

    def state(self, entry: Entry) -> State:
        if entry.error or "dimensions" in entry.wants:
            return self.line(entry)[0]
        try:
            self._done_jobs(entry)
        except _UnfinishedError as error:
            return error.state
        except _FailedError:
            return State.FAILED
        return State.COMPLETED

    def line(self, entry: Entry) -> tuple[State, dict[str, Any]]:
        """The line to be written, empty while there is none. The same again makes the same line."""
        digest = hashlib.sha256(f"{self._ledger.id}:{entry.line}".encode()).hexdigest()[:24]
        line: dict[str, Any] = {"id": f"batch_req_{digest}", "custom_id": entry.custom_id}
        if entry.error:
            return State.FAILED, {**line, **_refusal(entry.line, entry.error, f"req_{digest}")}
        try:
            jobs = self._done_jobs(entry)
            body = self._embeddings(entry, jobs) if entry.url == EMBEDDINGS else self._completion(jobs)
        except _UnfinishedError as error:
            return error.state, {}
        except _FailedError as error:
            about = {"code": error.code, "message": str(error), "param": None, "line": entry.line}
            return State.FAILED, {**line, "response": None, "error": about}
        # By the job's id its receipt is found.
        response = {"status_code": 200, "request_id": jobs[0].id, "body": body}
        return State.COMPLETED, {**line, "response": response, "error": None}

    def _done_jobs(self, entry: Entry) -> list[Job]:
        """The jobs, all done. Raises _FailedError if one never will be, _UnfinishedError if one is not yet."""
        jobs = [self._find(job_id) for job_id in entry.jobs]
        for job in jobs:
            if job and job.state is JobState.FAILED:
                receipt = self._workspace.receipt(job)
                reason = self._workspace.answer(job).strip() or "it failed, and its reason is gone"
                raise _FailedError(_CODES.get(receipt.finish_reason if receipt else "", "job_failed"), reason)
        if None in jobs and not self.is_being_queued:
            if not self._ledger.is_complete:
                raise _UnfinishedError(State.NOT_QUEUED)
            gone = entry.jobs[jobs.index(None)]
            raise _FailedError("job_gone", f"its job {gone} was removed; the same wrk --batch queues it again")
        done = [job for job in jobs if job and job.state is JobState.DONE]
        if len(done) < len(jobs):
            raise _UnfinishedError(State.IN_PROGRESS)
        return done

    def _find(self, job_id: str) -> Job | None:
        # Where it is in the end: looking there first saves three looks at each of thousands.
        folder = join(self._workspace.output, job_id)
        if is_folder(folder):
            return Job(job_id, JobState.DONE, folder)
        try:
            return self._workspace.find(job_id)
        except JobNotFoundError:
            return None

    def _read(self, job: Job) -> tuple[str, Receipt]:
        """A done job's answer and receipt. Raises _FailedError."""
        receipt, answer = self._workspace.receipt(job), self._workspace.answer(job)
        if receipt is None or not self._workspace.is_intact(job, receipt):
            raise _FailedError("answer_damaged", f"the answer of the job {job.id} is damaged, or without its receipt")
        return answer, receipt

    def _completion(self, jobs: list[Job]) -> dict[str, Any]:
        found = [self._read(job) for job in jobs]
        first = found[0][1]
        choices = []
        for index, (job, (answer, receipt)) in enumerate(zip(jobs, found, strict=True)):
            message: dict[str, Any] = {"role": "assistant", "content": answer, "refusal": None}
            if receipt.reasoning_tokens and (thought := self._workspace.reasoning(job)):
                message["reasoning_content"] = thought
            finish = _FINISH.get(receipt.finish_reason, "stop")
            choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish})
        # Their prompt is one.
        prompt_tokens = first.prompt_tokens or 0
        generated = sum(receipt.generated_tokens or 0 for _, receipt in found)
        thought_tokens = sum(receipt.reasoning_tokens or 0 for _, receipt in found)
        return {
            "id": f"chatcmpl-{jobs[0].id}",
            "object": "chat.completion",
            "created": _seconds(first),
            "model": _model(first),
            "system_fingerprint": f"llama.cpp-{first.llama_cpp}",
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": generated,
                "total_tokens": prompt_tokens + generated,
                "prompt_tokens_details": {"cached_tokens": first.cached_tokens or 0},
                "completion_tokens_details": {"reasoning_tokens": thought_tokens},
            },
        }

    def _embeddings(self, entry: Entry, jobs: list[Job]) -> dict[str, Any]:
        data: list[dict[str, Any]] = []
        tokens, receipt = 0, None
        for index, job in enumerate(jobs):
            answer, receipt = self._read(job)
            tokens += receipt.prompt_tokens or 0
            vector = _vector(answer)
            if (wanted := entry.wants.get("dimensions", len(vector))) != len(vector):
                reason = f"body.dimensions is {wanted}, but {_model(receipt)} makes vectors of {len(vector)}"
                raise _FailedError("unsupported_dimensions", reason)
            written = _base64(vector) if entry.wants.get("encoding_format") == "base64" else vector
            data.append({"object": "embedding", "index": index, "embedding": written})
        assert receipt
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": _model(receipt), "usage": usage}


def _refusal(line: int, error: dict[str, Any], request_id: str) -> dict[str, Any]:
    """A request that was refused, as OpenAI's API would have answered it, and once more for those who look there."""
    about = {
        "code": error.get("code"),
        "message": f"line {line}: {error.get('message')}",
        "param": error.get("param"),
    }
    body = {"error": {**about, "type": "invalid_request_error"}}
    response = {"status_code": 400, "request_id": request_id, "body": body}
    return {"response": response, "error": {**about, "line": line}}


def _model(receipt: Receipt) -> str:
    """By the name that ``wrk --model`` takes."""
    return basename(str((receipt.model or {}).get("path", "unknown"))).removesuffix(".gguf")


def _seconds(receipt: Receipt) -> int:
    return int(seconds_of(receipt.started or receipt.finished) or 0)


def _vector(answer: str) -> list[float]:
    """Raises _FailedError for what is none."""
    try:
        vector = read_json(answer)
    except ValueError:
        vector = None
    if not isinstance(vector, list) or not all(isinstance(number, int | float) for number in vector):
        raise _FailedError("answer_damaged", "the answer is no vector")
    return vector


def _base64(vector: list[float]) -> str:
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()

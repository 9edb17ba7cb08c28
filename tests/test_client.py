"""nrvna from Python: what is queued, how it is waited for, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from claims import MODEL, claimed, receipt
from processes import DaemonProcess, until

import nrvna
from nrvna import (
    DamagedResultError,
    GrammarError,
    Job,
    JobError,
    JobFailedError,
    JobNotFoundError,
    JobState,
    Options,
    SettingError,
    SubmitError,
    Workspace,
    WorkspaceError,
)
from nrvna.config import Sampling
from nrvna.lease import Lease
from nrvna.workspace import Workspace as Folder

ROOT = Path(__file__).parents[1]

StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def work(workspace: Folder) -> Workspace:
    """A workspace that no daemon serves."""
    return Workspace(workspace.path)


@pytest.fixture
def answered(served: Folder) -> Workspace:
    """A workspace that a real daemon serves: short greedy answers."""
    return Workspace(served.path)


@pytest.fixture
def lease(workspace: Folder) -> Iterator[Lease]:
    """A daemon's hold on the workspace, for tests that say themselves when which job is finished."""
    held = Lease(workspace, MODEL)
    yield held
    held.close()


def finish(lease: Lease, answer: str = "done") -> str:
    """Finish the next job of the queue."""
    claim = claimed(lease)
    lease.finish(claim, answer, receipt(claim.id))
    return claim.id


def fail(lease: Lease, reason: str = "no luck") -> None:
    claim = claimed(lease)
    lease.fail(claim, reason, receipt(claim.id)._replace(finish_reason="error"))


def later(delay_s: float, action: Callable[[], object]) -> threading.Thread:
    """Do something while the test waits."""

    def run() -> None:
        time.sleep(delay_s)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


# The workspace.


def test_a_folder_that_is_no_workspace_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="wrk --init"):
        Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match="no workspace"):
        Workspace(tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


def test_a_workspace_can_be_made(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "new", create=True)
    assert Workspace(work.path).jobs() == []


def test_a_workspace_stays_where_it_is_when_the_program_goes_elsewhere(
    workspace: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(workspace.path).parent)
    work = Workspace(Path(workspace.path).name)
    monkeypatch.chdir(tmp_path.parent)
    assert work.submit("x").state is JobState.QUEUED


# What is asked.


def test_the_settings_of_a_job_are_its_own(answered: Workspace) -> None:
    job = answered.submit(
        "Count to a hundred.", temp=0.3, seed=42, top_k=7, max_tokens=5, min_tokens=5, stop="[never]"
    )
    job.result(timeout=60)
    sampling = job.receipt().sampling
    assert sampling is not None
    wanted = {"temp": 0.3, "seed": 42, "top_k": 7, "predict": 5, "min_tokens": 5, "stop": ["[never]"]}
    assert {name: sampling[name] for name in wanted} == wanted


def test_an_answer_that_a_limit_cut_says_so(answered: Workspace) -> None:
    job = answered.submit("Count to a hundred.", max_tokens=3, min_tokens=3)
    assert job.result(timeout=60)
    assert job.receipt().was_cut


def test_the_options_are_the_settings_of_a_job() -> None:
    assert set(Sampling.__dataclass_fields__) <= set(Options.__annotations__)


def test_none_is_the_same_as_not_asked(work: Workspace) -> None:
    plain: dict[str, Any] = dict.fromkeys(Options.__annotations__)
    work.submit("x", **plain)
    [folder] = Path(work.path, "input").iterdir()
    about = json.loads((folder / "job.json").read_text())
    assert {name: value for name, value in about.items() if name not in ("queued", "nrvna")} == {"settings": {}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tempp": 1}, "tempp is nothing that can be asked of a job: did you mean temp?"),
    ({"temperature": 1}, "temperature is nothing that can be asked of a job: did you mean temp?"),
    ({"colour": 1}, "colour is nothing that can be asked of a job: docs/python.md names what can"),
    ({"temp": 30}, "temp is 30, but must be a number from 0 to 10"),
    ({"temp": float("nan")}, "temp is nan, but must be a number from 0 to 10"),
    ({"temp": "hot"}, "temp is 'hot', but must be a number from 0 to 10"),
    ({"temp": object}, "temp is <class 'object'>, but must be a number from 0 to 10"),
    ({"max_tokens": 0}, "max_tokens is 0, but must be a whole number from 1 to 1000000"),
    ({"max_tokens": 1.5}, "max_tokens is 1.5, but must be a whole number from 1 to 1000000"),
    ({"predict": 5, "max_tokens": 5}, "max_tokens and predict are two names of one setting: give one of them"),
    ({"seed": -2}, "seed is -2, but must be a whole number from -1 to 4294967294"),
    ({"seed": True}, "seed is True, but must be a whole number from -1 to 4294967294"),
    ({"stop": [""]}, "stop is [''], but must be a text, or a JSON list of texts"),
    ({"samplers": ["top_q"]}, "samplers is ['top_q'], but must be names out of penalties"),
    ({"overflow": "cut"}, "overflow is 'cut', but must be fail, truncate-left"),
    ({"logit_bias": {"x": 5000}}, "logit_bias is {'x': 5000}, but must be JSON: an object or a list of pairs"),
    ({"system": 5}, "system is 5, but must be text"),
    ({"model": 5}, "model is 5, but must be text"),
    ({"key": b"x"}, "key is b'x', but must be text"),
    ({"key": "x" * 2000}, "the key is 'xxx"),
    ({"raw": 1}, "the task's raw must be true or false"),
    (
        {"raw": True, "system": "x"},
        "a raw prompt stands alone: no system message, no messages, no role, no variables",
    ),
    ({"messages": [{"role": "robot", "content": "x"}]}, "message 1 of the task has the role 'robot'"),
    ({"messages": "x"}, "the task's messages must be a list"),
    ({"template_kwargs": []}, "the task's template_kwargs must be a JSON object"),
    ({"choices": "yes,no"}, "choices is 'yes,no', but must be a list of texts"),
    ({"choices": ["yes"]}, "choices: a single choice leaves nothing to choose"),
    ({"schema": {"type": "text"}}, "schema: #/type: a type is one of null, boolean"),
    ({"schema": "{"}, "schema: line 1, column 2: no JSON"),
    ({"schema": 5}, "schema is 5, but must be a JSON schema: a dict, or JSON text"),
    ({"schema": {"enum": [object()]}}, "schema cannot be written as JSON"),
    ({"grammar": "root = x"}, "grammar: line 1"),
    (
        {"choices": ["a", "b"], "grammar": 'root ::= "a"'},
        "a job's answer follows one constraint, not grammar and choices",
    ),
    ({"embed": "yes"}, "embed is 'yes', but must be True or False"),
    ({"embed": True, "rerank": ["a"]}, "a job makes a vector or orders documents: give embed or rerank"),
    ({"embed": True, "choices": ["a", "b"]}, "a job that is to embed has no use for choices"),
    ({"rerank": "a text"}, "rerank is 'a text', but must be a list of texts"),
    ({"rerank": []}, "documents and the kind rerank go together"),
    ({"tags": "word"}, "tags is 'word', but must be a list of texts"),
    ({"tags": ["two words"]}, "the tag 'two words' must be a word"),
    ({"priority": 101}, "the priority is 101, but must be a whole number from -100 to 100"),
    ({"timeout": 0}, "the timeout is 0, but must be seconds"),
    ({"after": 5}, "after is 5, but must be jobs of this workspace, or their ids"),
    ({"after": ["20260101-000000-000000-abcdef"]}, "no job 20260101-000000-000000-abcdef in"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(options)[:40] for options, _ in WRONG])
def test_a_wrong_option_is_named_and_nothing_is_queued(
    work: Workspace, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((SettingError, GrammarError, JobNotFoundError)) as raised:
        work.submit("x", **options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert work.jobs() == []


@pytest.mark.parametrize("prompt", ["", " \n", "a\0b", "\udc80", b"x", None])
def test_a_prompt_that_cannot_run_is_refused(work: Workspace, prompt: Any) -> None:
    with pytest.raises(JobError, match="the prompt"):
        work.submit(prompt)
    assert work.jobs() == []


def test_a_stop_that_looks_like_a_list_is_a_text(work: Workspace) -> None:
    work.submit("x", stop="[1]")
    [folder] = Path(work.path, "input").iterdir()
    assert json.loads((folder / "job.json").read_text())["settings"] == {"stop": ["[1]"]}


def test_a_conversation_goes_on(answered: Workspace) -> None:
    plain = answered.submit("Go on.", system="You are a pirate.")
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    told = answered.submit("Go on.", system="You are a pirate.", messages=earlier)
    counts = [job.receipt(timeout=60).prompt_tokens or 0 for job in (plain, told)]
    assert counts[1] > counts[0] + 8


def test_an_answer_that_follows_a_schema_is_json(answered: Workspace) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    assert set(json.loads(answered.submit("Name a number.", schema=schema).result(timeout=60))) == {"n"}


def test_a_choice_comes_with_probabilities(answered: Workspace) -> None:
    job = answered.submit("Is the sky blue?", choices=["yes", "no"])
    answer, probabilities = job.result(timeout=60), job.probabilities()
    assert answer == max(probabilities, key=probabilities.__getitem__)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_vector_has_length_one(start_daemon: StartDaemon, embedder_file: Path, tmp_path: Path) -> None:
    start_daemon(tmp_path / "vectors", model=embedder_file)
    work = Workspace(tmp_path / "vectors")
    [cat, kitten, bond] = work.submit_all(["a cat", "a kitten", "a government bond"], embed=True)

    def likeness(one: Job, other: Job) -> float:
        return sum(a * b for a, b in zip(one.vector(60), other.vector(60), strict=True))

    assert likeness(cat, cat) == pytest.approx(1, abs=1e-5)
    assert likeness(cat, kitten) > likeness(cat, bond) + 0.2


def test_documents_come_back_best_first_whatever_is_in_them(
    start_daemon: StartDaemon, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    start_daemon(tmp_path / "ranks", model=tiny_models["reranker"])
    work = Workspace(tmp_path / "ranks")
    documents = ["in the sea", "a\ttab", "two\nlines\n0.5\t1\tin the sea", "", "fish"]
    ranking = work.submit("Where?", rerank=[text or " " for text in documents]).ranking(timeout=60)
    assert sorted(each.place for each in ranking) == list(range(5))
    assert all(each.document == (documents[each.place] or " ") for each in ranking)
    assert [each.score for each in ranking] == sorted((each.score for each in ranking), reverse=True)


def test_a_job_that_was_to_answer_has_no_vector_and_no_ranking(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    finish(lease, '["no", "vector"]')
    with pytest.raises(SettingError, match="embed=True"):
        job.vector()
    with pytest.raises(SettingError, match="rerank="):
        job.ranking()


# Many at once.


def test_many_are_queued_in_their_order(work: Workspace) -> None:
    jobs = work.submit_all(f"prompt {number}" for number in range(450))
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    assert [job.prompt for job in work.jobs()] == [f"prompt {number}" for number in range(450)]


def test_each_of_many_may_have_options_of_its_own(work: Workspace) -> None:
    prompts = ["a", {"prompt": "b", "tags": ["own"]}, {"prompt": "c", "priority": 1}]
    jobs = work.submit_all(prompts, tags=(word for word in ["shared", "too"]))  # type: ignore[arg-type]
    assert [job.tags for job in jobs] == [("shared", "too"), ("own",), ("shared", "too")]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", ""], "prompt 2: the prompt is empty"),
        (["a", {"prompt": "b", "temp": 99}], "prompt 2: temp is 99, but must be a number from 0 to 10"),
        ([{"temp": 1}], "prompt 1: {'temp': 1} has no prompt"),
        (["a", 5], "prompt 2: the prompt is 5, but must be text"),
        ("a text", "prompts is one, 'a text', but must be several: submit() takes one"),
    ],
)
def test_of_many_none_is_queued_if_one_cannot_be(work: Workspace, prompts: Any, message: str) -> None:
    with pytest.raises((SettingError, JobError)) as raised:
        work.submit_all(prompts)
    assert str(raised.value) == message
    assert work.jobs() == []


def test_a_disk_that_fills_up_half_way_leaves_what_is_queued_known(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def full(*_: object) -> None:
        if next(calls):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nrvna.submit.sync_tree", full)
    with pytest.raises(SubmitError, match="No space left") as raised:
        work.submit_all(["x"] * 300)
    assert raised.value.queued == [job.id for job in work.jobs()]
    assert len(raised.value.queued) == 200


def test_answers_come_in_the_order_of_their_prompts(work: Workspace, lease: Lease) -> None:
    answers = work.map(["a", "b", "c"])
    claims = [claimed(lease) for _ in range(3)]
    for claim in reversed(claims):
        lease.finish(claim, f"answer to {lease.prompt(claim)}", receipt(claim.id))
    assert list(answers) == ["answer to a", "answer to b", "answer to c"]


def test_an_answer_that_is_there_does_not_wait_for_a_later_one(work: Workspace, lease: Lease) -> None:
    answers = work.map(["a", "b"])
    finish(lease, "first")
    assert next(answers) == "first"


# Keys, and jobs after others.


def test_one_key_is_one_job(work: Workspace) -> None:
    first = work.submit("x", key="k")
    again = work.submit("x", key="k")
    assert first == again and len({first, again}) == 1
    assert work.submit("x") not in {first}
    assert list(work.wait([first, again], timeout=0).not_done) == [first]


def test_a_job_gets_the_answers_of_those_before_it(answered: Workspace) -> None:
    parts = answered.submit_all(["Name a colour.", "Name a fruit."])
    whole = answered.submit("Join these: {result}", after=parts)
    whole.result(timeout=60)
    filled = Path(answered.path, "output", whole.id, "filled.txt").read_text()
    assert filled == "Join these: " + "\n\n".join(part.result().rstrip("\n") for part in parts)


def test_braces_around_a_result_make_it_text(work: Workspace) -> None:
    child = work.submit("{{result}}: {result}", after=work.submit("x"))
    assert child.prompt == "{result}: {result}"
    about = json.loads(Path(work.path, "input", child.id, "job.json").read_text())
    assert about["results"] == [10]


def test_a_failed_job_fails_the_one_after_it_with_the_reason(answered: Workspace) -> None:
    parent = answered.submit("word " * 3000)
    child = answered.submit("{result}", after=parent)
    with pytest.raises(JobFailedError, match=f"{child.id} failed: the job {parent.id}, which it comes after, failed"):
        child.result(timeout=60)


def test_a_prompt_that_wants_the_answer_of_a_stranger_is_refused(work: Workspace) -> None:
    parent = work.submit("x")
    with pytest.raises(JobError, match="names no job that this one comes after"):
        work.submit("{result:20990101}", after=parent)


def test_a_job_of_another_workspace_cannot_be_waited_for_or_come_before(work: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other", create=True).submit("x")
    with pytest.raises(SettingError, match=f"not of {work.path}"):
        work.wait([other])
    with pytest.raises(SettingError, match="must be jobs of"):
        work.submit("x", after=other)


# Waiting.


def test_an_answer_is_there_soon_after_it_was_filed(work: Workspace, lease: Lease) -> None:
    delays = []
    for _ in range(5):
        job = work.submit("x")
        thread = later(0.3, lambda: finish(lease))
        assert job.result(timeout=30) == "done"
        # The answer's folder was written to just before it was filed.
        delays.append(time.time() - Path(work.path, "output", job.id).stat().st_mtime)
        thread.join()
    assert sorted(delays)[2] < 0.1


def test_a_timeout_says_how_the_job_is_doing_and_why(workspace: Folder, work: Workspace) -> None:
    job = work.submit("x")
    with pytest.raises(
        TimeoutError, match=r"is queued after 0 s, and no daemon answers it \(start one: nrvnad MODEL"
    ):
        job.result(timeout=0)
    lease = Lease(workspace, MODEL)
    with pytest.raises(TimeoutError, match=r"is queued after 0\.05 s, and its daemon is still loading the model$"):
        job.result(timeout=0.05)
    lease.announce_ready()
    claimed(lease)
    with pytest.raises(TimeoutError, match=rf"^{job.id} is running after 0\.05 s$"):
        job.result(timeout=0.05)


@pytest.mark.slow
def test_who_waits_without_a_daemon_is_told_so_once(work: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    job = work.submit("x")
    with caplog.at_level(logging.WARNING, "nrvna"):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                job.result(timeout=2.2)
    assert [record.message for record in caplog.records] == [
        f"still waiting, and no daemon answers the jobs of {work.path}: start one with nrvnad MODEL {work.path}"
    ]


def test_a_failed_job_raises_its_reason(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    assert not job.done()
    fail(lease, "the context is too small")
    with pytest.raises(JobFailedError, match=f"^{job.id} failed: the context is too small$") as raised:
        job.result()
    assert (raised.value.id, raised.value.finish_reason) == (job.id, "error")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert str(job.exception()) == str(raised.value)
    assert job.done() and job.state == "failed" and job.receipt().finish_reason == "error"


def test_a_job_that_is_removed_is_waited_for_no_longer(work: Workspace) -> None:
    job = work.submit("x")
    thread = later(0.2, lambda: shutil.rmtree(Path(work.path, "input", job.id)))
    with pytest.raises(JobNotFoundError, match=job.id):
        job.result(timeout=30)
    thread.join()
    assert job.done()
    assert list(work.as_completed([job], timeout=30)) == [job]
    assert work.wait([job], timeout=30).done == {job}


def test_a_workspace_that_is_removed_is_waited_for_no_longer(work: Workspace) -> None:
    jobs = work.submit_all(["x"] * 40)
    thread = later(0.2, lambda: shutil.rmtree(work.path))
    with pytest.raises(WorkspaceError, match="cannot read"):
        list(work.as_completed(jobs, timeout=30))
    thread.join()


def test_jobs_come_as_they_end(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 30)
    claims = [claimed(lease) for _ in jobs]
    order = [*claims[20:], *claims[10:20], *claims[:10]]
    ended = []
    completed = work.as_completed(jobs, timeout=30)
    for claim in order[:15]:
        lease.finish(claim, "done", receipt(claim.id))
        time.sleep(0.01)
    ended += [next(completed) for _ in range(15)]
    for claim in order[15:]:
        lease.finish(claim, "done", receipt(claim.id))
        ended.append(next(completed))
    assert [job.id for job in ended] == [claim.id for claim in order]
    assert list(completed) == []


def test_a_timeout_while_jobs_end_counts_those_that_did_not(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 3)
    finish(lease)
    completed = work.as_completed(jobs, timeout=0)
    assert next(completed) == jobs[0]
    with pytest.raises(TimeoutError, match="2 of 3 jobs are unfinished after 0 s"):
        next(completed)
    finish(lease)
    assert next(completed) == jobs[1]


def test_wait_tells_apart_what_is_done(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 4)
    assert work.wait(jobs, timeout=0) == (set(), set(jobs))
    finish(lease)
    finish(lease)
    assert work.wait(jobs, return_when="FIRST_COMPLETED") == (set(jobs[:2]), set(jobs[2:]))
    fail(lease)
    assert work.wait(jobs, 30, "FIRST_EXCEPTION").done == set(jobs[:3])
    finish(lease)
    assert work.wait(jobs) == (set(jobs), set())
    assert work.wait([]) == (set(), set())
    with pytest.raises(SettingError, match="return_when"):
        work.wait(jobs, return_when="SOON")  # type: ignore[arg-type]


def test_wait_for_a_failure_ends_with_all_that_have_ended_with_it(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 4)
    fail(lease)
    finish(lease)
    finish(lease)
    assert work.wait(jobs, 30, "FIRST_EXCEPTION") == (set(jobs[:3]), {jobs[3]})


def test_wait_without_jobs_waits_for_all_that_are_unfinished_now(work: Workspace, lease: Lease) -> None:
    finished, job = work.submit_all(["x", "y"])
    finish(lease)
    thread = later(0.2, lambda: finish(lease))
    assert work.wait(timeout=30) == ({job}, set())
    thread.join()
    assert finished not in work.as_completed()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2000])
def test_waiting_is_sparing(work: Workspace, lease: Lease, count: int) -> None:
    jobs = work.submit_all(["x"] * count)
    work.wait(jobs, timeout=0.5)
    before = time.thread_time()
    assert len(work.wait(jobs, timeout=2).not_done) == count
    assert time.thread_time() - before < 0.3
    assert lease.claim()


def test_thousands_of_jobs_are_all_seen_to_end(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 2000)
    for folder in Path(work.path, "input").iterdir():
        if not folder.name.startswith("."):
            (folder / "error.txt").write_text("as one")
            folder.rename(Path(work.path, "failed", folder.name))
    assert work.wait(jobs, timeout=60).done == set(jobs)
    assert lease.claim() is None


def test_a_job_put_back_into_the_queue_is_waited_for_again(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    fail(lease)
    assert job.state == "failed"
    Path(work.path, "failed", job.id).rename(Path(work.path, "input", job.id))
    assert job.state == "queued"
    thread = later(0.2, lambda: finish(lease))
    assert job.result(timeout=30) == "done"
    thread.join()


@pytest.mark.slow
def test_a_killed_daemon_delays_an_answer_and_no_more(start_daemon: StartDaemon, work: Workspace) -> None:
    options = ("--ctx", "1024", "--parallel", "4")
    daemon = start_daemon(work.path, *options)
    jobs = work.submit_all(["Tell a story."] * 3, temp=0, max_tokens=150, min_tokens=150)
    completed: list[Job] = []
    waits = threading.Thread(target=lambda: completed.extend(work.as_completed(jobs)))
    waits.start()
    until(lambda: any(job.so_far() for job in jobs), "the first words")
    daemon.kill()
    assert not any(job.done() for job in jobs)
    start_daemon(work.path, *options)
    waits.join(60)
    assert set(completed) == set(jobs)
    assert {job.receipt().generated_tokens for job in jobs} == {150}
    assert jobs[0].result().startswith(jobs[0].so_far())


# What was shown stays.


def test_what_is_shown_survives_a_power_cut(work: Workspace, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    jobs = work.submit_all(["x"] * 4)
    for _ in jobs:
        finish(lease)
    time.sleep(0.1)
    monkeypatch.setattr("nrvna.workspace.sync", synced.append)
    both = [str(Path(work.path, "output")), str(Path(work.path, "failed"))]
    for ask in (
        lambda view: view.job(jobs[0].id).result(),
        lambda view: view.job(jobs[1].id).done(),
        lambda view: view.jobs(),
        lambda view: list(view.as_completed(jobs)),
        lambda view: view.job(jobs[2].id).exception(),
        lambda view: asyncio.run(awaited(view.job(jobs[3].id))),
    ):
        synced.clear()
        ask(Workspace(work.path))
        assert synced[:2] == both
    synced.clear()
    for job in work.jobs():
        job.result()
    assert len(synced) == 2


async def awaited(job: Job) -> str:
    return await job


def test_a_disk_that_does_not_confirm_shows_nothing(
    work: Workspace, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = work.submit("x")
    finish(lease)

    def refuse(_: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("nrvna.workspace.sync", refuse)
    for ask in (
        job.result,
        job.done,
        work.jobs,
        lambda: asyncio.run(awaited(job)),
        lambda: list(work.as_completed([job])),
    ):
        with pytest.raises(WorkspaceError, match="does not confirm"):
            ask()


def test_a_damaged_answer_is_not_taken_for_one(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    finish(lease, "the answer")
    Path(work.path, "output", job.id, "result.txt").write_text("another")
    with pytest.raises(DamagedResultError, match="another answer than the one that its receipt was written for"):
        job.result()
    Path(work.path, "output", job.id, "receipt.json").unlink()
    with pytest.raises(DamagedResultError, match="no receipt"):
        job.receipt()


def test_a_result_is_read_again_and_again(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    finish(lease, "the answer")
    assert job.result() == job.result() == work.job(job.id).result() == job.so_far() == "the answer"


def test_a_finished_job_that_is_removed_is_not_found(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    finish(lease)
    assert job.result() == "done"
    shutil.rmtree(Path(work.path, "output", job.id))
    with pytest.raises(JobNotFoundError):
        job.result()
    with pytest.raises(JobNotFoundError):
        work.job(job.id)


def test_what_a_model_thought_is_beside_its_answer(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    claim = claimed(lease)
    lease.finish(claim, "4", receipt(claim.id), {"reasoning.txt": b"two and two"})
    assert (job.result(), job.reasoning()) == ("4", "two and two")


# Cancelling and listing.


def test_a_job_that_waits_is_cancelled(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    assert job.cancel() and job.cancel()
    assert lease.claim() is None
    error = job.exception()
    assert error is not None and error.finish_reason == "cancelled"


def test_a_running_job_is_cancelled_by_its_daemon(answered: Workspace) -> None:
    job = answered.submit("Tell a story.", max_tokens=700, ignore_eos=True)
    until(lambda: bool(job.so_far()), "the first words")
    assert job.cancel(timeout=30)
    with pytest.raises(JobFailedError, match="cancelled"):
        job.result()


def test_a_job_that_is_done_cannot_be_cancelled(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    finish(lease)
    assert not job.cancel()
    assert job.result() == "done"


def test_a_cancel_that_no_daemon_confirms_says_so(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    assert claimed(lease).id == job.id
    with pytest.raises(TimeoutError, match=r"its daemon did not confirm that in 0\.1 s"):
        job.cancel(timeout=0.1)


def test_jobs_are_found_by_state_and_tag(work: Workspace, lease: Lease) -> None:
    first, second, third = work.submit_all(
        [{"prompt": "a", "tags": ["red"]}, "b", {"prompt": "c", "tags": ["red", "x"]}]
    )
    finish(lease)
    assert work.jobs() == [first, second, third]
    assert work.jobs("queued") == [second, third]
    assert work.jobs(tag="red") == [first, third]
    assert work.jobs(JobState.DONE, tag="x") == []
    with pytest.raises(SettingError, match="state is 'ready', but must be queued, running, done, failed"):
        work.jobs("ready")


def test_a_job_is_known_by_its_id(work: Workspace) -> None:
    job = work.submit("What is it?", tags=["x"])
    found = work.job(job.id)
    assert (found, found.prompt, found.tags, found.state) == (job, "What is it?", ("x",), "queued")
    assert job.id in repr(found) and found.workspace == work.path
    with pytest.raises(JobNotFoundError):
        work.job("../elsewhere")


def test_a_job_goes_to_another_process_and_back(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")
    finish(lease)
    assert asyncio.run(awaited(job)) == "done"
    assert pickle.loads(pickle.dumps([job, work]))[0] == job
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(job.result).result() == "done"


# Event loops.


def test_many_are_awaited_at_once(answered: Workspace) -> None:
    async def main() -> list[str]:
        jobs = await asyncio.to_thread(answered.submit_all, ["Say hi."] * 20, max_tokens=3)
        async with asyncio.timeout(60):
            return await asyncio.gather(*jobs)

    answers = asyncio.run(main())
    assert len(answers) == 20 and all(answers)


def test_awaits_need_no_thread_each_and_leave_the_loop_free(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 300)
    claims = [claimed(lease) for _ in jobs]
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    def answer() -> None:
        for claim in claims:
            lease.finish(claim, "done", receipt(claim.id))

    async def main() -> list[str]:
        ticker = asyncio.create_task(tick())
        filing = asyncio.create_task(asyncio.to_thread(answer))
        answers = await asyncio.gather(*jobs)
        threads.append(threading.active_count())
        await filing
        ticker.cancel()
        return answers

    threads = [threading.active_count()]
    assert asyncio.run(main()) == ["done"] * 300
    assert threads[1] - threads[0] <= (os.cpu_count() or 1) + 5
    assert max(later - earlier for earlier, later in itertools.pairwise(ticks)) < 0.5


def test_an_await_that_is_cancelled_cancels_no_job(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")

    async def main() -> str:
        task = asyncio.ensure_future(job)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await job
        assert job.state == "queued"
        finish(lease)
        return await job

    assert asyncio.run(main()) == "done"


def test_one_of_two_awaits_may_be_cancelled(work: Workspace, lease: Lease) -> None:
    job = work.submit("x")

    async def main() -> str:
        one, other = asyncio.ensure_future(job), asyncio.ensure_future(job)
        await asyncio.sleep(0.1)
        one.cancel()
        await asyncio.to_thread(finish, lease)
        return await other

    assert asyncio.run(main()) == "done"


def test_nothing_goes_on_once_nobody_awaits(work: Workspace) -> None:
    job = work.submit("x")

    async def main() -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await job
        await asyncio.sleep(0.3)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1


def test_a_program_may_end_while_it_awaits(work: Workspace) -> None:
    job = work.submit("x")

    async def main() -> None:
        asyncio.ensure_future(job).add_done_callback(lambda _: None)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert job.state == "queued"


def test_jobs_come_to_a_loop_as_they_end(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 6)
    claims = [claimed(lease) for _ in jobs]
    lease.finish(claims[3], "done", receipt(claims[3].id))

    async def main() -> list[Job]:
        ended = []
        async for job in work.as_completed(jobs, timeout=30):
            ended.append(job)
            if left := [claim for claim in reversed(claims) if jobs[claims.index(claim)] not in ended]:
                lease.finish(left[0], "done", receipt(left[0].id))
        return ended

    assert asyncio.run(main()) == [jobs[number] for number in (3, 5, 4, 2, 1, 0)]


def test_a_loop_that_stops_early_leaves_nothing_running(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 3)

    async def main() -> int:
        later(0.1, lambda: finish(lease)).join()
        async for _ in work.as_completed(jobs):
            break
        await asyncio.sleep(0.3)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1


def test_a_timeout_in_a_loop_counts_those_that_did_not_end(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 3)
    finish(lease)

    async def main(timeout: float) -> list[Job]:
        ended: list[Job] = []
        with pytest.raises(TimeoutError, match=f"2 of 3 jobs are unfinished after {timeout:g} s"):
            async for job in work.as_completed(jobs, timeout):
                ended += [job]
        return ended

    for timeout in (0, 0.1):
        assert asyncio.run(main(timeout)) == jobs[:1]


def test_awaiting_a_failed_or_removed_job_raises_why(work: Workspace, lease: Lease) -> None:
    failed, removed = work.submit_all(["x", "y"])
    fail(lease)

    async def main() -> list[str | BaseException]:
        thread = later(0.1, lambda: shutil.rmtree(Path(work.path, "input", removed.id)))
        async with asyncio.timeout(30):
            found = await asyncio.gather(*[failed, removed], return_exceptions=True)
        thread.join()
        return found

    assert [type(error) for error in asyncio.run(main())] == [JobFailedError, JobNotFoundError]


def test_awaiting_in_a_workspace_that_is_removed_raises(work: Workspace) -> None:
    jobs = work.submit_all(["x"] * 3)

    async def main() -> list[str | BaseException]:
        thread = later(0.1, lambda: shutil.rmtree(work.path))
        async with asyncio.timeout(30):
            found = await asyncio.gather(*jobs, return_exceptions=True)
        thread.join()
        return found

    assert [type(error) for error in asyncio.run(main())] == [WorkspaceError] * 3


def test_loops_of_several_threads_share_a_workspace(work: Workspace, lease: Lease) -> None:
    jobs = work.submit_all(["x"] * 4)
    answers: list[str] = []

    async def main() -> None:
        answers.extend(await asyncio.gather(*jobs))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in jobs:
        finish(lease)
    for thread in threads:
        thread.join(30)
    assert answers == ["done"] * 12


# The package.


def test_every_name_that_the_package_exports_is_there() -> None:
    assert all(getattr(nrvna, name) is not None for name in nrvna.__all__)
    assert set(nrvna.__all__) <= set(dir(nrvna))
    with pytest.raises(AttributeError, match="no attribute 'Wrokspace'"):
        getattr(nrvna, "Wrokspace")  # noqa: B009


@pytest.mark.parametrize("module", ["nrvna", "nrvna.wrk", "nrvna.flw", "nrvna.daemon", "nrvna.llama"])
def test_who_does_not_ask_for_it_does_not_load_it(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"nrvna.client", "nrvna.handle", "nrvna.watch", "nrvna.request", "asyncio"} & set(loaded)


def test_a_program_that_does_not_await_loads_no_asyncio() -> None:
    code = "import sys; from nrvna import Workspace; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "numpy", "cffi", "nrvna.llama", "nrvna.engine"} & set(loaded)


# A program as its author's type checker sees it: each wrong line is marked, and a mark too many is an error as well.
PROGRAM = """
import asyncio
from nrvna import Finished, Job, JobFailedError, JobState, Options, Ranked, Receipt, Request, Workspace
from nrvna import Wrokspace  # type: ignore[attr-defined]

work = Workspace("~/work", create=True)
job: Job = work.submit("x", temp=0, max_tokens=8, stop=["a"], choices=("yes", "no"), after=["id"], seed=None)
text: str = job.result(timeout=1.5)
state: JobState = job.state
failed: JobFailedError | None = job.exception()
vector: list[float] = job.vector()
ranking: list[Ranked] = job.ranking()
receipt: Receipt = job.receipt()
parts: list[Job] = work.submit_all((f"{number}" for number in range(3)), tags=["x"])
own: list[Request] = [{"prompt": "x", "seed": number} for number in range(3)]
work.submit_all(own, after=parts)
shared: Options = {"temp": 0.5, "schema": {"type": "object"}}
finished: Finished = work.wait(work.submit_all(["x"], **shared), timeout=1, return_when="FIRST_COMPLETED")
first: set[Job] = finished.done
texts: list[str] = [each for each in work.map(["a"])] + [each.result() for each in work.as_completed(parts)]


async def main() -> None:
    one: str = await job
    several: list[str] = await asyncio.gather(*parts)
    queued: Job = await asyncio.to_thread(work.submit, "x")
    async for each in work.as_completed(parts):
        print(each.id, one, several, queued)


work.submit(5)  # type: ignore[arg-type]
work.submit("x", tempp=1)  # type: ignore[call-arg]
work.submit("x", temp="hot")  # type: ignore[arg-type]
work.submit_all([{"temp": 1}])  # type: ignore[list-item]
work.wait(parts, return_when="SOON")  # type: ignore[arg-type]
job.resutl()  # type: ignore[attr-defined]
"""


def test_type_checkers_know_the_package_from_outside(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    [packages] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "nrvna.pth").write_text(str(ROOT))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(tmp_path / "venv" / "bin" / "python"),
        "program.py",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr

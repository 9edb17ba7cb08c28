"""The power fails after every single file operation: what was promised by then holds, whatever the disk kept."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from io import StringIO
from operator import eq
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from power import Disk, Killed, Operation, Recorder, Tree, in_memory, read_tree, write_tree

from nrvna import files
from nrvna.collect import DONE, FAILED, print_answers
from nrvna.errors import JobError, WorkspaceError
from nrvna.finished import ask_again, remove_finished
from nrvna.job import JobState, Receipt, is_generated_id, new_id
from nrvna.lease import Claim, Lease, cancel, recover
from nrvna.order import Order
from nrvna.progress import first_line, token_line
from nrvna.workspace import REMOVED, Workspace

Rounds = Callable[..., int]
MODEL = {"path": "/models/a.gguf", "size": 1, "mtime_ns": 1}


class Fact(NamedTuple):
    """Something that was promised of a job, or is going to be done with it."""

    kind: str
    id: str = ""
    value: Any = None


def receipt(job_id: str) -> Receipt:
    return Receipt(job_id, "stop", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "0.1.0", generated_tokens=2)


class Stage:
    """Real calls on a real workspace, and what they promised."""

    def __init__(self, workspace: Workspace, recorder: Recorder) -> None:
        self.workspace = workspace
        self.recorder = recorder

    def note(self, kind: str, job_id: str = "", value: Any = None) -> None:
        self.recorder.events.append(Fact(kind, job_id, value))

    def submit(self, *prompts: str, **settings: Any) -> list[str]:
        ids = self.workspace.submit_all([Order(prompt, settings) for prompt in prompts])
        for job_id, prompt in zip(ids, prompts, strict=True):
            self.note("queued", job_id, (prompt, settings))
        return ids

    def order(self, *orders: Order) -> list[str]:
        ids = self.workspace.submit_all(orders)
        for job_id, order in zip(ids, orders, strict=True):
            self.note("ordered", job_id, order)
            self.note("queued", job_id, (order.prompt, {}))
        return ids

    def lease(self) -> Lease:
        return Lease(self.workspace, MODEL)

    def claim(self, lease: Lease) -> Claim:
        claim = lease.claim()
        assert claim is not None
        return claim

    def start(self, lease: Lease, *claims: Claim) -> None:
        lease.record_starts(claims)
        for claim in claims:
            self.note("begun", claim.id, claim.begun + 1)

    def finish(self, lease: Lease, claim: Claim, answer: str) -> None:
        self.note("filing", claim.id, ("result.txt", answer.encode()))
        lease.finish(claim, answer, receipt(claim.id))
        self.note("filed", claim.id)

    def fail(self, lease: Lease, claim: Claim, reason: str) -> None:
        self.note("filing", claim.id, ("error.txt", f"{reason}\n".encode()))
        lease.fail(claim, reason, Receipt.of_failure(claim.id, claim.queued, reason))
        self.note("filed", claim.id)

    def crash(self, lease: Lease) -> None:
        claim = self.claim(lease)
        self.start(lease, claim)
        crashed = lease.record_crash(claim)
        self.note("crashes", claim.id, crashed.crashes)
        self.requeue(lease, [crashed])

    def requeue(self, lease: Lease, claims: list[Claim], begun: list[Claim] | None = None) -> None:
        for claim in claims:
            # What was begun is written down without waiting for it once the job is given back.
            self.note("begun", claim.id, 0)
        lease.requeue(claims, begun or [])

    def ask_again(self, *ids: str) -> None:
        for job_id in ids:
            self.note("asking", job_id)
        assert ask_again(self.workspace, [self.workspace.find(job_id) for job_id in ids]) == list(ids)
        for job_id in ids:
            self.note("asked", job_id)

    def remove(self, *ids: str) -> None:
        for job_id in ids:
            self.note("removing", job_id)
        assert remove_finished(self.workspace, [self.workspace.find(job_id) for job_id in ids]) == list(ids)
        for job_id in ids:
            self.note("removed", job_id)

    def recover(self) -> list[str]:
        return recover(self.workspace)

    def die_after(self, is_last: Callable[[Operation], bool], work: Callable[[], Any]) -> None:
        """Do it in a process that dies there; what it had locked is free again."""
        self.recorder.dies_after = is_last
        with pytest.raises(Killed):
            work()
        self.recorder.bury()


def moved_to(folder: str) -> Callable[[Operation], bool]:
    return lambda operation: operation.kind == "rename" and operation.target.startswith(f"workspace/{folder}/")


@contextmanager
def no_room_for_starts() -> Iterator[None]:
    """Whatever is put on record, what has moved on is forgotten first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nrvna.lease._MANY_STARTS_BYTES", 1)
        yield


# What is done, each from an empty workspace on.


def a_workspace_is_made_and_a_job_queued(stage: Stage) -> None:
    stage.workspace.create()
    stage.note("created")
    stage.submit("one", temperature=0.5)


def a_workspace_is_made_in_two_goes_and_a_job_queued(stage: Stage) -> None:
    for name in ("above/workspace", "above/workspace/input", "above/workspace/output"):
        stage.die_after(partial(eq, Operation("mkdir", name)), stage.workspace.create)
    stage.workspace.create()
    stage.submit("one")


def two_jobs_are_queued(stage: Stage) -> None:
    stage.submit("one", temperature=0.5)
    stage.submit("two")


def five_jobs_are_queued_at_once(stage: Stage) -> None:
    stage.submit("one", "two", "three", "four", "five", seed=5)


def two_jobs_are_queued_under_the_same_id(stage: Stage) -> None:
    [first] = stage.submit("one")
    ids = iter([first, first])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nrvna.submit.new_id", lambda after_us: next(ids, None) or new_id(after_us))
        stage.submit("two")


def a_job_with_a_key_is_queued(stage: Stage) -> None:
    stage.order(Order("one", key="k"))
    stage.submit("two")


def jobs_with_keys_are_queued_at_once(stage: Stage) -> None:
    stage.order(Order("one", key="k"), Order("two", key="l", priority=2), Order("three"))


def urgent_jobs_are_queued(stage: Stage) -> None:
    stage.submit("one")
    stage.order(Order("two", priority=5))
    stage.order(Order("three", priority=1))


def an_answer_goes_into_the_next_prompt(stage: Stage) -> None:
    lease = stage.lease()
    [parent] = stage.submit("one")
    [child] = stage.order(Order("{result}!", after=(parent,)))
    stage.finish(lease, stage.claim(lease), "the answer")
    claim = stage.claim(lease)
    assert lease.prompt(claim) == "the answer!"
    stage.note("filled", child, b"the answer!")
    stage.start(lease, claim)
    stage.finish(lease, claim, "yes")


def a_job_is_answered(stage: Stage) -> None:
    lease = stage.lease()
    stage.submit("one")
    claim = stage.claim(lease)
    stage.start(lease, claim)
    lease.append_progress(claim, first_line("key", 7))
    lease.append_progress(claim, token_line(1, "the "))
    stage.finish(lease, claim, "the answer")
    lease.close()


def an_answer_is_shown_before_its_daemon_has_confirmed_it(stage: Stage) -> None:
    lease = stage.lease()
    [job_id] = stage.submit("one")
    claim = stage.claim(lease)
    shown: list[str] = []

    def look() -> None:
        if shown or not stage.workspace.find(job_id).is_finished:
            return
        with redirect_stdout(StringIO()) as out:
            assert print_answers(stage.workspace, [job_id], wait=False) == DONE
        shown.append(out.getvalue())
        stage.note("filed", job_id)

    stage.recorder.observer = look
    stage.finish(lease, claim, "the answer")
    assert shown == ["the answer\n"]


def a_reason_is_shown_before_its_daemon_has_confirmed_it(stage: Stage) -> None:
    lease = stage.lease()
    [job_id] = stage.submit("one")
    claim = stage.claim(lease)
    shown: list[str] = []

    def look() -> None:
        if shown or not stage.workspace.find(job_id).is_finished:
            return
        with redirect_stderr(StringIO()) as out:
            assert print_answers(stage.workspace, [job_id], wait=False) == FAILED
        shown.append(out.getvalue())
        stage.note("filed", job_id)

    stage.recorder.observer = look
    stage.fail(lease, claim, "too long")
    assert len(shown) == 1


def a_job_fails(stage: Stage) -> None:
    lease = stage.lease()
    stage.submit("one")
    claim = stage.claim(lease)
    stage.fail(lease, claim, "too long")
    lease.close()


def jobs_are_handed_back(stage: Stage) -> None:
    lease = stage.lease()
    stage.submit("one", "two")
    first, second = stage.claim(lease), stage.claim(lease)
    stage.start(lease, first)
    lease.append_progress(first, first_line("key", 7) + token_line(1, "the "))
    stage.requeue(lease, [first, second], [first])
    lease.close()


def starts_of_what_has_moved_on_are_forgotten(stage: Stage) -> None:
    stage.submit("one", "two", "three")
    with no_room_for_starts():
        lease = stage.lease()
        first, second, third = (stage.claim(lease) for _ in range(3))
        stage.start(lease, first, second)
        stage.finish(lease, first, "the answer")
        stage.start(lease, third)


def a_daemon_dies_while_it_forgets_starts(stage: Stage) -> None:
    stage.submit("one", "two")
    with no_room_for_starts():
        lease = stage.lease()
        first, second = stage.claim(lease), stage.claim(lease)
        stage.start(lease, first)
        stage.die_after(lambda operation: operation.kind == "write", lambda: lease.record_starts([second]))
    stage.recover()


def a_daemon_dies_and_its_jobs_are_recovered(stage: Stage) -> None:
    stage.submit("one", "two", "three")
    lease = stage.lease()
    first, _, third = (stage.claim(lease) for _ in range(3))
    stage.start(lease, first)
    stage.start(lease, third)
    lease.append_progress(first, first_line("key", 7) + token_line(1, "the "))
    stage.recorder.bury()
    stage.recover()


def a_daemon_dies_while_it_files_a_result(stage: Stage) -> None:
    stage.submit("one")
    lease = stage.lease()
    claim = stage.claim(lease)
    stage.die_after(moved_to("output"), lambda: stage.finish(lease, claim, "the answer"))
    stage.recover()


def a_daemon_dies_while_it_files_a_failure(stage: Stage) -> None:
    stage.submit("one")
    lease = stage.lease()
    claim = stage.claim(lease)
    stage.die_after(moved_to("failed"), lambda: stage.fail(lease, claim, "too long"))
    stage.recover()


def a_daemon_dies_while_it_hands_jobs_back(stage: Stage) -> None:
    stage.submit("one", "two")
    lease = stage.lease()
    claims = [stage.claim(lease), stage.claim(lease)]
    stage.die_after(moved_to("input"), lambda: stage.requeue(lease, claims, claims))
    stage.recover()


def a_job_crashes_the_engine_three_times(stage: Stage) -> None:
    stage.submit("one")
    lease = stage.lease()
    for _ in range(3):
        stage.crash(lease)
    claim = stage.claim(lease)
    assert claim.crashes == 3
    stage.start(lease, claim)
    stage.requeue(lease, [claim], [claim])


def a_job_crashes_and_then_its_daemon_dies(stage: Stage) -> None:
    stage.submit("one")
    lease = stage.lease()
    stage.crash(lease)
    claim = stage.claim(lease)
    stage.start(lease, claim)
    stage.recorder.bury()
    stage.recover()


def a_waiting_job_is_cancelled(stage: Stage) -> None:
    [first, _] = stage.submit("one", "two")
    stage.note("filing", first, ("error.txt", b"cancelled before it was begun\n"))
    assert cancel(stage.workspace, stage.workspace.find(first))
    stage.note("filed", first)


def a_running_job_is_cancelled(stage: Stage) -> None:
    stage.submit("one")
    lease = stage.lease()
    claim = stage.claim(lease)
    assert not cancel(stage.workspace, stage.workspace.find(claim.id))
    stage.fail(lease, claim, "cancelled while it was being answered")


def an_answer_grows_and_is_cut(stage: Stage) -> None:
    stage.submit("one")
    lease = stage.lease()
    claim = stage.claim(lease)
    stage.start(lease, claim)
    lease.append_progress(claim, first_line("key", 7))
    for token in range(3):
        lease.append_progress(claim, token_line(token, f"{token} "))
    lease.cut_progress(claim, 1)
    lease.append_progress(claim, token_line(9, "nine "))
    lease.cut_progress(claim, 0)
    lease.append_progress(claim, first_line("other key", 8))


def a_cancelled_job_is_asked_again(stage: Stage) -> None:
    stage.submit("one")
    lease = stage.lease()
    stage.crash(lease)
    claim = stage.claim(lease)
    stage.start(lease, claim)
    lease.append_progress(claim, first_line("key", 7) + token_line(1, "the "))
    assert not cancel(stage.workspace, stage.workspace.find(claim.id))
    stage.fail(lease, claim, "cancelled while it was being answered")
    stage.ask_again(claim.id)


def two_failed_jobs_are_asked_again_at_once(stage: Stage) -> None:
    [first] = stage.order(Order("one"))
    [urgent] = stage.order(Order("two", priority=5))
    lease = stage.lease()
    for claim in (stage.claim(lease), stage.claim(lease)):
        stage.fail(lease, claim, "too long")
    stage.ask_again(first, urgent)


def an_urgent_job_is_asked_again_and_answered(stage: Stage) -> None:
    [urgent] = stage.order(Order("one", priority=5, key="k"))
    lease = stage.lease()
    stage.fail(lease, stage.claim(lease), "too long")
    stage.ask_again(urgent)
    stage.finish(lease, stage.claim(lease), "an answer at last")


def a_done_job_is_asked_again(stage: Stage) -> None:
    [job_id] = stage.submit("one")
    lease = stage.lease()
    stage.finish(lease, stage.claim(lease), "the first answer")
    stage.ask_again(job_id)


def finished_jobs_are_removed(stage: Stage) -> None:
    [done] = stage.order(Order("one", key="k"))
    [failed] = stage.order(Order("two"))
    lease = stage.lease()
    stage.finish(lease, stage.claim(lease), "the answer")
    stage.fail(lease, stage.claim(lease), "too long")
    stage.remove(done, failed)


def a_process_dies_while_it_removes_a_job(stage: Stage) -> None:
    [done] = stage.order(Order("one", key="k"))
    lease = stage.lease()
    stage.finish(lease, stage.claim(lease), "the answer")
    stage.die_after(lambda operation: operation.kind == "unlink", lambda: stage.remove(done))
    stage.recover()


STORIES: list[Callable[[Stage], None]] = [
    a_workspace_is_made_and_a_job_queued,
    a_workspace_is_made_in_two_goes_and_a_job_queued,
    two_jobs_are_queued,
    five_jobs_are_queued_at_once,
    two_jobs_are_queued_under_the_same_id,
    a_job_with_a_key_is_queued,
    jobs_with_keys_are_queued_at_once,
    urgent_jobs_are_queued,
    an_answer_goes_into_the_next_prompt,
    a_job_is_answered,
    an_answer_is_shown_before_its_daemon_has_confirmed_it,
    a_reason_is_shown_before_its_daemon_has_confirmed_it,
    a_job_fails,
    jobs_are_handed_back,
    starts_of_what_has_moved_on_are_forgotten,
    a_daemon_dies_while_it_forgets_starts,
    a_daemon_dies_and_its_jobs_are_recovered,
    a_daemon_dies_while_it_files_a_result,
    a_daemon_dies_while_it_files_a_failure,
    a_daemon_dies_while_it_hands_jobs_back,
    a_job_crashes_the_engine_three_times,
    a_job_crashes_and_then_its_daemon_dies,
    a_waiting_job_is_cancelled,
    a_running_job_is_cancelled,
    an_answer_grows_and_is_cut,
    a_cancelled_job_is_asked_again,
    two_failed_jobs_are_asked_again_at_once,
    an_urgent_job_is_asked_again_and_answered,
    a_done_job_is_asked_again,
    finished_jobs_are_removed,
    a_process_dies_while_it_removes_a_job,
]
MAKES_ITS_OWN: dict[Callable[[Stage], None], str] = {
    a_workspace_is_made_and_a_job_queued: "workspace",
    a_workspace_is_made_in_two_goes_and_a_job_queued: "above/workspace",
}
KILLS_ITSELF = [story for story in STORIES if "dies" in story.__name__ or "two_goes" in story.__name__]


class Promises:
    """What holds at some moment of a story."""

    def __init__(self) -> None:
        self.is_created = False
        self.queued: dict[str, tuple[str, dict[str, Any]]] = {}
        self.filing: dict[str, tuple[str, bytes]] = {}
        self.filed: set[str] = set()
        self.begun: dict[str, int] = {}
        self.crashes: dict[str, int] = {}
        self.ordered: dict[str, Order] = {}
        self.filled: dict[str, bytes] = {}
        # Being asked again, or asked again; being removed, or removed.
        self.asked: set[str] = set()
        self.removing: set[str] = set()
        self.removed: set[str] = set()

    def add(self, fact: Fact) -> None:
        if fact.kind == "created":
            self.is_created = True
        elif fact.kind == "queued":
            self.is_created = True
            self.queued[fact.id] = fact.value
        elif fact.kind == "filing":
            self.filing[fact.id] = fact.value
            self.asked.discard(fact.id)
            # What became of it so far is of no interest any more.
            self.begun.pop(fact.id, None)
            self.crashes.pop(fact.id, None)
        elif fact.kind == "filed":
            self.filed.add(fact.id)
        elif fact.kind == "ordered":
            self.ordered[fact.id] = fact.value
        elif fact.kind == "filled":
            self.filled[fact.id] = fact.value
        elif fact.kind == "begun":
            self.begun[fact.id] = fact.value
        elif fact.kind == "asking":
            self.filed.discard(fact.id)
            self.asked.add(fact.id)
        elif fact.kind == "asked":
            del self.filing[fact.id]
        elif fact.kind == "removing":
            self.filed.discard(fact.id)
            self.removing.add(fact.id)
        elif fact.kind == "removed":
            self.removed.add(fact.id)
        else:
            assert fact.kind == "crashes"
            self.crashes[fact.id] = fact.value


class Inspector:
    """Looks at what a power cut left, with the code that would find it, and tells what is wrong."""

    def __init__(self, workspace: str, folder: Path) -> None:
        self._workspace = workspace
        self._folder = folder
        self._number = 0
        self.cuts = 0

    def inspect(self, tree: Tree, promises: Promises, then: Callable[[Tree, list[Any]], None] | None = None) -> None:
        """``then`` is given what was found, and the operations that its recovery made."""
        self.cuts += 1
        self._number += 1
        root = self._folder / str(self._number)
        write_tree(root, tree)
        workspace = Workspace(root / self._workspace)
        try:
            self._judge_filed(workspace, promises)
            if not promises.is_created:
                workspace.create()
            workspace.check()
            events: list[Any] = []
            if then:
                recorder = Recorder(root)
                with recorder.installed():
                    recover(workspace)
                events = recorder.events
            else:
                recover(workspace)
            assert recover(workspace) == [], "a second recovery found more to do"
            workspace.sweep_staging()
            self._judge(workspace, promises)
            self._go_on(workspace, promises)
            self._judge_filed(workspace, promises)
            if then:
                then(tree, events)
        except (AssertionError, WorkspaceError, OSError) as error:
            left = "\n".join(f"  {path}: {content!r}" for path, content in tree.items())
            pytest.fail(f"{error}\nafter this was left:\n{left}\nwith {vars(promises)}", pytrace=False)
        finally:
            shutil.rmtree(root)

    def _judge_filed(self, workspace: Workspace, promises: Promises) -> None:
        """What is there under output/ and failed/ is whole, and what was promised to be there is."""
        found = set()
        for place, name in ((workspace.output, "result.txt"), (workspace.failed, "error.txt")):
            for folder in Path(place).glob("*"):
                if folder.name.startswith(REMOVED):
                    continue
                found.add(folder.name)
                content = (folder / name).read_bytes()
                told = json.loads((folder / "receipt.json").read_text())
                assert told["id"] == folder.name, "a receipt is another job's"
                inside = {path.name for path in folder.iterdir()}
                # The mark of who wanted it cancelled may stay, and what was removed last may be back.
                if folder.name in promises.filled:
                    assert (folder / "filled.txt").read_bytes() == promises.filled[folder.name], "not what was asked"
                assert inside - {"cancel", "progress.jsonl", "attempts.json", "filled.txt"} == {
                    "prompt.txt",
                    "job.json",
                    "receipt.json",
                    name,
                }
                if name == "result.txt":
                    assert told["sha256"] == hashlib.sha256(content).hexdigest(), "a result is torn"
                if folder.name in promises.filing:
                    assert (name, content) == promises.filing[folder.name], "a result has changed"
                else:
                    assert folder.name not in promises.queued, "a result that nobody filed"
        assert promises.filed <= found, f"filed and gone: {promises.filed - found}"

    def _judge(self, workspace: Workspace, promises: Promises) -> None:
        """After the recovery: everything that was acknowledged is there, once, and waits unless it is filed."""
        jobs = workspace.jobs()
        places = [job.id for job in jobs]
        assert len(places) == len(set(places)), f"twice: {places}"
        found = {job.id: job for job in jobs}
        assert not promises.removed & found.keys(), "what was removed is back"
        for place in (workspace.output, workspace.failed):
            assert not list(Path(place).glob(".*")), "something was left of what was removed"
        for job_id, (prompt, settings) in promises.queued.items():
            if job_id in promises.removing and job_id not in found:
                continue
            assert job_id in found, f"{job_id} is lost"
            job = found[job_id]
            assert (Path(job.directory) / "prompt.txt").read_bytes() == prompt.encode(), "a prompt is torn"
            assert json.loads((Path(job.directory) / "job.json").read_text())["settings"] == settings
            assert job.state is JobState.QUEUED or job_id in promises.filing
        assert not any(job.state is JobState.RUNNING for job in jobs), "a dead daemon's job was left"
        for job_id, order in promises.ordered.items():
            if order.key and job_id in promises.queued and job_id in found:
                assert workspace.submit_all([order]) == [job_id], "a key was forgotten"

    def _go_on(self, workspace: Workspace, promises: Promises) -> None:
        """A daemon takes over and answers everything; of what was never acknowledged it may find anything."""
        lease = Lease(workspace, MODEL)
        answers: dict[str, str] = {}
        order: list[str] = []
        done: list[str] = []
        while claim := lease.claim():
            assert claim.id not in promises.filed, "what was filed is queued again"
            if claim.id in promises.asked:
                assert (claim.begun, claim.crashes) == (0, 0), "its former fate was not forgotten"
                assert not lease.is_cancelled(claim), "it is going to be cancelled once more"
                assert not lease.progress(claim).tokens
            assert claim.begun >= promises.begun.get(claim.id, 0), f"a start was forgotten: {claim}"
            assert claim.crashes >= promises.crashes.get(claim.id, 0), f"a crash was forgotten: {claim}"
            lease.progress(claim)
            order.append(claim.id)
            promises_nothing = claim.id not in promises.queued
            if not promises_nothing:
                lease.prompt(claim)
            answers[claim.id] = promises.filing.get(claim.id, ("", b"an answer"))[1].decode()
            try:
                lease.prompt(claim)
                if promises.filing.get(claim.id, ("",))[0] == "error.txt":
                    raise JobError(answers[claim.id].removesuffix("\n"))
            except JobError as error:
                lease.fail(claim, str(error), Receipt.of_failure(claim.id, claim.queued, str(error)))
            else:
                lease.finish(claim, answers[claim.id], receipt(claim.id))
            if promises_nothing or claim.id not in promises.filing:
                # It is there now, and must be whole like the others.
                job = workspace.find(claim.id)
                assert job.is_finished
                # Those after it may want its answer.
                done.append(job.directory)
        for directory in done:
            shutil.rmtree(directory)
        lease.close()
        generated = [name for name in order if is_generated_id(name) and name in promises.queued]
        urgency = {name: ordered.priority for name, ordered in promises.ordered.items()}
        assert generated == sorted(generated, key=lambda name: (-urgency.get(name, 0), name)), "out of order"
        assert list(Path(workspace.processing).iterdir()) == [], "something was left under processing/"


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as folder:
        yield folder


def play(story: Callable[[Stage], None], folder: Path, dies_after: int | None = None) -> tuple[str, Tree, list[Any]]:
    """A story for real: where the workspace is, what was there before, and what happened.

    With ``dies_after``, the process dies after so many operations, and another one recovers and goes on.
    """
    root = folder / "played"
    root.mkdir()
    place = MAKES_ITS_OWN.get(story, "workspace")
    workspace = Workspace(os.path.realpath(root) + "/" + place)
    if story not in MAKES_ITS_OWN:
        workspace.create()
    before = read_tree(root)
    recorder = Recorder(root)
    stage = Stage(workspace, recorder)
    with recorder.installed():
        if dies_after is None:
            story(stage)
        else:
            recorder.dies_after = lambda _: recorder.operations >= dies_after
            with suppress(Killed):
                story(stage)
            recorder.observer = None
            recorder.bury()
            workspace.create()
            stage.submit("after it")
            stage.recover()
    recorder.bury()
    shutil.rmtree(root)
    return place, before, recorder.events


def cut_everywhere(
    inspector: Inspector,
    before: Tree,
    events: list[Any],
    chance: random.Random,
    subsets: int,
    *,
    promises: Promises | None = None,
    second_cuts: float = 0.0,
) -> None:
    """Cut the power after every operation, and of the recoveries that follow now and then one as well."""
    disk = Disk(before)
    facts = promises or Promises()

    def cut_again(tree: Tree, recovery: list[Any]) -> None:
        cut_everywhere(inspector, tree, recovery, chance, subsets, promises=facts)

    seen: set[frozenset[Any]] = set()
    for event in events:
        if isinstance(event, Fact):
            facts.add(event)
            seen.clear()
        else:
            disk.apply(event)
        for tree in disk.outcomes(chance, subsets):
            key = frozenset(tree.items())
            if key not in seen:
                seen.add(key)
                inspector.inspect(tree, facts, cut_again if chance.random() < second_cuts else None)


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_what_was_promised_survives_a_power_cut_at_any_moment_when(
    story: Callable[[Stage], None], quick_folder: Path, rounds: Rounds
) -> None:
    chance = random.Random(story.__name__)
    place, before, events = play(story, quick_folder)
    inspector = Inspector(place, quick_folder)
    subsets, second_cuts = rounds(quick=1, ci=8, long=60), rounds(quick=1, ci=3, long=20) / 100
    cut_everywhere(inspector, before, events, chance, subsets, second_cuts=second_cuts)
    print(f"{len(events)} operations and promises, {inspector.cuts} different cuts")


def test_a_file_that_is_written_whole_is_the_old_or_the_new_one_after_a_power_cut(quick_folder: Path) -> None:
    root = quick_folder / "disk"
    root.mkdir()
    old, new = b"what was there before", b"what came instead of it"
    (root / "kept.txt").write_bytes(old)
    before = read_tree(root)
    recorder = Recorder(root)
    with recorder.installed():
        with files.whole_file(f"{root}/kept.txt") as write:
            write(new[:10])
            write(new[10:])
        recorder.events.append("promised")
    disk, chance, is_promised = Disk(before), random.Random(1), False
    found = set()
    for event in recorder.events:
        if event == "promised":
            is_promised = True
        else:
            disk.apply(event)
        for tree in disk.outcomes(chance, 3):
            assert tree["kept.txt"] in ((new,) if is_promised else (old, new))
            found.add(tree["kept.txt"])
    assert is_promised and found == {old, new}


def test_what_was_promised_survives_a_kill_at_any_moment_and_then_a_power_cut(
    quick_folder: Path, rounds: Rounds
) -> None:
    chance = random.Random(7)
    cuts = 0
    for _ in range(rounds(quick=4, ci=60, long=600)):
        story = chance.choice([story for story in STORIES if story not in KILLS_ITSELF])
        place, before, events = play(story, quick_folder, dies_after=chance.randint(1, 60))
        inspector = Inspector(place, quick_folder)
        cut_everywhere(inspector, before, events, chance, subsets=1)
        cuts += inspector.cuts
    print(f"{cuts} different cuts")

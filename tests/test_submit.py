"""Jobs with a key, a priority or others before them: what a workspace and a lease make of that, with real files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from claims import MODEL, by_hand, claimed, receipt
from processes import until

from nrvna.errors import JobError, SubmitError
from nrvna.job import JobState
from nrvna.lease import Lease, cancel
from nrvna.order import Order
from nrvna.submit import mark_priority
from nrvna.workspace import Workspace


@pytest.fixture
def lease(workspace: Workspace) -> Lease:
    return Lease(workspace, MODEL)


def queued(workspace: Workspace, order: Order) -> str:
    [job_id] = workspace.submit_all([order])
    return job_id


def finish(lease: Lease, answer: str = "done") -> str:
    claim = claimed(lease)
    lease.finish(claim, answer, receipt(claim.id))
    return claim.id


def fail(lease: Lease) -> str:
    claim = claimed(lease)
    lease.fail(claim, "no luck\nat all", receipt(claim.id))
    return claim.id


# Keys.


def test_a_key_queued_twice_is_one_job(workspace: Workspace) -> None:
    first = queued(workspace, Order("once", key="k"))
    assert queued(workspace, Order("once", key="k")) == first
    assert workspace.counts().queued == 1


def test_a_key_twice_in_one_call_is_one_job(workspace: Workspace) -> None:
    first, plain, again = workspace.submit_all([Order("once", key="k"), Order("other"), Order("once", key="k")])
    assert first == again != plain
    assert workspace.counts().queued == 2


def test_a_key_is_known_wherever_its_job_is(workspace: Workspace, lease: Lease) -> None:
    first = queued(workspace, Order("once", key="k"))
    claim = claimed(lease)
    assert queued(workspace, Order("once", key="k")) == first
    lease.finish(claim, "done", receipt(claim.id))
    assert queued(workspace, Order("once", key="k")) == first


def test_a_key_whose_job_was_removed_is_free_again(workspace: Workspace) -> None:
    first = queued(workspace, Order("once", key="k"))
    shutil.rmtree(Path(workspace.input) / first)
    assert queued(workspace, Order("once", key="k")) != first


def test_another_key_is_another_job(workspace: Workspace) -> None:
    assert queued(workspace, Order("a", key="a")) != queued(workspace, Order("b", key="b"))


def test_processes_that_race_with_one_key_make_one_job(workspace: Workspace) -> None:
    program = (
        "import sys; from nrvna.order import Order; from nrvna.workspace import Workspace\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        "for key in range(60): print(*Workspace(sys.argv[1]).submit_all([Order('x', key=str(key))]))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", program, workspace.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    threads = [threading.Thread(target=lambda racer=racer: racer.stdin.close()) for racer in racers]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 4
    for thread in threads:
        thread.start()
    ids = [racer.stdout.read().split() for racer in racers if racer.stdout]
    assert [racer.wait() for racer in racers] == [0] * 4
    assert len(ids[0]) == 60 and all(found == ids[0] for found in ids)
    assert workspace.counts().queued == 60


def test_a_job_known_elsewhere_never_takes_another_id(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nrvna.submit.new_id", lambda _: "20260101-000000-000000-abcdef")
    monkeypatch.setattr("nrvna.submit._Submission._is_taken", lambda *_: False)
    queued(workspace, Order("first"))
    with pytest.raises(SubmitError, match="File exists"):
        queued(workspace, Order("second", key="k"))
    assert workspace.counts().queued == 1


def test_a_record_is_told_of_new_jobs_before_they_can_be_claimed(workspace: Workspace) -> None:
    known = queued(workspace, Order("known", key="k"))
    told: list[tuple[list[str], list[int], int]] = []
    ids = workspace.submit_all(
        [Order("a"), Order("known", key="k"), Order("b")],
        lambda fresh, numbers: told.append((list(fresh), list(numbers), workspace.counts().queued)),
    )
    assert told == [([ids[0], ids[2]], [0, 2], 1)]
    assert ids[1] == known


def test_a_record_that_cannot_be_written_queues_nothing(workspace: Workspace) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        workspace.submit_all([Order("a"), Order("b")], refuse)
    assert workspace.counts().queued == 0
    assert list(Path(workspace.input).iterdir()) == []


# Priorities.


def test_a_higher_priority_starts_earlier(workspace: Workspace, lease: Lease) -> None:
    low, plain, high = (queued(workspace, Order("x", priority=priority)) for priority in (-5, 0, 7))
    assert [claimed(lease).id for _ in range(3)] == [high, plain, low]


def test_among_equals_the_one_queued_first_starts_first(workspace: Workspace, lease: Lease) -> None:
    ids = workspace.submit_all([Order("x", priority=3)] * 5)
    assert [claimed(lease).id for _ in ids] == ids


def test_an_urgent_job_is_seen_though_others_are_known_to_wait(workspace: Workspace, lease: Lease) -> None:
    plain = workspace.submit_all(["x"] * 10)
    assert claimed(lease).id == plain[0]
    urgent = queued(workspace, Order("y", priority=1))
    assert [claimed(lease).id, claimed(lease).id] == [urgent, plain[1]]


def test_an_urgent_job_is_seen_though_it_was_looked_for_a_moment_before_it_came(
    workspace: Workspace, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = workspace.submit_all(["x"] * 10)
    seen = []

    def look_in_between(here: Workspace, job_id: str, priority: int) -> list[str]:
        marked = mark_priority(here, job_id, priority)
        seen.append(claimed(lease).id)
        return marked

    monkeypatch.setattr("nrvna.submit.mark_priority", look_in_between)
    urgent = queued(workspace, Order("y", priority=1))
    assert seen == plain[:1]
    # The queue is as it was looked through, but for what comes now.
    assert [claimed(lease).id, claimed(lease).id] == [urgent, plain[1]]


def test_a_job_put_back_keeps_its_priority(workspace: Workspace, lease: Lease) -> None:
    plain, urgent = (queued(workspace, Order("x", priority=priority)) for priority in (0, 1))
    lease.requeue([claimed(lease)])
    assert [claimed(lease).id, claimed(lease).id] == [urgent, plain]


def test_nothing_stays_behind_of_a_priority_once_the_job_is_finished(workspace: Workspace, lease: Lease) -> None:
    queued(workspace, Order("x", priority=1))
    claim = claimed(lease)
    assert lease.urgent == 1
    lease.finish(claim, "done", receipt(claim.id))
    assert lease.urgent == 0
    assert list(Path(workspace.priority).iterdir()) == []


@pytest.mark.parametrize("name", ["nonsense", "1x~id", "~", "5"])
def test_a_priority_that_says_nothing_is_passed_over(workspace: Workspace, lease: Lease, name: str) -> None:
    queued(workspace, Order("x", priority=1))
    (Path(workspace.priority) / name).touch()
    assert claimed(lease)


def test_a_workspace_without_its_folder_for_priorities_is_served(workspace: Workspace, lease: Lease) -> None:
    Path(workspace.priority).rmdir()
    plain = workspace.submit("x")
    assert claimed(lease).id == plain
    urgent = queued(workspace, Order("y", priority=2))
    assert claimed(lease).id == urgent


# Jobs after others.


def test_a_job_waits_for_the_one_before_it_and_gets_its_answer(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("first")
    child = queued(workspace, Order("Then: {result}", after=(parent,)))
    claim = claimed(lease)
    assert claim.id == parent
    assert lease.claim() is None
    lease.finish(claim, "the answer\n", receipt(parent))
    second = claimed(lease)
    assert second.id == child
    assert lease.prompt(second) == "Then: the answer"
    assert (Path(second.directory) / "filled.txt").read_text() == "Then: the answer"


def test_a_job_waits_for_all_that_come_before_it(workspace: Workspace, lease: Lease) -> None:
    parents = workspace.submit_all(["a", "b", "c"])
    child = queued(workspace, Order("{result}", after=tuple(parents)))
    for number in range(3):
        assert finish(lease, f"answer {number}") == parents[number]
    claim = claimed(lease)
    assert claim.id == child
    assert lease.prompt(claim) == "answer 0\n\nanswer 1\n\nanswer 2"


def test_others_do_not_wait_behind_a_job_that_waits(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    claimed(lease)
    for _ in range(300):
        queued(workspace, Order("x", after=(parent,)))
    other = workspace.submit("b")
    assert claimed(lease).id == other


def test_a_job_that_waited_starts_before_those_queued_after_it(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    child = queued(workspace, Order("x", after=(parent,)))
    later = workspace.submit_all(["b", "c"])
    parent_claim, first = claimed(lease), claimed(lease)
    assert [parent_claim.id, first.id] == [parent, later[0]]
    lease.finish(parent_claim, "done", receipt(parent))
    assert [claimed(lease).id, claimed(lease).id] == [child, later[1]]


def test_a_parent_that_another_daemon_finished_is_seen(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    child = queued(workspace, Order("x", after=(parent,)))
    peer = Lease(workspace, MODEL)
    claim = claimed(peer)
    assert claim.id == parent
    assert lease.claim() is None
    peer.finish(claim, "done", receipt(parent))
    assert claimed_in_time(lease) == child


def claimed_in_time(lease: Lease) -> str:
    found: list[str] = []

    def has_claimed() -> bool:
        found.extend(claim.id for claim in [lease.claim()] if claim)
        return bool(found)

    until(has_claimed, "a job to be free")
    return found[0]


def test_a_failed_job_fails_those_after_it_with_the_reason(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    child = queued(workspace, Order("x", after=(parent,)))
    assert fail(lease) == parent
    claim = claimed(lease)
    assert claim.id == child
    with pytest.raises(JobError, match=f"the job {parent}, which it comes after, failed: no luck$"):
        lease.prompt(claim)


def test_one_failed_parent_is_enough_though_others_still_run(workspace: Workspace, lease: Lease) -> None:
    slow, bad = workspace.submit_all(["slow", "bad"])
    child = queued(workspace, Order("x", after=(slow, bad)))
    assert claimed(lease).id == slow
    claim = claimed(lease)
    lease.fail(claim, "no luck", receipt(bad))
    assert claimed(lease).id == child


def test_a_job_after_one_that_is_gone_is_told_so(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    child = queued(workspace, Order("x", after=(parent,)))
    finish(lease)
    shutil.rmtree(Path(workspace.output) / parent)
    claim = claimed(lease)
    assert claim.id == child
    with pytest.raises(JobError, match="is not there any more"):
        lease.prompt(claim)


def test_a_cancelled_job_fails_those_after_it(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    queued(workspace, Order("x", after=(parent,)))
    assert cancel(workspace, workspace.find(parent))
    with pytest.raises(JobError, match="failed: cancelled before it was begun"):
        lease.prompt(claimed(lease))


def test_a_chain_goes_link_by_link(workspace: Workspace, lease: Lease) -> None:
    first = workspace.submit("0")
    second = queued(workspace, Order("{result}1", after=(first,)))
    third = queued(workspace, Order("{result}2", after=(second,)))
    for expected, prompt in ((first, "0"), (second, "01"), (third, "012")):
        claim = claimed(lease)
        assert (claim.id, lease.prompt(claim)) == (expected, prompt)
        lease.finish(claim, prompt, receipt(claim.id))


def test_an_answer_too_long_for_a_prompt_fails_the_job_after_it(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    queued(workspace, Order("{result}{result}", after=(parent,)))
    finish(lease, "x" * (9 * 1024 * 1024))
    with pytest.raises(JobError, match="more than the 16777216 allowed"):
        lease.prompt(claimed(lease))


def test_a_waiting_job_can_be_cancelled(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    child = queued(workspace, Order("x", after=(parent,)))
    claim = claimed(lease)
    assert lease.claim() is None
    assert cancel(workspace, workspace.find(child))
    lease.finish(claim, "done", receipt(parent))
    assert lease.claim() is None
    assert workspace.find(child).state is JobState.FAILED


def test_a_job_made_by_hand_may_come_after_another(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    folder = by_hand(workspace, "mine", b"{result}!")
    (folder / "job.json").write_text(json.dumps({"after": [parent]}))
    assert finish(lease, "A") == parent
    claim = claimed(lease)
    assert (claim.id, lease.prompt(claim)) == ("mine", "A!")


def test_a_job_that_an_older_version_queued_is_filled_as_it_was_then(workspace: Workspace, lease: Lease) -> None:
    parent = workspace.submit("a")
    folder = by_hand(workspace, "older", b"{result} {{result}} {{result:%s}}" % parent[-6:].encode())
    about = {"queued": "2026-01-01T00:00:00Z", "nrvna": "0.1.0", "settings": {}, "after": [parent]}
    (folder / "job.json").write_text(json.dumps(about))
    assert finish(lease, "A") == parent
    assert lease.prompt(claimed(lease)) == "A {A} {A}"


def test_a_prompt_made_by_hand_begins_after_its_byte_order_mark(workspace: Workspace, lease: Lease) -> None:
    folder = by_hand(workspace, "mine", b"\xef\xbb\xbfHello")
    (folder / "job.json").write_bytes(b'\xef\xbb\xbf{"settings": {"temp": 0}}')
    claim = claimed(lease)
    assert (claim.settings, lease.prompt(claim)) == ({"temp": 0}, "Hello")
    workspace.submit("\ufeffas it was given")
    assert lease.prompt(claimed(lease)) == "\ufeffas it was given"


def test_a_job_made_by_hand_that_asks_for_nonsense_is_told_so(workspace: Workspace, lease: Lease) -> None:
    folder = by_hand(workspace, "mine", b"x")
    (folder / "job.json").write_text(json.dumps({"priority": "high"}))
    with pytest.raises(JobError, match="the priority is 'high'"):
        lease.prompt(claimed(lease))

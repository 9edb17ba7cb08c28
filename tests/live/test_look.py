"""What a look at a workspace finds out beside the numbers of jobs: tokens, speed, words, failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nrvna.files import append, write
from nrvna.job import Receipt
from nrvna.lease import Claim, Lease
from nrvna.live.growth import Growth, Pace, Speed
from nrvna.live.look import Lookout
from nrvna.progress import first_line, token_line
from nrvna.workspace import PROGRESS, Workspace


@pytest.fixture
def lease(workspace: Workspace) -> Iterator[Lease]:
    held = Lease(workspace, {"path": "/models/small.gguf"})
    held.announce_ready()
    yield held
    held.close()


def claim(lease: Lease) -> Claim:
    claimed = lease.claim()
    assert claimed is not None
    return claimed


def tokens(count: int) -> bytes:
    return b"".join(token_line(number, f" w{number}") for number in range(count))


def receipt(job: Claim, generated: int, **others: object) -> Receipt:
    return Receipt(job.id, "stop", "q", "f", "0.1.0", generated_tokens=generated)._replace(**others)  # type: ignore[arg-type]


def test_an_answer_is_read_as_it_grows(tmp_path: Path) -> None:
    file = tmp_path / PROGRESS
    answer = Growth(str(tmp_path))
    assert (answer.is_begun, answer.tokens) == (False, 0)
    append(str(file), first_line("key", 7) + tokens(3))
    assert answer.look() == 3
    # Half a line is none yet.
    append(str(file), token_line(9, " end")[:4])
    assert answer.look() == 0
    append(str(file), token_line(9, " end")[4:] + token_line(None, " joined"))
    assert answer.look() == 1
    assert (answer.is_begun, answer.tokens, answer.last_words) == (True, 4, " w0 w1 w2 end joined")


def test_an_answer_that_is_begun_anew_is_read_anew(tmp_path: Path) -> None:
    file = str(tmp_path / PROGRESS)
    append(file, first_line("key", 7) + tokens(5))
    answer = Growth(str(tmp_path))
    write(file, first_line("key", 8) + tokens(2))
    assert answer.look() == 0
    assert (answer.tokens, answer.last_words, answer.grown) == (2, " w0 w1", 0)
    append(file, b"", at=len(first_line("key", 8)))
    assert answer.look() == 0
    assert answer.tokens == 0


def test_no_link_is_followed_for_an_answer(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(first_line("key", 7) + tokens(5))
    (tmp_path / PROGRESS).symlink_to(tmp_path / "secret")
    assert not Growth(str(tmp_path)).is_begun


def test_a_speed_is_that_of_the_last_seconds() -> None:
    speed = Speed(5.0, 1.0)
    for second in range(20):
        speed.note(second, 10 * second if second < 10 else 100 + 50 * (second - 10))
    assert speed.per_second() == 50


def test_a_speed_is_not_told_of_a_moment() -> None:
    speed = Speed(5.0, 1.0)
    assert speed.per_second() is None
    speed.note(0.0, 0)
    speed.note(0.9, 100)
    assert speed.per_second() is None


def test_a_pace_waits_for_as_many_as_run_at_a_time() -> None:
    pace = Pace(0.0)
    pace.note(4.0, 3, 8)
    assert pace.per_second(4.0, 8) is None
    assert pace.per_second(4.0, 1) == 0.75
    pace.note(8.0, 5, 8)
    assert pace.per_second(8.0, 8) == 1.0


def test_a_pace_slackens_while_nothing_is_finished() -> None:
    pace = Pace(0.0)
    pace.note(4.0, 4, 1)
    assert pace.per_second(40.0, 1) == 0.1


def test_the_pace_of_jobs_that_take_no_time_is_that_of_seconds() -> None:
    pace = Pace(0.0)
    for quarter in range(1, 100):
        pace.note(quarter / 4, 100, 8)
    assert pace.per_second(quarter / 4, 8) == pytest.approx(400)


def test_the_pace_of_long_jobs_is_that_of_the_last_of_them() -> None:
    pace = Pace(0.0)
    for hour in range(1, 51):
        pace.note(3600.0 * hour if hour > 25 else 60.0 * hour, 1, 2)
    assert pace.per_second(3600.0 * 50, 2) == pytest.approx(1 / 3600, rel=0.1)


def test_a_snapshot_has_the_running_jobs_with_their_words(workspace: Workspace, lease: Lease) -> None:
    workspace.submit_all(["a", "b", "c"])
    begun, _ = claim(lease), claim(lease)
    lookout = Lookout(workspace, now := time.monotonic())
    lease.append_progress(begun, first_line("k", 1) + tokens(3))
    snapshot = lookout.look(now + 0.2)
    assert [(job.id, job.tokens, job.last_words) for job in snapshot.running] == [(begun.id, 3, " w0 w1 w2")]
    assert 0 <= snapshot.running[0].age_s < 5
    assert (snapshot.done, snapshot.failed, snapshot.unfinished) == (0, 0, 3)
    assert [(server.model, server.ready) for server in snapshot.servers] == [("small", True)]


def test_jobs_that_write_nothing_before_their_end_are_running_after_a_while(
    workspace: Workspace, lease: Lease
) -> None:
    workspace.submit("a")
    job = claim(lease)
    lookout = Lookout(workspace, now := time.monotonic())
    assert lookout.look(now + 0.2).running == ()
    assert [running.id for running in lookout.look(now + 1.5).running] == [job.id]


def test_tokens_are_counted_once_each_and_only_those_that_came_since(workspace: Workspace, lease: Lease) -> None:
    workspace.submit_all(["a", "b", "c", "d"])
    old = claim(lease)
    lease.append_progress(old, first_line("k", 1) + tokens(100))
    lookout = Lookout(workspace, now := time.monotonic())
    lookout.look(now)
    lease.append_progress(old, tokens(10))
    assert lookout.look(now + 0.2).tokens == 10
    # Five more came, and it was finished, between two looks.
    lease.finish(old, "x", receipt(old, 115))
    assert lookout.look(now + 0.4).tokens == 15
    quick, resumed, same = claim(lease), claim(lease), claim(lease)
    lease.finish(quick, "x", receipt(quick, 7))
    lease.finish(resumed, "x", receipt(resumed, 20, resumed_tokens=12))
    lease.finish(same, "x", receipt(same, 7, same_as=quick.id))
    time.sleep(0.06)
    lookout.look(now + 0.9)
    assert lookout.is_over(now + 1)
    assert lookout.last_look(now + 1).tokens == 15 + 7 + 8


def test_the_newest_failures_come_first_with_their_reasons(workspace: Workspace, lease: Lease) -> None:
    workspace.submit_all(["a", "b", "c"])
    first, second = claim(lease), claim(lease)
    lookout = Lookout(workspace, now := time.monotonic())
    lease.fail(first, "too long\nand more", receipt(first, 0))
    lookout.look(now + 0.2)
    lease.fail(second, "worse", receipt(second, 0))
    snapshot = lookout.look(now + 0.4)
    assert snapshot.failures == ((second.id, "worse"), (first.id, "too long"))


def test_time_left_is_told_once_enough_jobs_are_finished(workspace: Workspace, lease: Lease) -> None:
    workspace.submit_all(["x"] * 10)
    lookout = Lookout(workspace, now := time.monotonic())
    for number in range(1, 5):
        job = claim(lease)
        lease.finish(job, "x", receipt(job, 1))
        snapshot = lookout.look(now + number)
        assert snapshot.left_s == (None if number < 3 else pytest.approx(10 - number))


def test_without_a_daemon_there_is_no_speed_and_no_time_left(workspace: Workspace) -> None:
    workspace.submit_all(["x"] * 10)
    lookout = Lookout(workspace, now := time.monotonic())
    snapshot = lookout.look(now + 10)
    assert (snapshot.servers, snapshot.tokens_per_s, snapshot.left_s) == ((), None, None)


def test_a_workspace_at_home_is_named_as_its_user_does(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(workspace.path).parent))
    assert Lookout(workspace, 0.0).look(0.0).path == "~/workspace"

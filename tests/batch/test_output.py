"""``flw --batch``: what is written of a batch, when, and where to."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from batch_files import answer_all, chat, embedding, read_lines, write_lines
from openai.types.batch_request_counts import BatchRequestCounts
from processes import command, until

from nrvna.batch.ledger import Ledger
from nrvna.batch.output import write_batch
from nrvna.job import Receipt
from nrvna.lease import Lease, cancel
from nrvna.workspace import Workspace


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def err(tmp_path: Path) -> Path:
    return tmp_path / "out_errors.jsonl"


def queue(workspace: Workspace, folder: Path, requests: Sequence[object]) -> str:
    return command("wrk", workspace.path, "--batch", write_lines(folder / "in.jsonl", requests)).stdout.strip()


def test_answers_come_in_the_order_of_the_requests(workspace: Workspace, tmp_path: Path, out: Path) -> None:
    batch = queue(workspace, tmp_path, [chat(str(number), f"job {number}") for number in range(20)])
    answer_all(workspace)
    done = command("flw", workspace.path, "--batch", batch, "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"flw: 20 answers in {out}\n"
    lines = read_lines(out)
    assert [line["custom_id"] for line in lines] == [str(number) for number in range(20)]
    for number, line in enumerate(lines):
        body = line["response"]["body"]
        assert body["choices"][0]["message"]["content"] == f"<job {number}>"
        assert body["model"] == "tiny" and body["created"] == 1767225601
        assert body["usage"]["total_tokens"] == 7
        assert line["response"]["request_id"] == workspace.jobs()[number].id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "workspace"]


def test_the_same_again_writes_the_same_bytes(workspace: Workspace, tmp_path: Path, out: Path, err: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), b"nonsense", chat("b", n=2)])
    answer_all(workspace)
    command("flw", workspace.path, "--batch", batch, "-o", out)
    first = out.read_bytes(), err.read_bytes()
    command("flw", workspace.path, "--batch", batch, "-o", out)
    assert (out.read_bytes(), err.read_bytes()) == first


def test_half_way_what_is_finished_is_written(workspace: Workspace, tmp_path: Path, out: Path, err: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), b"nonsense", chat("b", n=2), chat("c")])
    lease = Lease(workspace, {"path": "m"})
    for _ in range(2):
        claim = lease.claim()
        assert claim
        lease.finish(claim, "yes", Receipt(claim.id, "stop", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "0"))
    lease.close()
    done = command("flw", workspace.path, "--batch", batch, "-o", out)
    assert done.returncode == 3
    assert done.stderr == f"flw: 1 answer in {out}, 1 error in {err}, 2 in progress\n"
    assert [line["custom_id"] for line in read_lines(out)] == ["a"]
    answer_all(workspace)
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 1
    assert [line["custom_id"] for line in read_lines(out)] == ["a", "b", "c"]
    assert [choice["index"] for choice in read_lines(out)[1]["response"]["body"]["choices"]] == [0, 1]


def test_a_refused_line_is_answered_as_openais_api_would(workspace: Workspace, tmp_path: Path, err: Path) -> None:
    batch = queue(workspace, tmp_path, [b"nonsense", chat("b", temperature=99)])
    assert command("flw", workspace.path, "--batch", batch, "-o", tmp_path / "out.jsonl").returncode == 1
    first, second = read_lines(err)
    assert first["custom_id"] is None and first["error"]["line"] == 1
    assert first["error"]["code"] == "invalid_json_line"
    message = "line 2: body.temperature is 99, but must be a number from 0 to 10"
    assert second["custom_id"] == "b"
    assert second["error"] == {"code": "invalid_value", "message": message, "param": "body.temperature", "line": 2}
    assert second["response"]["status_code"] == 400
    assert second["response"]["body"]["error"]["message"] == message
    assert second["response"]["body"]["error"]["type"] == "invalid_request_error"
    assert first["id"] != second["id"]


def test_a_job_that_failed_is_in_the_error_file(workspace: Workspace, tmp_path: Path, out: Path, err: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a", "good"), chat("b", "bad"), chat("c", "late"), chat("d", n=2)])
    cancel(workspace, workspace.jobs()[2])
    answer_all(workspace, lambda prompt: ValueError("no luck") if prompt in ("bad", "Say hi.") else "yes")
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 1
    assert [line["custom_id"] for line in read_lines(out)] == ["a"]
    failed, cancelled, several = read_lines(err)
    assert failed["response"] is None
    assert failed["error"] == {"code": "job_failed", "message": "no luck", "param": None, "line": 2}
    assert cancelled["error"]["code"] == "cancelled"
    assert several["error"]["code"] == "job_failed"


def test_an_answer_that_is_damaged_is_no_answer(workspace: Workspace, tmp_path: Path, out: Path, err: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), chat("b")])
    answer_all(workspace)
    first, second = workspace.jobs()
    (Path(first.directory) / "result.txt").write_text("other")
    (Path(second.directory) / "receipt.json").unlink()
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 1
    assert [line["error"]["code"] for line in read_lines(err)] == ["answer_damaged"] * 2
    assert read_lines(out) == []


def test_a_job_that_was_removed_is_an_error_until_it_is_queued_again(
    workspace: Workspace, tmp_path: Path, out: Path, err: Path
) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), chat("b")])
    answer_all(workspace)
    shutil.rmtree(workspace.jobs()[0].directory)
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 1
    [gone] = read_lines(err)
    assert gone["error"]["code"] == "job_gone" and "wrk --batch queues it again" in gone["error"]["message"]
    assert command("wrk", workspace.path, "--batch", tmp_path / "in.jsonl").stdout.strip() == batch
    answer_all(workspace)
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 0
    assert read_lines(err) == [] and len(read_lines(out)) == 2


# Vectors.


def test_vectors_come_with_their_places_as_numbers_or_as_base64(
    workspace: Workspace, tmp_path: Path, out: Path
) -> None:
    requests = [embedding("a", ["one", "two"]), embedding("b", "one", encoding_format="base64", dimensions=2)]
    batch = queue(workspace, tmp_path, requests)
    answer_all(workspace, lambda prompt: "[0.6, -0.8]\n" if prompt == "one" else "[1.0, 1e-08]\n")
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 0
    plain, packed = (line["response"]["body"] for line in read_lines(out))
    assert plain["data"] == [
        {"object": "embedding", "index": 0, "embedding": [0.6, -0.8]},
        {"object": "embedding", "index": 1, "embedding": [1.0, 1e-08]},
    ]
    assert plain["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
    numbers = struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"]))
    assert numbers == struct.unpack("<2f", struct.pack("<2f", 0.6, -0.8))


def test_vectors_of_another_length_than_asked_for_are_an_error(
    workspace: Workspace, tmp_path: Path, out: Path, err: Path
) -> None:
    batch = queue(workspace, tmp_path, [embedding("a", "x", dimensions=3)])
    answer_all(workspace, lambda _: "[0.6, -0.8]\n")
    assert command("flw", workspace.path, "--batch", batch).stdout.endswith("in.jsonl: 0 completed, 1 failed of 1\n")
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 1
    assert read_lines(err)[0]["error"]["message"] == "body.dimensions is 3, but tiny makes vectors of 2"


def test_an_answer_that_is_no_vector_is_an_error(workspace: Workspace, tmp_path: Path, out: Path, err: Path) -> None:
    batch = queue(workspace, tmp_path, [embedding("a", "x"), embedding("b", "y", encoding_format="base64")])
    answer_all(workspace, lambda prompt: "nonsense" if prompt == "x" else '["a"]')
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 1
    assert [line["error"]["code"] for line in read_lines(err)] == ["answer_damaged"] * 2


# Where it goes.


def test_without_a_file_the_counts_are_printed(workspace: Workspace, tmp_path: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), b"nonsense", chat("b")])
    done = command("flw", workspace.path, "--batch", batch)
    assert done.returncode == 3
    assert done.stdout.endswith("in.jsonl: 0 completed, 1 failed, 2 in progress of 3\n")
    answer_all(workspace)
    done = command("flw", workspace.path, "--batch", batch.removeprefix("batch_")[:8])
    assert (done.returncode, done.stdout.split()[0]) == (1, batch)
    assert done.stdout.endswith("in.jsonl: 2 completed, 1 failed of 3\n")


def test_the_counts_as_json_are_openais_type(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), b"nonsense"])
    assert write_batch(workspace, batch, None, as_json=True) == 3
    answer_all(workspace)
    assert write_batch(workspace, batch, None, as_json=True) == 1
    before, after = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (before["status"], after["status"]) == ("in_progress", "completed")
    assert (after["id"], after["file"]) == (batch, "in.jsonl")
    counts = BatchRequestCounts.model_validate(after["request_counts"], strict=True)
    assert (counts.total, counts.completed, counts.failed, counts.model_extra) == (2, 1, 1, {})


def test_the_batches_are_listed(workspace: Workspace, tmp_path: Path) -> None:
    batches = [queue(workspace, tmp_path, [chat(name)]) for name in "abc"]
    done = command("flw", workspace.path, "--batches")
    assert done.returncode == 0
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted(batches)


def test_a_name_for_the_errors_may_be_given(workspace: Workspace, tmp_path: Path, out: Path) -> None:
    batch = queue(workspace, tmp_path, [b"nonsense"])
    command("flw", workspace.path, "--batch", batch, "-o", out, "--errors", tmp_path / "e.jsonl")
    assert len(read_lines(tmp_path / "e.jsonl")) == 1 and read_lines(out) == []


def test_standard_output_takes_the_answers_alone(workspace: Workspace, tmp_path: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("ü\ud800", "ünï\u2028"), b"nonsense"])
    answer_all(workspace)
    done = command("flw", workspace.path, "--batch", batch, "-o", "-")
    assert len(done.stdout.splitlines()) == 1 and '"<ünï' in done.stdout
    assert json.loads(done.stdout)["custom_id"] == "ü\ud800"
    assert json.loads(done.stdout)["response"]["body"]["choices"][0]["message"]["content"] == "<ünï\u2028>"
    assert done.stderr == "flw: 1 answer in standard output, 1 error nowhere: name a file with --errors\n"


def test_a_pipe_is_written_to_and_a_link_stays_one(workspace: Workspace, tmp_path: Path, out: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a")])
    answer_all(workspace)
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    assert command("flw", workspace.path, "--batch", batch, "-o", tmp_path / "pipe").returncode == 0
    assert reader.communicate()[0].startswith(b'{"id":"batch_req_')
    (tmp_path / "link.jsonl").symlink_to(out)
    assert command("flw", workspace.path, "--batch", batch, "-o", tmp_path / "link.jsonl").returncode == 0
    assert (tmp_path / "link.jsonl").is_symlink() and len(read_lines(out)) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--batch", "batch_f00"), "no batch 'batch_f00'"),
        (("--batch", "BATCH", "-o", "nowhere/out.jsonl"), "cannot write nowhere/out.jsonl: No such file"),
        (("--batch", "BATCH", "-o", "."), "cannot write .: Is a directory"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(
    workspace: Workspace, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    batch = queue(workspace, tmp_path, [chat("a")])
    done = command("flw", workspace.path, *(batch if option == "BATCH" else option for option in options))
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_file_that_is_there_is_replaced_as_a_whole_or_not_at_all(
    workspace: Workspace, tmp_path: Path, out: Path
) -> None:
    batch = queue(workspace, tmp_path, [chat(str(number), "x" * 3000) for number in range(400)])
    answer_all(workspace)
    out.write_text("old\n")
    command_line = [sys.executable, "-m", "nrvna.flw", workspace.path, "--batch", batch, "-o", str(out)]
    for delay in range(20):
        process = subprocess.Popen(command_line, stderr=subprocess.DEVNULL)
        time.sleep(0.05 + delay * 0.01)
        process.kill()
        process.wait()
        assert out.read_text() == "old\n" or len(read_lines(out)) == 400
    assert command("flw", workspace.path, "--batch", batch, "-o", out).returncode == 0
    assert len(read_lines(out)) == 400


# Waiting, and batches that are still being queued.


def test_waiting_ends_when_the_last_is_answered(workspace: Workspace, tmp_path: Path, out: Path) -> None:
    batch = queue(workspace, tmp_path, [chat(str(number)) for number in range(50)])
    waiting = subprocess.Popen(
        [sys.executable, "-m", "nrvna.flw", "-w", workspace.path, "--batch", batch, "-o", str(out)]
    )
    time.sleep(0.5)
    assert waiting.poll() is None and not out.exists()
    answer_all(workspace)
    assert waiting.wait(30) == 0
    assert len(read_lines(out)) == 50


def test_waiting_lasts_while_a_wrk_is_still_queueing(workspace: Workspace, tmp_path: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), chat("b")])
    path = Path(workspace.batch(batch)) / "ledger.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:2]))
    answer_all(workspace)
    ledger = Ledger(workspace, batch)
    ledger.refresh()
    is_over = threading.Event()

    def wrk() -> None:
        with ledger.lock(lambda: None):
            is_over.wait(30)
            path.write_bytes(b"".join(whole))

    thread = threading.Thread(target=wrk)
    thread.start()
    until(lambda: ledger.is_being_queued, "the lock")
    try:
        assert command("flw", workspace.path, "--batch", batch).stdout.endswith("1 in progress of 2\n")
        waiting = subprocess.Popen([sys.executable, "-m", "nrvna.flw", "-w", workspace.path, "--batch", batch])
        time.sleep(0.5)
        assert waiting.poll() is None
    finally:
        is_over.set()
        thread.join()
    assert waiting.wait(30) == 0


def test_waiting_for_what_nobody_is_going_to_queue_ends(workspace: Workspace, tmp_path: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a"), chat("b"), chat("c")])
    path = Path(workspace.batch(batch)) / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    answer_all(workspace)
    # Of its job no more than the record was there when wrk was killed.
    shutil.rmtree(workspace.jobs()[1].directory)
    done = command("flw", "-w", workspace.path, "--batch", batch)
    assert done.returncode == 3
    assert done.stderr == "flw: 2 requests not queued, as wrk was interrupted: wrk --batch in.jsonl goes on there\n"
    assert done.stdout.endswith("1 completed, 0 failed, 2 in progress of 3\n")


def test_of_a_batch_that_was_hardly_begun_nothing_is_written(workspace: Workspace, tmp_path: Path, out: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a")])
    (Path(workspace.batch(batch)) / "ledger.jsonl").unlink()
    done = command("flw", "-w", workspace.path, "--batch", batch, "-o", out)
    reason = f"flw: nothing of {batch} is queued yet: wrk --batch with its file goes on there\n"
    assert (done.returncode, done.stdout, done.stderr, out.exists()) == (3, "", reason, False)
    assert command("flw", workspace.path, "--batches").stdout == ""


@pytest.mark.slow
def test_waiting_without_a_daemon_says_so(workspace: Workspace, tmp_path: Path) -> None:
    batch = queue(workspace, tmp_path, [chat("a")])
    waiting = subprocess.Popen(
        [sys.executable, "-m", "nrvna.flw", "-w", workspace.path, "--batch", batch],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr
    assert "no daemon answers it (start one: nrvnad MODEL" in waiting.stderr.readline()
    answer_all(workspace)
    assert waiting.wait(30) == 0

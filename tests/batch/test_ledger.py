"""The record of which job is which line: what was added stays, whatever the end of the file looks like."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from nrvna.batch.ledger import Entry, Head, Ledger, batch_id, batch_ids, find_batch, newest_batch
from nrvna.errors import JobNotFoundError
from nrvna.workspace import Workspace

DIGEST = "0123456789abcdef" * 4
ID = "batch_0123456789abcdef01234567"
HEAD = Head("in.jsonl", 3, 1_700_000_000, {"model": "m"})
ENTRIES = [
    Entry(1, "a", "/v1/chat/completions", ("job-1", "job-2")),
    Entry(2, None, error={"code": "c", "message": "m", "param": None}),
    Entry(4, "ü\ud800", "/v1/embeddings", ("job-3",), {"encoding_format": "base64"}),
]


def ledger_of(workspace: Workspace, number: int = 1) -> Ledger:
    ledger = Ledger(workspace, batch_id(DIGEST, number))
    ledger.create()
    ledger.refresh()
    return ledger


@pytest.fixture
def path(workspace: Workspace) -> Path:
    ledger = ledger_of(workspace)
    ledger.begin(HEAD)
    ledger.add(ENTRIES)
    return Path(workspace.batch(ID)) / "ledger.jsonl"


def test_what_was_added_is_read_back_in_order(workspace: Workspace, path: Path) -> None:
    assert path.exists()
    ledger = ledger_of(workspace)
    assert (ledger.head, ledger.is_complete, len(ledger)) == (HEAD, False, 3)
    assert list(ledger.entries()) == ENTRIES
    assert list(ledger.entries([4, 1])) == [ENTRIES[2], ENTRIES[0]]
    assert 4 in ledger and 3 not in ledger


def test_of_several_entries_of_a_line_the_last_counts(workspace: Workspace, path: Path) -> None:
    assert path.exists()
    ledger_of(workspace).add([ENTRIES[0]._replace(jobs=("job-9",))])
    assert [entry.jobs for entry in ledger_of(workspace).entries()] == [("job-9",), (), ("job-3",)]


def test_a_reader_learns_of_what_is_added_meanwhile(workspace: Workspace, path: Path) -> None:
    assert path.exists()
    reader = ledger_of(workspace)
    writer = ledger_of(workspace)
    writer.add([Entry(5, "e", "/v1/embeddings", ("job-5",))])
    writer.complete()
    assert reader.refresh() == [5]
    assert reader.is_complete and [entry.line for entry in reader.entries()] == [1, 2, 4, 5]


@pytest.mark.parametrize("tail", [b'{"line": 5, "id": "e", "jo', b"\0" * 4096, b"\xff\xfe"])
def test_a_torn_end_is_passed_over_and_cut_off_by_who_writes_next(
    workspace: Workspace, path: Path, tail: bytes
) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert list(ledger_of(workspace).entries()) == ENTRIES
    ledger_of(workspace).add([Entry(5, "e", None, ("job-5",))])
    assert path.read_bytes().startswith(whole + b'{"line":5')
    assert len(list(ledger_of(workspace).entries())) == 4


@pytest.mark.parametrize("line", [b"nonsense", b"\0\0\0", b"[1]", b'{"line": "x"}', b'{"file": 5}'])
def test_a_damaged_line_takes_no_other_with_it(workspace: Workspace, path: Path, line: bytes) -> None:
    head, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + line + b"\n" + b"".join(rest))
    assert list(ledger_of(workspace).entries()) == ENTRIES


def test_every_cut_of_the_file_leaves_the_whole_lines_before_it(workspace: Workspace, path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = max(0, whole[:size].count(b"\n") - 1)
        assert list(ledger_of(workspace).entries()) == ENTRIES[:kept]


def _hold(path: str, held: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event) -> None:
    with ledger_of(Workspace(path)).lock(lambda: None):
        held.set()
        go.wait(60)


def test_one_process_at_a_time_holds_the_lock_and_death_gives_it_back(workspace: Workspace) -> None:
    context = multiprocessing.get_context("spawn")
    held, go = context.Event(), context.Event()
    ledger = ledger_of(workspace)
    assert not ledger.is_being_queued
    process = context.Process(target=_hold, args=(workspace.path, held, go))
    process.start()
    assert held.wait(60) and ledger.is_being_queued
    process.kill()
    process.join()
    told: list[str] = []
    with ledger.lock(lambda: told.append("waited")):
        assert ledger_of(workspace).is_being_queued
    assert told == [] and not ledger.is_being_queued


def test_a_batch_is_found_by_how_its_id_begins(workspace: Workspace) -> None:
    ledger_of(workspace)
    other = Ledger(workspace, batch_id("f" * 64))
    other.create()
    assert find_batch(workspace, ID) == find_batch(workspace, "0123") == find_batch(workspace, "batch_01") == ID
    for name in ("", "x", "batch_9", "../batches"):
        with pytest.raises(JobNotFoundError, match="no batch"):
            find_batch(workspace, name)
    with pytest.raises(JobNotFoundError, match="'batch_' begins 2 batches' ids"):
        find_batch(workspace, "batch_")


def test_the_id_itself_is_found_though_another_one_begins_so(workspace: Workspace) -> None:
    ledger_of(workspace)
    ledger_of(workspace, 2)
    assert find_batch(workspace, ID) == ID
    assert find_batch(workspace, ID + "-2") == ID + "-2"


def test_the_newest_batch_of_a_file_is_the_one_of_the_highest_number(workspace: Workspace) -> None:
    assert newest_batch(workspace, DIGEST) == 0
    ledger_of(workspace)
    assert newest_batch(workspace, DIGEST) == 1
    ledger_of(workspace, 12)
    (Path(workspace.batches) / f"{ID}-x").mkdir()
    assert newest_batch(workspace, DIGEST) == 12
    assert batch_ids(workspace) == [ID, f"{ID}-12"]

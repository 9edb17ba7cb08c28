"""Whatever may be written can be read: receipts, job.json and batch lines of any size that their limits allow."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from batch_files import MODEL, answer_all, chat, embedding, read_lines, write_lines
from claims import claimed, file_away
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processes import DaemonProcess, command, until

from nrvna.batch.ledger import Entry, Ledger, batch_id
from nrvna.batch.output import write_batch
from nrvna.client import Workspace as Client
from nrvna.errors import JobError, NrvnaError
from nrvna.files import as_json, read_from
from nrvna.job import LARGE_FIELDS, MAX_FIELD_BYTES, JobState, Receipt, part_of_receipt
from nrvna.lease import _MANY_STARTS_BYTES, Lease, recover
from nrvna.live.growth import Growth
from nrvna.order import MAX_ABOUT_BYTES, Order
from nrvna.progress import first_line, token_line
from nrvna.request import order_of
from nrvna.workspace import PROGRESS, Workspace

StartDaemon = Callable[..., DaemonProcess]
MIB = 1024 * 1024

_quick = settings(
    max_examples=12,
    suppress_health_check=list(HealthCheck),
    derandomize=os.environ.get("CI") == "true",
)


@contextmanager
def made() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "work")
        workspace.create()
        yield workspace


# Texts that take more room on the way than in memory, and values around the sizes at which something changes.
TEXTS = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text and text.strip())
SIZES = st.sampled_from([1000, MAX_FIELD_BYTES - 3, MAX_FIELD_BYTES - 2, MAX_FIELD_BYTES, 2 * MIB])
LONG = st.builds(
    lambda text, size: (text * (size // len(text) + 1))[:size], st.sampled_from('aé東\\"\n\t\x01\x7f\u2028'), SIZES
)
ANY_TEXT = st.one_of(TEXTS, TEXTS, TEXTS, LONG)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=8,
)
COUNTS = st.sampled_from([1, 3, 100, 5000, 60_000])


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """What a Python program, a line of a pile or a command line may ask for."""
    count = draw(COUNTS)
    asked: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "stop": st.lists(ANY_TEXT, min_size=1, max_size=3),
                "logit_bias": st.just([[token, -1.5] for token in range(count)]),
                "dry_sequence_breakers": st.lists(ANY_TEXT, min_size=1, max_size=5),
                "tags": st.just(["a", "b"]),
                "key": TEXTS,
            },
        )
    )
    kinds = st.sampled_from(["plain", "system", "choices", "schema", "rerank", "messages", "kwargs"])
    match draw(kinds):
        case "system":
            asked["system"] = draw(ANY_TEXT)
        case "choices":
            asked["choices"] = [f"{number} {draw(TEXTS)}" for number in range(min(count, 1000) + 1)]
        case "schema":
            asked["schema"] = {"enum": [f"value {number}" for number in range(min(count, 200))]}
        case "rerank":
            asked["rerank"] = [f'document {number} "é" ' + "x" * 20 for number in range(count)]
        case "messages":
            asked["messages"] = [("user", draw(ANY_TEXT)), ("assistant", "yes")] * min(count, 100)
        case "kwargs":
            asked["template_kwargs"] = {"name": draw(VALUES)}
    return asked


def as_read(value: object) -> object:
    return json.loads(json.dumps(value))


@_quick
@given(options(), st.sampled_from(["stop", "error", "cancelled"]), ANY_TEXT)
@example({"logit_bias": [[token, -1.0] for token in range(49_000)]}, "stop", "x")
@example({"rerank": ["a document of some length " * 16] * 3000}, "stop", "x")
def test_every_job_that_is_queued_can_be_claimed_and_its_receipt_be_read(
    asked: dict[str, Any], reason: str, text: str
) -> None:
    with made() as workspace:
        try:
            order = order_of(asked, ())._replace(prompt="q")
            [job_id] = workspace.submit_all([order])
        except NrvnaError as error:
            # Refused at the door, in a line.
            assert "\n" not in str(error) and len(str(error)) < 2000
            return
        about = workspace.about(workspace.find(job_id))
        assert about.get("settings", {}) == as_read(dict(order.settings))
        assert about.get("task", {}) == as_read(dict(order.task))
        lease = Lease(workspace, MODEL)
        claim = lease.claim_this(workspace.find(job_id))
        assert claim.trouble is None and claim.settings == about["settings"] and claim.order.tags == order.tags
        receipt = Receipt(
            job_id,
            reason,
            *("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.000Z", "0"),
            sampling=claim.settings,
            task=claim.task,  # type: ignore[arg-type]
            probabilities=dict.fromkeys(asked.get("choices", ()), 0.5),
            error=None if reason == "stop" else text,
            stopped_by=text,
            notes={"reason": text},
        )
        if reason == "stop":
            lease.finish(claim, text, receipt)
        else:
            lease.fail(claim, text, receipt)
        lease.close()
        check_receipt(workspace, job_id, receipt)


def check_receipt(workspace: Workspace, job_id: str, filed: Receipt) -> None:
    job = workspace.find(job_id)
    assert (Path(job.directory) / "receipt.json").stat().st_size < MIB
    head, whole = workspace.receipt(job), workspace.receipt(job, whole=True)
    assert head and whole
    for field in Receipt._fields:
        if field not in ("attempts", "sha256"):
            assert getattr(whole, field) == getattr(filed, field), field
        if field not in LARGE_FIELDS:
            assert getattr(head, field) == getattr(whole, field)
    assert workspace.is_intact(job, head) is (head.sha256 is None or job.state is JobState.DONE)


@_quick
@given(st.dictionaries(st.sampled_from(LARGE_FIELDS), VALUES))
def test_every_receipt_is_what_it_was_whatever_is_in_it(fields: dict[str, Any]) -> None:
    filed = Receipt("x", "stop", "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.000Z", "0")._replace(**fields)
    files = filed.to_files()
    content = json.loads(files.pop("receipt.json"))
    for field in content.pop("apart", {}):
        content[field] = json.loads(files.pop(part_of_receipt(field)))
    assert not files and Receipt.from_dict(content) == filed


def test_an_order_of_the_greatest_size_is_read_and_one_that_is_larger_by_a_byte_is_refused(
    workspace: Workspace,
) -> None:
    empty = len(as_json({"queued": "2026-01-01T00:00:00.000Z", "nrvna": "0.1.0", **Order("q", model="").about()}))
    order = Order("q", model="x" * (MAX_ABOUT_BYTES - empty))
    job_id = workspace.submit_all([order])[0]
    path = Path(workspace.find(job_id).directory) / "job.json"
    assert path.stat().st_size == MAX_ABOUT_BYTES
    assert workspace.about(workspace.find(job_id))["model"] == order.model
    with pytest.raises(JobError, match=f"{MAX_ABOUT_BYTES} are allowed"):
        workspace.submit_all([order._replace(model=f"{order.model}x")])


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_large_receipt_is_shown_whole_and_its_answer_is_said_to_be_cut(workspace: Workspace, reason: str) -> None:
    bias = [[token, -1.0] for token in range(49_000)]
    job_id = file_away(workspace, "q", "an answer", reason, sampling={"logit_bias": bias, "seed": 7})
    assert command("flw", workspace.path).stdout.split()[1] == ("cut" if reason == "length" else "done")
    done = command("flw", "--receipt", workspace.path, job_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["sampling"] == {"logit_bias": bias, "seed": 7}
    assert json.loads(command("flw", "--jsonl", workspace.path).stdout)["receipt"] == json.loads(done.stdout)
    assert "seed" in command("flw", "export", "--format", "csv", workspace.path).stdout
    job = Client(workspace.path).job(job_id)
    assert job.result() == "an answer" and job.receipt().sampling == {"logit_bias": bias, "seed": 7}
    assert sorted(path.name for path in (Path(workspace.output) / job_id).iterdir()) == [
        *("job.json", "prompt.txt", "receipt.json", "receipt.sampling.json", "result.txt")
    ]


def test_a_large_receipt_of_old_that_holds_all_in_one_file_is_read(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "an answer", "length")
    path = Path(workspace.output) / job_id / "receipt.json"
    about = {**json.loads(path.read_text()), "task": {"documents": ["x" * 400] * 6000}}
    path.write_text(json.dumps(about, indent=2))
    assert path.stat().st_size > 2 * MIB
    assert command("flw", workspace.path).stdout.split()[1] == "cut"
    assert json.loads(command("flw", "--receipt", workspace.path, job_id).stdout) == about
    assert Client(workspace.path).job(job_id).result() == "an answer"


def test_a_receipt_whose_part_is_gone_is_damaged_and_the_answer_still_there(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "an answer", task={"documents": ["x" * 400] * 500})
    (Path(workspace.output) / job_id / "receipt.task.json").unlink()
    job = Client(workspace.path).job(job_id)
    assert job.result() == "an answer"
    with pytest.raises(OSError, match="no receipt that can be read"):
        job.receipt()


def test_what_is_asked_again_leaves_no_part_of_its_former_receipt(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "an answer", task={"documents": ["x" * 400] * 500})
    assert command("flw", "retry", workspace.path, job_id, "--again").returncode == 0
    lease = Lease(workspace, {"path": "m"})
    claim = claimed(lease)
    lease.finish(claim, "another", Receipt(job_id, "stop", claim.queued, claim.queued, "0"))
    lease.close()
    assert sorted(path.name for path in (Path(workspace.output) / job_id).iterdir()) == [
        *("job.json", "prompt.txt", "receipt.json", "result.txt")
    ]


# Batches.


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    name, count = draw(ANY_TEXT), draw(COUNTS)
    body: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "stop": st.lists(ANY_TEXT, max_size=3),
                "logit_bias": st.just({str(token): -1 for token in range(count)}),
                "chat_template_kwargs": st.dictionaries(st.just("name"), VALUES),
                "n": st.integers(1, 3),
                "user": TEXTS,
            },
        )
    )
    if draw(st.booleans()):
        return embedding(name, draw(st.lists(ANY_TEXT, min_size=1, max_size=3)))
    return chat(name, draw(ANY_TEXT), **body)


@_quick
@given(st.lists(requests(), min_size=1, max_size=3, unique_by=lambda line: line["custom_id"]), ANY_TEXT)
def test_every_request_of_a_batch_has_a_line_that_can_be_read(lines: list[dict[str, Any]], text: str) -> None:
    with made() as workspace:
        folder = Path(workspace.path).parent
        file = write_lines(folder / "in.jsonl", lines)
        batch = command("wrk", workspace.path, "--batch", file).stdout.strip()
        answer_all(workspace, lambda prompt: "[0.5, 0.25]" if "0" in prompt else text)
        write_batch(workspace, batch, str(folder / "out.jsonl"))
        found = []
        for path in (folder / "out.jsonl", folder / "out_errors.jsonl"):
            found += read_lines(path) if path.exists() else []
        assert sorted(line["custom_id"] for line in found) == sorted(line["custom_id"] for line in lines)
        codes = {line["error"]["code"] for line in found if line["error"]}
        # What was answered is never taken for damaged, but for a vector that is none.
        assert all(line["response"] or line["error"]["message"] == "the answer is no vector" for line in found), codes


ENTRIES = st.builds(
    Entry,
    st.integers(1, 10**9),
    ANY_TEXT | st.none(),
    TEXTS | st.none(),
    st.lists(TEXTS, max_size=5).map(tuple),
    st.dictionaries(TEXTS, VALUES, max_size=2),
    st.none() | st.fixed_dictionaries({"code": TEXTS, "message": ANY_TEXT, "param": TEXTS}),
)


@_quick
@given(st.lists(ENTRIES, max_size=4, unique_by=lambda entry: entry.line))
def test_every_entry_of_a_ledger_is_read_as_it_was_written(entries: list[Entry]) -> None:
    with made() as workspace:
        ledger = Ledger(workspace, batch_id("0" * 64))
        ledger.create()
        ledger.add(entries)
        wanted = [entry._replace(jobs=()) if entry.error else entry for entry in entries]
        assert list(Ledger(workspace, ledger.id).entries()) == []
        reader = Ledger(workspace, ledger.id)
        reader.refresh()
        assert list(reader.entries()) == sorted(wanted, key=lambda entry: entry.line)


# Records that grow.


def test_the_record_of_starts_stays_as_small_as_can_be_read_and_forgets_nobody_at_work(workspace: Workspace) -> None:
    ids = workspace.submit_all([f"job {number}" for number in range(3)])
    lease = Lease(workspace, MODEL)
    claims = [claimed(lease) for _ in ids]
    lease.record_starts(claims[:2])
    [folder] = workspace.daemon_folders()
    others = [claims[2]._replace(id=f"{number:06d}" + "x" * 190) for number in range(1000)]
    for _ in range(15):
        lease.record_starts(others)
    assert (Path(folder) / ".starts").stat().st_size < _MANY_STARTS_BYTES
    lease.close()
    recover(workspace)
    again = Lease(workspace, MODEL)
    begun = {claim.id: claim.begun for claim in (claimed(again) for _ in ids)}
    again.close()
    assert begun == {ids[0]: 1, ids[1]: 1, ids[2]: 0}


def test_of_an_answer_that_has_grown_by_much_at_once_a_part_is_read_and_the_rest_another_time(tmp_path: Path) -> None:
    path = tmp_path / PROGRESS
    path.write_bytes(first_line("key", 1) + b"".join(token_line(number, "word ") for number in range(100)))
    size = path.stat().st_size
    inode, found, data = read_from(str(path), 0, 500)
    assert (found, len(data)) == (size, 500)
    assert read_from(str(path), size - 10, 500)[2] == path.read_bytes()[-10:]
    growth = Growth(str(tmp_path))
    assert (growth.tokens, inode) == (100, path.stat().st_ino)


# With real engines.


def test_thousands_of_documents_are_ordered_and_their_receipt_is_read(
    start_daemon: StartDaemon, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    start_daemon(tmp_path / "ranks", model=tiny_models["reranker"])
    documents = [f"document {number} " + "\u2003" * 130 for number in range(3000)]
    (tmp_path / "documents.txt").write_text("\n".join(documents))
    done = command("wrk", tmp_path / "ranks", "-w", "Where?", "--rerank", tmp_path / "documents.txt")
    assert (done.returncode, done.stderr) == (0, "")
    job = Client(tmp_path / "ranks").jobs()[0]
    assert [each.place for each in sorted(job.ranking(), key=lambda each: each.place)] == list(range(3000))
    about = job.receipt()
    assert about.task and about.task["documents"] == documents
    assert sum(len(line.encode()) for line in documents) > MIB
    assert json.loads(command("flw", "--receipt", tmp_path / "ranks", job.id).stdout)["finish_reason"] == "stop"


def test_a_bias_on_every_token_of_a_vocabulary_is_in_a_receipt_that_can_be_read(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    start_daemon(folder)
    bias = {str(token): -0.5 for token in range(49_000)}
    (tmp_path / "in.jsonl").write_text(json.dumps(chat("a", "Count.", logit_bias=bias, max_tokens=3, seed=1)))
    batch = command("wrk", folder, "--batch", tmp_path / "in.jsonl").stdout.strip()
    until(lambda: all(job.is_finished for job in Workspace(folder).jobs()), "the answer")
    done = command("flw", "--batch", batch, folder, "-o", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    [line] = read_lines(tmp_path / "out.jsonl")
    assert line["error"] is None and line["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert command("flw", folder).stdout.split()[1] == "cut"
    [job] = Client(folder).jobs()
    sampling = job.receipt().sampling
    assert sampling and len(sampling["logit_bias"]) == 49_000

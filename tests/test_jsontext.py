"""JSON that comes in: how deep it may be nested, and what it may hold, at every door."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from claims import claimed, file_away
from hypothesis import given
from hypothesis import strategies as st
from processes import command, on_terminal

from nrvna.client import Workspace
from nrvna.config import SETTINGS
from nrvna.errors import GrammarError, JobError, JobNotFoundError, JsonError, NrvnaError, SettingError
from nrvna.facts import facts
from nrvna.files import as_json
from nrvna.job import check_id
from nrvna.jsontext import MAX_DEPTH, check_value, read_json
from nrvna.lease import Lease
from nrvna.order import Order
from nrvna.selection import Glance
from nrvna.task import Task
from nrvna.workspace import Workspace as Folder

TOO_DEEP = "nested more than 100 deep"


def nested(depth: int, inside: object = 1) -> Any:
    for number in range(depth):
        inside = {"a": inside} if number % 2 else [inside]
    return inside


def test_what_is_nested_as_deep_as_may_be_is_read_and_written_anywhere() -> None:
    value = nested(MAX_DEPTH)
    check_value(value)
    assert read_json(json.dumps(value)) == value


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 200, 900, 5000])
def test_what_is_nested_deeper_is_refused(depth: int) -> None:
    with pytest.raises(JsonError, match=TOO_DEEP):
        check_value(nested(depth))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, b"[" * 900 + b"]" * 900])
def test_text_that_is_nested_deep_is_refused_before_any_stack_ends(text: str | bytes) -> None:
    with pytest.raises(JsonError, match=TOO_DEEP):
        read_json(text)


def test_many_lists_that_are_not_in_each_other_are_not_deep() -> None:
    content = [[[number]] for number in range(10_000)]
    assert read_json(json.dumps(content)) == content


def test_a_list_that_holds_itself_is_refused_at_once() -> None:
    endless: list[Any] = []
    endless += [endless, endless, endless]
    with pytest.raises(JsonError, match=TOO_DEEP):
        check_value(endless)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_all_other_json_is_read_as_python_reads_it(value: object) -> None:
    check_value(value)
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize("field", [setting.field for setting in SETTINGS])
@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900])
def test_no_setting_is_more_than_a_line_of_complaint(field: str, text: str) -> None:
    [setting] = [setting for setting in SETTINGS if setting.field == field]
    if setting.kind is str and not setting.choices:
        return
    try:
        setting.parse(text, setting.option)
    except SettingError as error:
        assert setting.option in str(error) and len(str(error)) < 1000
    else:
        assert field in ("stop", "lora") and not text.startswith("[")


@pytest.mark.parametrize("depth", [101, 126, 900, 100_000])
def test_a_job_that_is_made_by_hand_is_refused_for_its_depth(depth: int) -> None:
    for name in ("template_kwargs", "json_schema"):
        text = '{"a":' * depth + "1" + "}" * depth
        with pytest.raises((SettingError, JsonError), match=TOO_DEEP):
            Task.from_dict(read_json(f'{{"{name}": {text}}}'))
        with pytest.raises(SettingError, match=f"{TOO_DEEP}|must be a JSON object"):
            Task.from_dict({name: text})


@pytest.mark.parametrize(
    "options",
    [
        {"template_kwargs": {"a": nested(900)}},
        {"schema": {"const": nested(900)}},
        {"schema": json.dumps({"const": nested(120)})},
        {"stop": nested(900)},
        {"logit_bias": nested(900)},
        {"samplers": nested(900)},
        {"messages": nested(900)},
        {"template_kwargs": {"a": {1, 2}}},
    ],
)
def test_python_is_told_by_an_error_of_nrvna(tmp_path: Path, options: dict[str, Any]) -> None:
    workspace = Workspace(tmp_path / "work", create=True)
    with pytest.raises((SettingError, GrammarError, JobError)) as caught:
        workspace.submit("q", **options)
    assert "\n" not in str(caught.value)
    assert workspace.jobs() == []


def test_the_lines_of_a_pile_and_of_a_batch_are_refused_one_by_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "work")
    folder.create()
    deep = json.dumps(nested(120))
    lines = [f'{{"prompt": "q", "template_kwargs": {{"a": {deep}}}}}', "[" * 900 + "]" * 900, '{"prompt": "q"}']
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    done = command("wrk", folder.path, "--jsonl", tmp_path / "jobs.jsonl")
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert done.stderr.count(TOO_DEEP) == done.stderr.count("\n") == 2
    body = '{{"messages": [{{"role": "user", "content": "q"}}], "chat_template_kwargs": {{"a": {}}}}}'
    request = '{{"custom_id": "{}", "method": "POST", "url": "/v1/chat/completions", "body": {}}}'
    lines = [
        request.format(number, body.format(inner)) for number, inner in enumerate(("1", deep, "[" * 900 + "]" * 900))
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = command("wrk", folder.path, "--batch", tmp_path / "in.jsonl")
    assert done.returncode == 2
    assert done.stderr.count(TOO_DEEP) == 2 and "1 request queued as 1 job, 2 lines refused" in done.stderr


def test_a_job_of_the_greatest_depth_is_shown_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "work")
    folder.create()
    variables = {"a": nested(MAX_DEPTH - 1)}
    job = Workspace(folder.path).submit("q", template_kwargs=variables)
    [found] = folder.jobs()
    assert folder.about(found)["task"] == {"template_kwargs": variables}
    known = facts(Glance(folder), found)
    assert read_json(json.dumps([known]))[0]["task"] == {"template_kwargs": variables}
    assert job.id == found.id


@pytest.mark.parametrize("about", [{"settings": {"stop": nested(900)}}, {"task": {"system": nested(900)}}])
def test_whatever_is_handed_to_the_queue_is_refused_by_a_line(tmp_path: Path, about: dict[str, Any]) -> None:
    folder = Folder(tmp_path / "work")
    folder.create()
    with pytest.raises(JobError, match=f"what is asked beside the prompt is {TOO_DEEP}"):
        folder.submit_all([Order("q", **about)])
    assert folder.jobs() == [] and list(Path(folder.input).iterdir()) == []


def test_all_of_this_is_an_error_that_one_except_catches() -> None:
    assert issubclass(JsonError, NrvnaError) and issubclass(JsonError, ValueError)
    assert as_json({}) == b"{}\n"


# Halves of characters.


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ud83d emoji", "\udcff", "\ude00\ud83d"])
def test_half_a_character_is_refused_wherever_it_stands(text: str) -> None:
    for value in (text, [text], {"a": [1, {"b": text}]}, {text: 1}):
        with pytest.raises(
            JsonError, match=r"^holds \\u[\da-f]{4}, (half a character|the byte 0xff, which is not UTF)"
        ):
            check_value(value)


def test_a_whole_character_is_none_however_it_is_written() -> None:
    assert read_json(r'"\ud83d\ude00"') == "😀"
    check_value(["😀", {"é": "\U0010ffff"}])


@pytest.mark.parametrize(
    "options",
    [
        {"stop": ["\ud800"]},
        {"stop": "\ud800"},
        {"dry_sequence_breakers": ["\ud800"]},
        {"logit_bias": {"\ud800": 1}},
        {"system": "\ud800"},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"template_kwargs": {"a": ["\ud800"]}},
        {"template_kwargs": {"a": {"\ud800": 1}}},
        {"schema": {"description": "bad \ud83d emoji", "type": "object"}},
        {"schema": r'{"description": "bad \ud83d emoji", "type": "object"}'},
        {"grammar": 'root ::= "\ud800"'},
        {"choices": ["a", "\ud800"]},
        {"rerank": ["a", "\ud800"]},
        {"lora": "\ud800"},
        {"model": "\ud800"},
        {"tags": ["\ud800"]},
        {"key": "\ud800"},
    ],
)
def test_half_a_character_is_refused_before_anything_is_queued(tmp_path: Path, options: dict[str, Any]) -> None:
    workspace = Workspace(tmp_path / "work", create=True)
    with pytest.raises((SettingError, GrammarError, JobError)) as caught:
        workspace.submit("q", **options)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"prompt": "q", **options}))
    done = command("wrk", workspace.path, "--jsonl", tmp_path / "jobs.jsonl")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("wrk: line 1: ")
    assert workspace.jobs() == []


@pytest.mark.parametrize(
    "body",
    [
        {"stop": "\ud800"},
        {"logit_bias": {"\ud800": 1}},
        {"chat_template_kwargs": {"a": "\ud800"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "\ud83d"}}}},
        {"messages": [{"role": "system", "content": "\ud800"}, {"role": "user", "content": "q"}]},
        {"guided_choice": ["a", "\ud800"]},
        {"guided_grammar": 'root ::= "\ud800"'},
    ],
)
def test_half_a_character_in_a_request_is_that_requests_own_error(tmp_path: Path, body: dict[str, Any]) -> None:
    folder = Folder(tmp_path / "work")
    folder.create()
    message = {"messages": [{"role": "user", "content": "q"}]}
    lines = [
        json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": message | more})
        for name, more in (("good", {}), ("bad", body), ("good too", {}))
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = command("wrk", folder.path, "--batch", tmp_path / "in.jsonl")
    assert done.returncode == 2 and "2 requests queued as 2 jobs, 1 line refused" in done.stderr
    assert len(folder.jobs()) == 2


def test_half_a_character_in_the_field_of_a_template_is_that_lines_own_error(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "work")
    folder.create()
    (tmp_path / "rows.jsonl").write_text('{"name": "\\ud800"}\n{"name": "Ada"}\n')
    done = command("wrk", folder.path, "--jsonl", tmp_path / "rows.jsonl", "--template", "Who is {name}?")
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert done.stderr == "wrk: line 1: the prompt is not UTF-8: byte 0xed at position 7\n"


@pytest.fixture
def old(tmp_path: Path) -> Folder:
    """A workspace with jobs of an earlier nrvna, which queued and answered what holds half a character."""
    folder = Folder(tmp_path / "work")
    folder.create()
    sampling = {"stop": ["\ud800", "\udcff"]}
    task = {"json_schema": '{"type": "object", "description": "bad \ud83d emoji"}'}
    for failed in (False, True):
        file_away(folder, "q", "an answer", failed=failed, sampling=sampling, task=task)
    by_hand = Path(folder.input) / "mine"
    by_hand.mkdir()
    (by_hand / "prompt.txt").write_bytes(b"caf\xe9 \xed\xa0\x80")
    (by_hand / "job.json").write_text(
        r'{"settings": {"stop": ["\ud800"]}, "tags": ["\udcff"], "after": ["a\udfff"], "model": "\ud800"}'
    )
    return folder


@pytest.mark.parametrize(
    "call",
    [
        *(
            "flw --receipt WORK @2 @3",
            "flw --json WORK",
            "flw --jsonl WORK",
            "flw --json WORK @1 @2",
            "flw WORK mine",
        ),
        *("flw --prompt WORK mine", "flw WORK", "flw -a WORK", "flw --state queued,waiting WORK", "flw --tag x WORK"),
        *("flw export WORK", "flw export --format csv WORK", "flw export --format md WORK", "flw export WORK mine"),
        *("flw stats WORK", "flw stats --json WORK", "flw WORK mine"),
    ],
)
def test_what_holds_half_a_character_already_is_shown_escaped(old: Folder, call: str) -> None:
    tool, *words = call.replace("WORK", old.path).split()
    done = command(tool, *words)
    assert "Traceback" not in done.stderr and done.returncode in (0, 3)
    if "--receipt" in words:
        assert done.stdout.count("\\ud800") == done.stdout.count("\\ud83d") == 2
    if call in ("flw --jsonl WORK", "flw export WORK"):
        known = {about["id"]: about for about in map(json.loads, done.stdout.splitlines())}
        receipts = [about["receipt"] for about in known.values() if about["receipt"]]
        assert [receipt["sampling"]["stop"] for receipt in receipts] == [["\ud800", "\udcff"]] * 2
        assert "mine" not in known or known["mine"]["settings"] == {"stop": ["\ud800"]}
    # On a terminal, too.
    assert "Traceback" not in on_terminal(Path(sys.executable).parent / tool, *words)


def test_a_job_of_old_that_holds_half_a_character_fails_with_the_reason(old: Folder) -> None:
    lease = Lease(old, {"path": "m"})
    by_hand = next(job for job in old.jobs() if job.id == "mine")
    os.utime(by_hand.directory, (0, 1_700_000_000))
    claim = claimed(lease)
    with pytest.raises(JobError, match=r"job\.json holds \\ud800, half a character: remove it"):
        lease.prompt(claim)
    lease.close()


@pytest.mark.parametrize("job_id", ["a\udfff", "\ud800", "a\udcff"])
def test_half_a_character_is_in_no_id(old: Folder, job_id: str) -> None:
    with pytest.raises(JobNotFoundError):
        check_id(job_id)
    with pytest.raises(JobError, match="it cannot come after a job of that id"):
        Order("q", after=(job_id,)).check()
    with pytest.raises(JobNotFoundError):
        old.find(job_id)

"""What wrk's options ask of a job: it stands in job.json, and what cannot be asked is refused before it is queued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nrvna.workspace import Workspace
from nrvna.wrk import main


def queued(workspace: Workspace, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What stands in job.json of the jobs that a call of wrk made."""
    assert main([workspace.path, "Hello", *arguments]) == 0
    ids = capsys.readouterr().out.split()
    return [json.loads((Path(workspace.input) / job_id / "job.json").read_text()) for job_id in ids]


def test_settings_are_the_jobs_own(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    [about] = queued(workspace, "--temp", "0.2", "--predict", "40", "--stop", "\n\n", capsys=capsys)
    assert about["settings"] == {"temp": 0.2, "predict": 40, "stop": ["\n\n"]}
    assert "task" not in about


def test_several_stop_strings_are_a_json_list(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    [about] = queued(workspace, "--stop", '["END", "\\n"]', capsys=capsys)
    assert about["settings"]["stop"] == ["END", "\n"]


def test_copies_are_jobs_of_their_own_with_seeds_that_count_up(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    made = queued(workspace, "-n", "3", "--seed", "7", capsys=capsys)
    assert [about["settings"]["seed"] for about in made] == [7, 8, 9]


def test_copies_without_a_seed_draw_their_own(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert [about["settings"] for about in queued(workspace, "-n", "2", capsys=capsys)] == [{}, {}]


def test_copies_with_a_seed_of_minus_one_draw_their_own(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    made = queued(workspace, "-n", "2", "--seed", "-1", capsys=capsys)
    assert [about["settings"] for about in made] == [{"seed": -1}, {"seed": -1}]


def test_the_copies_of_a_line_stand_behind_each_other(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n")
    assert main([workspace.path, "--lines", str(tmp_path / "lines"), "-n", "2", "--seed", "1"]) == 0
    jobs = [workspace.find(job_id) for job_id in capsys.readouterr().out.split()]
    assert [workspace.prompt(job) for job in jobs] == ["one", "one", "two", "two"]


def test_choices_a_system_message_and_template_variables_are_the_task(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--choices", "yes, no", "--system", "Be fair.", "--template-kwargs", '{"enable_thinking": false}']
    [about] = queued(workspace, *asked, capsys=capsys)
    assert about["task"] == {
        "system": "Be fair.",
        "template_kwargs": {"enable_thinking": False},
        "choices": ["yes", "no"],
    }


def test_earlier_messages_come_from_a_file(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    [about] = queued(workspace, "--messages", str(tmp_path / "messages.json"), capsys=capsys)
    assert about["task"]["messages"] == [["user", "Hi"], ["assistant", "Hello!"]]


def test_a_schema_may_stand_in_a_file_or_in_the_call(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    for given in (str(tmp_path / "schema.json"), '{"type": "integer"}'):
        [about] = queued(workspace, "--schema", given, capsys=capsys)
        assert json.loads(about["task"]["json_schema"]) == {"type": "integer"}


def test_documents_to_order_are_a_files_lines(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "documents").write_text("one\ntwo\n")
    [about] = queued(workspace, "--rerank", str(tmp_path / "documents"), capsys=capsys)
    assert about["task"] == {"kind": "rerank", "documents": ["one", "two"]}


def test_documents_keep_the_numbers_of_their_lines(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "documents").write_bytes("one\n\r\n\u3000\ntwo \u2028 \x0c \x85 2\r\nthree \r 3".encode())
    [about] = queued(workspace, "--rerank", str(tmp_path / "documents"), capsys=capsys)
    assert about["task"] == {
        "kind": "rerank",
        "documents": ["one", "two \u2028 \x0c \x85 2", "three \r 3"],
        "numbers": [1, 4, 5],
    }


@pytest.mark.parametrize(
    ("option", "content", "task"),
    [
        ("--messages", '[{"role": "user", "content": "hi"}]', {"messages": [["user", "hi"]]}),
        ("--schema", '{"type": "integer"}', {"json_schema": '{"type": "integer"}'}),
        ("--grammar", 'root ::= "a" | "b"\r\n', {"grammar": 'root ::= "a" | "b"\r\n'}),
        ("--rerank", "bread\r\nwater\r\n", {"kind": "rerank", "documents": ["bread", "water"]}),
    ],
)
def test_a_file_begins_after_its_byte_order_mark(
    workspace: Workspace,
    tmp_path: Path,
    option: str,
    content: str,
    task: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + content.encode())
    [about] = queued(workspace, option, str(tmp_path / "file"), capsys=capsys)
    assert about["task"] == task


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--temp", "warm"], "--temp is 'warm', but must be a number from 0 to 10"),
        (["--stop", ""], "--stop is '', but must be a text, or a JSON list of texts"),
        (["-n", "0"], "-n is '0', but must be a whole number from 1 to 1000"),
        (["-n", "many"], "-n is 'many', but must be a whole number"),
        (["--overflow", "wrap"], "--overflow is 'wrap', but must be fail, truncate-left"),
        (["--choices", "yes"], "a single choice leaves nothing to choose"),
        (["--choices", "yes,no,yes"], "choice"),
        (["--schema", '{"type": "intger"}'], "--schema: "),
        (["--schema", "{"], "--schema is no JSON"),
        (["--schema", "/nonexistent"], "cannot read /nonexistent: No such file or directory"),
        (["--grammar", "/dev/null"], "--grammar /dev/null: "),
        (["--messages", "/dev/null"], "--messages /dev/null is no JSON"),
        (["--template-kwargs", "[]"], "template_kwargs must be a JSON object"),
        (["--embed", "--system", "x"], "has no use for system"),
        (["--raw", "--system", "x"], "a raw prompt stands alone"),
        (["--embed", "--choices", "a,b"], "not allowed with argument"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_queues_nothing(
    workspace: Workspace, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([workspace.path, "Hello", *arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert reason in said.splitlines()[-1]
    assert list(Path(workspace.input).iterdir()) == []


def test_help_shows_all_that_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--temp", "--choices", "--schema", "--embed", "--lines"))

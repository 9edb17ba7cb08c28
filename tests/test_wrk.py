"""wrk: what a prompt is made of, many in one call, and how they are queued. Real workspaces, no daemon."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from claims import MODEL, claimed, file_away
from processes import command

from nrvna.job import Job
from nrvna.lease import Lease
from nrvna.order import Order
from nrvna.workspace import Workspace
from nrvna.wrk import main

Caught = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is called, with two small sources."""
    monkeypatch.chdir(tmp_path)
    Path("src/deep").mkdir(parents=True)
    Path("src/a.py").write_text("print('a')\n")
    Path("src/deep/b.py").write_text("print('b')\n")
    return tmp_path


def wrk(workspace: Workspace, *arguments: str, capsys: Caught, code: int = 0) -> list[Job]:
    assert main([workspace.path, *arguments]) == code
    return [workspace.find(job_id) for job_id in capsys.readouterr().out.split()]


def refused(workspace: Workspace, *arguments: str, capsys: Caught) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([workspace.path, *arguments])
    assert stopped.value.code == 2
    assert list(Path(workspace.input).iterdir()) == []
    return capsys.readouterr().err


def order_of(workspace: Workspace, job: Job) -> Order:
    order = workspace.order(job)
    assert order is not None
    return order


# What a prompt is made of.


def test_files_stand_under_the_words_with_their_names(workspace: Workspace, capsys: Caught) -> None:
    [job] = wrk(workspace, "Compare:", "-f", "src/a.py", "-f", "src/deep/b.py", capsys=capsys)
    assert workspace.prompt(job) == (
        "Compare:\n\nsrc/a.py:\n```\nprint('a')\n```\n\nsrc/deep/b.py:\n```\nprint('b')\n```"
    )


def test_a_files_own_fences_do_not_end_it(workspace: Workspace, capsys: Caught) -> None:
    Path("notes.md").write_text("```sh\nls\n```\n")
    [job] = wrk(workspace, "Read:", "-f", "notes.md", capsys=capsys)
    assert workspace.prompt(job) == "Read:\n\nnotes.md:\n````\n```sh\nls\n```\n````"


def test_files_alone_are_a_prompt(workspace: Workspace, capsys: Caught) -> None:
    [job] = wrk(workspace, "-f", "src/a.py", capsys=capsys)
    assert workspace.prompt(job).startswith("src/a.py:\n")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing", None, "wrk: cannot read missing: No such file or directory"),
        ("src", None, "wrk: cannot read src: Is a directory"),
        ("picture", b"\x89PNG", "wrk: picture is not UTF-8: byte 0x89 at position 0"),
        ("empty", b"", "wrk: empty is empty"),
    ],
)
def test_a_file_that_cannot_be_put_there_is_named(
    workspace: Workspace, name: str, content: bytes | None, complaint: str, capsys: Caught
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    assert refused(workspace, "x", "-f", name, capsys=capsys) == complaint + "\n"


def piped(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(os.fdopen(reader, "rb")))


def test_files_and_what_is_piped_begin_after_their_byte_order_mark(
    workspace: Workspace, capsys: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mark.py").write_bytes(b"\xef\xbb\xbfpass\r\n")
    Path("mark.txt").write_bytes(b"\xef\xbb\xbfbread\r\nwater\r\n")
    Path("mark.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "salt"}\r\n')
    [job] = wrk(workspace, "Read:", "-f", "mark.py", capsys=capsys)
    assert workspace.prompt(job) == "Read:\n\nmark.py:\n```\npass\n```"
    [job] = wrk(workspace, "--template", "{text}|{file}", "--each", "mark.py", capsys=capsys)
    assert workspace.prompt(job) == "pass\r\n|mark.py:\n```\npass\n```"
    jobs = wrk(workspace, "Say:", "--lines", "mark.txt", "--key", "{line}", capsys=capsys)
    assert [workspace.prompt(job) for job in jobs] == ["Say:\n\nbread", "Say:\n\nwater"]
    assert order_of(workspace, jobs[0]).key == "bread"
    [job] = wrk(workspace, "Say:", "--jsonl", "mark.jsonl", capsys=capsys)
    assert workspace.prompt(job) == "Say:\n\nsalt"
    piped(b"\xef\xbb\xbfbread", monkeypatch)
    [job] = wrk(workspace, "Say:", "-", capsys=capsys)
    assert workspace.prompt(job) == "Say:\n\nbread"


# Many in one call.


def test_each_file_is_a_job_with_its_file_under_the_words(workspace: Workspace, capsys: Caught) -> None:
    jobs = wrk(workspace, "Review:", "--each", "src/**/*.py", capsys=capsys)
    assert [workspace.prompt(job) for job in jobs] == [
        "Review:\n\nsrc/a.py:\n```\nprint('a')\n```",
        "Review:\n\nsrc/deep/b.py:\n```\nprint('b')\n```",
    ]


def test_what_all_share_stands_before_what_differs(workspace: Workspace, capsys: Caught) -> None:
    Path("style.md").write_text("Be kind.\n")
    [job, _] = wrk(workspace, "Review:", "-f", "style.md", "--each", "src/**/*.py", capsys=capsys)
    assert workspace.prompt(job).index("Be kind.") < workspace.prompt(job).index("src/a.py")


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("Review {file}", "Review src/a.py:\n```\nprint('a')\n```"),
        ("{path} {name} {stem}", "src/a.py a.py a"),
        ("{text}", "print('a')\n"),
        ('{{path}} {"a": {"b": 1}} {}', '{path} {"a": {"b": 1}} {}'),
    ],
)
def test_a_template_is_filled_in_for_each_file(
    workspace: Workspace, template: str, prompt: str, capsys: Caught
) -> None:
    [job] = wrk(workspace, "--template", template, "--each", "src/*.py", capsys=capsys)
    assert workspace.prompt(job) == prompt


def test_a_template_is_filled_in_for_each_line(workspace: Workspace, capsys: Caught) -> None:
    Path("words").write_text("one\n\ntwo\n")
    jobs = wrk(workspace, "--template", "{number}: is {line} a number?", "--lines", "words", capsys=capsys)
    assert [workspace.prompt(job) for job in jobs] == ["1: is one a number?", "3: is two a number?"]


def test_a_template_is_filled_in_with_an_objects_fields(workspace: Workspace, capsys: Caught) -> None:
    Path("rows").write_text('{"name": "Ada", "age": 36, "temp": [1]}\n')
    [job] = wrk(workspace, "--template", "{name} is {age}, {temp}", "--jsonl", "rows", capsys=capsys)
    assert workspace.prompt(job) == "Ada is 36, [1]"
    assert workspace.about(job)["settings"] == {}


def test_an_object_asks_for_all_that_a_call_can(workspace: Workspace, capsys: Caught) -> None:
    asked = {
        "prompt": "Good?",
        "temp": 0,
        "max_tokens": 5,
        "choices": ["yes", "no"],
        "tags": ["a"],
        "priority": 3,
        "key": "k",
        "timeout": 60,
        "model": "small",
    }
    Path("jobs").write_text(json.dumps(asked) + "\n")
    [job] = wrk(workspace, "Say:", "--tag", "all", "--seed", "7", "--jsonl", "jobs", capsys=capsys)
    about = workspace.about(job)
    assert workspace.prompt(job) == "Say:\n\nGood?"
    assert about["settings"] == {"temp": 0, "predict": 5, "seed": 7}
    assert about["task"] == {"choices": ["yes", "no"]}
    assert order_of(workspace, job)._replace(prompt=b"") == Order(
        b"", model="small", tags=("all", "a"), priority=3, key="k", timeout=60
    )


def test_bad_objects_are_named_by_line_and_do_not_stop_the_others(workspace: Workspace, capsys: Caught) -> None:
    lines = ['{"prompt": "good"}', "{", "[1]", '{"prompt": 3}', '{"text": "x"}', '{"prompt": "x", "tmep": 1}']
    lines += ['{"prompt": "x", "temp": "hot"}', '{"prompt": "x", "grammar": "root ::= oops"}', '{"prompt": "too"}']
    Path("jobs").write_text("\n".join(lines))
    assert main([workspace.path, "--jsonl", "jobs"]) == 2
    told = capsys.readouterr()
    assert [workspace.prompt(workspace.find(job_id)) for job_id in told.out.split()] == ["good", "too"]
    complaints = told.err.splitlines()
    expected = [
        "wrk: line 2 is no JSON: ",
        "wrk: line 3 is no JSON object",
        'wrk: line 4: "prompt" is 3, but must be text',
        'wrk: line 5: "prompt" is missing',
        "wrk: line 6: tmep is nothing that can be asked of a job: did you mean temp?",
        "wrk: line 7: temp is 'hot', but must be a number from 0 to 10",
        "wrk: line 8: ",
    ]
    assert len(complaints) == len(expected)
    assert all(line.startswith(start) for line, start in zip(complaints, expected, strict=True))


def test_a_file_that_is_no_text_does_not_stop_the_others(workspace: Workspace, capsys: Caught) -> None:
    Path("src/c.py").write_bytes(b"\xff")
    jobs = wrk(workspace, "Review:", "--each", "src/*.py", capsys=capsys, code=2)
    assert len(jobs) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--each", "src/*.js"], "--each 'src/*.js' matches no file"),
        (["--each", "src/a.py", "src/deep/b.py"], "quote the pattern, as in --each 'src/*.py'"),
        (["--template", "{fil}", "--each", "src/*.py"], "--template names {fil}: there is {file}, {path}, {name}"),
        (["--template", "{path}", "--lines", "src/a.py"], "--template names {path}: there is {line}, {number}"),
        (["--template", "x {line}", "--lines", "src/a.py", "words"], "--template is the whole prompt: put 'words'"),
        (["--template", "x"], "--template goes with --lines, --jsonl or --each"),
        (["--lines", "src/a.py", "--key", "k"], "--key 'k' would be that of every job: give it a field"),
        (["--lines", "a", "--jsonl", "b"], "not allowed with argument"),
        (["--jsonl", "missing"], "cannot read missing: No such file or directory"),
        (["x", "--priority", "high"], "--priority is 'high', but must be a whole number"),
        (["x", "--priority", "1000"], "the priority is 1000, but must be a whole number from -100 to 100"),
        (["x", "--timeout", "soon"], "--timeout is 'soon', but must be a time, such as 90s"),
        (["x", "--timeout", "0"], "the timeout is 0.0, but must be seconds, more than 0"),
        (["x", "--after", "20260101-000000-000000-abcdef"], "no job 20260101-000000-000000-abcdef in"),
        (["x", "--key", ""], "the key is ''"),
        (["x", "--tag", "\x07"], "the tag '\\x07' must be a word"),
    ],
)
def test_what_cannot_be_queued_is_one_line_and_queues_nothing(
    workspace: Workspace, arguments: list[str], complaint: str, capsys: Caught
) -> None:
    assert complaint in refused(workspace, *arguments, capsys=capsys).splitlines()[-1]


def test_options_may_stand_between_the_words(workspace: Workspace, capsys: Caught) -> None:
    [job] = wrk(workspace, "one", "--tag", "x", "two", "--temp", "0", "three", capsys=capsys)
    assert workspace.prompt(job) == "one two three"


# How they are queued.


def test_tags_priority_and_timeout_are_the_jobs(workspace: Workspace, capsys: Caught) -> None:
    given = ["--tag", "a,b", "--tag", "c", "--priority", "-3", "--timeout", "15m"]
    [job] = wrk(workspace, "x", *given, capsys=capsys)
    assert order_of(workspace, job) == Order(b"", tags=("a", "b", "c"), priority=-3, timeout=900.0)


def test_a_job_may_come_after_a_list_of_others(workspace: Workspace, capsys: Caught) -> None:
    first, second, third = workspace.submit_all(["a", "b", "c"])
    [job] = wrk(workspace, "{result}", "--after", f"{first}\n{second}\n", "--after", third, capsys=capsys)
    assert order_of(workspace, job).after == (first, second, third)


def test_a_result_of_a_job_that_it_does_not_come_after_is_refused(workspace: Workspace, capsys: Caught) -> None:
    first, second = workspace.submit_all(["a", "b"])
    with pytest.raises(SystemExit) as stopped:
        main([workspace.path, f"{{result:{second}}}", "--after", first])
    assert stopped.value.code == 2
    assert f"wrk: {{result:{second}}} names no job that this one comes after" in capsys.readouterr().err


def test_braces_stay_where_nothing_comes_before(workspace: Workspace, capsys: Caught) -> None:
    [job] = wrk(workspace, "What is {result} in a template?", capsys=capsys)
    assert workspace.prompt(job) == "What is {result} in a template?"


def answered_before(workspace: Workspace, answer: str) -> str:
    """The id of a job that has this answer."""
    return file_away(workspace, "before", answer)


def prompt_read(workspace: Workspace) -> str:
    """The prompt of the next job, as the daemon gives it to its engine."""
    lease = Lease(workspace, MODEL)
    prompt = lease.prompt(claimed(lease))
    lease.close()
    return prompt


SOURCE = 'print(f"value: {result}")\nprint(f"{result:>10} {{result}}")'


@pytest.mark.parametrize("arguments", [["-f", "f.py"], ["--each", "f.py"]])
def test_an_attached_file_is_no_template(workspace: Workspace, arguments: list[str], capsys: Caught) -> None:
    Path("f.py").write_text(SOURCE + "\n")
    parent = answered_before(workspace, "A")
    wrk(workspace, "--after", parent, "{result}? {{result}}:", *arguments, capsys=capsys)
    assert prompt_read(workspace) == f"A? {{result}}:\n\nf.py:\n```\n{SOURCE}\n```"


def test_a_file_is_no_template_where_a_template_names_it(workspace: Workspace, capsys: Caught) -> None:
    Path("f.py").write_text(SOURCE)
    parent = answered_before(workspace, "A")
    template = f"{{result:{parent[-6:]}}} {{text}} {{{{result}}}} {{result}}"
    wrk(workspace, "--after", parent, "--template", template, "--each", "f.py", capsys=capsys)
    assert prompt_read(workspace) == f"A {SOURCE} {{result}} A"


@pytest.mark.parametrize("words", [["{result}:"], []])
def test_what_is_piped_in_is_no_template(
    workspace: Workspace, words: list[str], capsys: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = answered_before(workspace, "A")
    piped(SOURCE.encode(), monkeypatch)
    wrk(workspace, "--after", parent, *words, "-", capsys=capsys)
    assert prompt_read(workspace) == ("A:\n\n" if words else "") + SOURCE


def test_a_line_is_no_template(workspace: Workspace, capsys: Caught) -> None:
    Path("lines").write_text("é {result} {result:>10}\n")
    parent = answered_before(workspace, "A")
    wrk(workspace, "--after", parent, "ü {result}:", "--lines", "lines", capsys=capsys)
    assert prompt_read(workspace) == "ü A:\n\né {result} {result:>10}"


def test_an_objects_prompt_is_words(workspace: Workspace, capsys: Caught) -> None:
    parent = answered_before(workspace, "A")
    Path("f.py").write_text(SOURCE)
    Path("jobs").write_text(json.dumps({"prompt": "Now {result}, {{result}}", "after": parent}))
    wrk(workspace, "Given {result}:", "-f", "f.py", "--jsonl", "jobs", capsys=capsys)
    assert prompt_read(workspace) == f"Given A:\n\nf.py:\n```\n{SOURCE}\n```\n\nNow A, {{result}}"


def test_an_object_that_is_no_text_is_refused_also_in_a_template(workspace: Workspace, capsys: Caught) -> None:
    Path("jobs").write_text('{"a": "\\ud83d"}\n{"a": "b"}\n')
    [job] = wrk(workspace, "--template", "{a}", "--jsonl", "jobs", capsys=capsys, code=2)
    assert workspace.prompt(job) == "b"


def test_words_that_name_no_job_before_are_refused_with_the_way_out(workspace: Workspace, capsys: Caught) -> None:
    parent = answered_before(workspace, "A")
    said = refused(workspace, "--after", parent, "{result:>10}", capsys=capsys)
    reason = "names no job that this one comes after: if it is text, put braces around it"
    assert said == f"wrk: {{result:>10}} {reason}\n"


def test_a_key_queued_again_prints_the_same_id(workspace: Workspace, capsys: Caught) -> None:
    [first] = wrk(workspace, "x", "--key", "k", capsys=capsys)
    [again] = wrk(workspace, "x", "--key", "k", capsys=capsys)
    assert first.id == again.id


def test_copies_have_keys_of_their_own(workspace: Workspace, capsys: Caught) -> None:
    jobs = wrk(workspace, "x", "--key", "k", "-n", "3", capsys=capsys)
    again = wrk(workspace, "x", "--key", "k", "-n", "3", capsys=capsys)
    assert len({job.id for job in jobs}) == 3
    assert jobs == again


def test_a_pile_queued_again_with_keys_is_not_queued_twice(workspace: Workspace, capsys: Caught) -> None:
    first = wrk(workspace, "Review:", "--each", "src/*.py", "--key", "review {path}", capsys=capsys)
    Path("src/c.py").write_text("new")
    second = wrk(workspace, "Review:", "--each", "src/*.py", "--key", "review {path}", capsys=capsys)
    assert [job.id for job in second[:-1]] == [job.id for job in first]
    assert len(second) == 2


def test_a_piles_tags_may_have_fields(workspace: Workspace, capsys: Caught) -> None:
    [job] = wrk(workspace, "x", "--each", "src/*.py", "--tag", "review,{stem}", capsys=capsys)
    assert order_of(workspace, job).tags == ("review", "a")


def test_a_line_is_what_ends_in_a_newline(workspace: Workspace, capsys: Caught) -> None:
    Path("words").write_bytes("one \u2028 \x0c \x85 1\r\n\u00a0\ntwo \r 2\n".encode())
    jobs = wrk(workspace, "--template", "{number}: {line}", "--lines", "words", capsys=capsys)
    assert [workspace.prompt(job) for job in jobs] == ["1: one \u2028 \x0c \x85 1", "3: two \r 2"]


def test_lines_from_a_pipe_become_jobs(workspace: Workspace, capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(b"one\ntwo\n", monkeypatch)
    jobs = wrk(workspace, "Count:", "--lines", "-", capsys=capsys)
    assert [workspace.prompt(job) for job in jobs] == ["Count:\n\none", "Count:\n\ntwo"]


# Waiting for the answer.


def test_an_answer_is_printed_in_place_of_the_id(served: Workspace) -> None:
    done = command("wrk", "-w", served.path, "Name a metal.")
    newest = served.jobs(newest=1)[0]
    assert (done.returncode, done.stdout) == (0, served.answer(newest).rstrip("\n") + "\n")


def test_the_answers_of_a_pile_are_printed_in_its_order(served: Workspace) -> None:
    Path("words").write_text("iron\n\nwater\n")
    done = command("wrk", "-w", served.path, "What is this?", "--lines", "words", "--max-tokens", "4")
    jobs = served.jobs(newest=2)
    assert done.returncode == 0
    assert done.stdout == "\n".join(f"==> {job.id} <==\n{served.answer(job).rstrip()}\n" for job in jobs)


def test_a_failure_that_is_waited_for_is_told_and_exits_1(served: Workspace) -> None:
    done = command("wrk", "-w", served.path, "Count.", "--ignore-eos", "1", "--predict", "400", "--timeout", "0.3s")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("wrk: ") and "no answer within its timeout of 0.3 s" in done.stderr


def test_a_job_may_come_after_one_by_the_end_of_its_id(workspace: Workspace, capsys: Caught) -> None:
    first = workspace.submit("a")
    [job] = wrk(workspace, f"{{result:{first[-6:]}}}", "--after", first[-6:], capsys=capsys)
    assert order_of(workspace, job).after == (first,)


def test_a_job_may_come_after_the_newest(workspace: Workspace, capsys: Caught) -> None:
    _, second = workspace.submit_all(["a", "b"])
    [job] = wrk(workspace, "c", "--after", "@1", capsys=capsys)
    assert order_of(workspace, job).after == (second,)

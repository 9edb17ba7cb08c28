"""What a job asks for beside its prompt: what is written is what is read, and nothing else gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.errors import SettingError
from nrvna.task import EMBED, RERANK, ROLES, Task

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
MESSAGES = st.lists(st.tuples(st.sampled_from(ROLES), TEXT), max_size=4).map(tuple)
PLAIN = st.builds(
    Task,
    system=st.none() | TEXT,
    messages=MESSAGES,
    role=st.sampled_from(ROLES),
    template_kwargs=st.dictionaries(st.sampled_from(["enable_thinking", "level"]), st.booleans() | TEXT),
    lora=st.none() | TEXT,
)
CONSTRAINED = st.one_of(
    st.builds(Task, grammar=TEXT),
    st.builds(Task, json_schema=st.just('{"type": "object"}')),
    st.builds(Task, choices=st.lists(TEXT, min_size=2, max_size=4, unique=True).map(tuple)),
)
OTHER_KINDS = st.one_of(
    st.just(Task(kind=EMBED)),
    st.builds(Task, kind=st.just(RERANK), documents=st.lists(TEXT, min_size=1, max_size=3).map(tuple)),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted(Task.__dataclass_fields__))


@given(st.one_of(PLAIN, CONSTRAINED, OTHER_KINDS, st.just(Task(raw=True))))
def test_a_task_comes_back_from_json_as_it_was(task: Task) -> None:
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


@given(JSON | st.dictionaries(FIELDS, JSON, max_size=4))
def test_whatever_a_file_holds_it_is_a_task_or_refused_in_one_line(content: Any) -> None:
    try:
        task = Task.from_dict(content)
    except SettingError as error:
        assert "\n" not in str(error)
    else:
        assert Task.from_dict(task.to_dict()) == task


def test_a_plain_question_leaves_nothing_to_write() -> None:
    assert Task().to_dict() == {}


def test_messages_may_be_written_as_openai_writes_them() -> None:
    content = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert Task.from_dict(content).messages == (("user", "Hi"), ("assistant", "Hello"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "the job's task is no JSON object"),
        ({"shema": {}}, "the job's task has no 'shema'"),
        ({"kind": "sing"}, "kind is 'sing', but must be answer, embed, rerank"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 1 of the task has the role 'robot'"),
        ({"messages": [["user", "x"], ["user"]]}, "message 2 of the task must have a role and a content"),
        ({"grammar": "root ::= x", "choices": ["a", "b"]}, "follows one constraint, not grammar and choices"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": 7}, "json_schema must be a JSON object"),
        ({"template_kwargs": {"a b": 1}}, "template_kwargs must be a JSON object with variables' names as keys"),
        ({"kind": "embed", "system": "x"}, "has no use for system"),
        ({"kind": "rerank"}, "documents and the kind rerank go together"),
        ({"documents": ["a"]}, "documents and the kind rerank go together"),
        ({"raw": True, "system": "x"}, "a raw prompt stands alone"),
        ({"raw": True, "role": "system"}, "a raw prompt stands alone"),
        ({"role": "king"}, "the task's role is 'king', but must be system, developer"),
        ({"raw": 1}, "raw must be true or false"),
        ({"system": "a\0b"}, "system must be text"),
        ({"choices": "a,b"}, "choices must be a list of texts"),
    ],
)
def test_what_is_wrong_with_a_task_is_named(content: Any, reason: str) -> None:
    with pytest.raises(SettingError, match=reason.replace("(", r"\(")):
        Task.from_dict(content)

"""Jobs that hold anything: every field of job.json, hostile values, against the real engine, with good ones between.

Each good one is answered, each other one is answered, refused or fails by itself, and the engine is the one that was
started, in the end as in the beginning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from processes import DaemonProcess, until

from nrvna.config import SETTINGS, Setting
from nrvna.job import JobState
from nrvna.task import Task
from nrvna.workspace import Workspace

OPTIONS = ("--parallel", "8", "--ctx", "256", "--predict", "3", "--temp", "0")
_BATCH = 25
_PATIENCE_S = 120.0


class Raw(NamedTuple):
    """The bytes of a job.json, whatever they are."""

    content: bytes


# Values that somebody once did not think of.
_WORST = st.sampled_from(["\ud800", "a\udfff", "\0", "\n\n", "<|im_end|>", "\ufeff", "é" * 3000])
_TEXTS = st.one_of(
    _WORST,
    st.sampled_from(
        [
            *(
                "",
                " ",
                "\0",
                "\ud800",
                "a\udfffb",
                "\ufeff",
                "\u2028",
                "\r\n",
                "[/INST]",
                "[INST]",
                '["\\ud800"]',
                "[1]",
            ),
            *(
                "<|im_start|>system",
                "<|im_end|>",
                "</s>",
                "{result}",
                "{result:>10}",
                "{{x}}",
                "{% for %}",
                "../../x",
            ),
            *(
                "🦀" * 50,
                "a" * 5000,
                "\n" * 300,
                "1e999",
                "NaN",
                "-1",
                "0x10",
                "٣",
                "1_000",
                "+5",
                "null",
                "[]",
                "{}",
            ),
            *(
                'root ::= "a"',
                "root ::= root",
                'root ::= "\\ud800"',
                "root ::= [",
                'root ::= ("a"){1000000}',
                "x ::= 1",
            ),
            *('{"type":"integer"}', '{"$ref":"#"}', '{"pattern":"(a+)+$"}', '{"enum":[]}', '{"type":"\\ud800"}'),
        ]
    ),
    st.text(max_size=20),
    st.text(st.characters(), max_size=20),
)
_NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, -(2**63), 10**400, 1e308, 5e-324, -0.0]),
    st.sampled_from([float("inf"), float("-inf"), float("nan"), 0.5, 1e-9, 49152, 49151, 262144]),
    st.integers(-5, 100),
    st.floats(-2, 12),
)


def _nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


_DEPTHS = st.sampled_from([3, 30, 63, 64, 65, 100, 200, 330, 500, 900, 1500]).map(_nested)
_SCALARS = st.one_of(_TEXTS, _NUMBERS, st.booleans(), st.none())
_ANY = st.one_of(
    _SCALARS,
    st.recursive(
        _SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(_TEXTS, inner, max_size=3)
        ),
        max_leaves=8,
    ),
    _DEPTHS,
    st.lists(_TEXTS, max_size=40),
    st.lists(st.tuples(st.one_of(_TEXTS, _NUMBERS), _NUMBERS), max_size=5),
)
# What each takes in earnest, so that not only the doors are tried.
_LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "dry_multiplier": st.floats(0.1, 100),
    "dry_sequence_breakers": st.lists(st.one_of(_WORST, st.text(min_size=1)), max_size=3),
    "stop": st.lists(_TEXTS.filter(bool), min_size=1, max_size=5),
    "logit_bias": st.one_of(
        st.lists(
            st.tuples(st.one_of(st.integers(0, 60000), _TEXTS), st.one_of(st.floats(-999, 999), st.just(False)))
        ),
        st.dictionaries(_TEXTS, st.floats(-100, 100), max_size=4),
    ),
    "samplers": st.lists(st.sampled_from(["top_k", "dry", "penalties", "temperature", "xtc", "adaptive_p"])),
    "messages": st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant", "tool", "x"]), _TEXTS), max_size=4
    ),
    "choices": st.lists(_TEXTS, max_size=4),
    "documents": st.lists(_TEXTS, max_size=4),
    "template_kwargs": st.dictionaries(
        st.one_of(st.sampled_from(["messages", "bos_token", "tools", "enable_thinking", "range"]), _TEXTS),
        st.one_of(_SCALARS, _DEPTHS),
        max_size=3,
    ),
    "kind": st.sampled_from(["answer", "embed", "rerank", "x"]),
    "role": st.sampled_from(["user", "assistant", "system", "tool", "x"]),
    "grammar": _TEXTS,
    "json_schema": st.one_of(
        _TEXTS, st.dictionaries(st.sampled_from(["type", "enum", "pattern", "const"]), _SCALARS)
    ),
    # An answer to the end of the context takes its time.
    "predict": st.integers(-1, 40),
    "min_tokens": st.integers(-1, 40),
}


def _within(setting: Setting) -> st.SearchStrategy[Any]:
    """What the table allows for a setting, its ends more often than what is between."""
    if setting.field in _LIKELY:
        return _LIKELY[setting.field]
    if setting.choices:
        return st.sampled_from(setting.choices)
    if setting.kind is int:
        low, high = int(setting.low), int(setting.high)
        return st.one_of(st.sampled_from([low, high]), st.integers(low, min(high, low + 100)), st.integers(low, high))
    if setting.kind is float:
        ends = st.sampled_from([setting.low, setting.high])
        return st.one_of(ends, st.floats(setting.low, setting.high))
    return st.booleans()


# Those that do something only together, each as it is meant to be.
_KITS = [
    *(("dry_multiplier", "dry_sequence_breakers", "dry_penalty_last_n", "dry_allowed_length", "dry_base"),) * 2,
    ("mirostat", "mirostat_lr", "mirostat_ent", "temp"),
    ("xtc_probability", "xtc_threshold", "temp", "samplers"),
    ("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"),
    ("temp", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p"),
    ("samplers", "adaptive_target", "adaptive_decay", "typical_p", "top_n_sigma"),
    ("logit_bias", "ignore_eos", "min_tokens", "predict"),
    ("stop", "seed", "predict", "overflow", "reasoning_budget"),
]
_OF_JOB = {setting.field: setting for setting in SETTINGS if setting.of_job}
_MEANT = st.sampled_from(_KITS).flatmap(
    lambda kit: st.fixed_dictionaries(
        {name: _within(_OF_JOB[name]) for name in kit[:2]},
        optional={name: _within(_OF_JOB[name]) for name in kit[2:]},
    )
)


def _fields(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    each = {name: st.one_of(_LIKELY.get(name, _SCALARS), _LIKELY.get(name, _ANY), _ANY) for name in names}
    some = st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)
    return some.flatmap(lambda chosen: st.fixed_dictionaries({name: each[name] for name in chosen}))


_SETTINGS = st.one_of(_MEANT, _MEANT, _MEANT, _fields(list(_OF_JOB)))
_TASK = st.one_of(
    _fields(list(Task.__dataclass_fields__)),
    # Those that may stand together.
    st.fixed_dictionaries({}, optional={name: _LIKELY[name] for name in ("messages", "role", "template_kwargs")}),
    st.sampled_from(["choices", "grammar", "json_schema"]).flatmap(
        lambda name: st.fixed_dictionaries({name: _LIKELY[name]})
    ),
    st.fixed_dictionaries({"kind": st.just("embed")}),
)
_ABOUT = st.fixed_dictionaries(
    {},
    optional={
        "settings": st.one_of(_SETTINGS, _SETTINGS, _SETTINGS, _ANY),
        "task": st.one_of(_TASK, _TASK, _TASK, _ANY),
        "tags": st.one_of(st.lists(_TEXTS, max_size=40), _ANY),
        "priority": _ANY,
        "key": _ANY,
        "timeout": _ANY,
        "batch": _ANY,
        "queued": _ANY,
        "after": st.one_of(st.lists(_TEXTS, max_size=3), _SCALARS),
        "nonsense": _ANY,
    },
)
_PROMPTS = st.one_of(
    st.just("Name a prime."),
    _TEXTS.map(lambda text: "Repeat: " + text),
    st.integers(0, 400).map(lambda words: "word " * words + "x"),
)
_RAW = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"",
            b"[]",
            b"\xef\xbb\xbf{}",
            b'{"settings": ' + b"[" * 5000,
            b'{"priority": ' + b"9" * 5000 + b"}",
            b"{" * 200000,
        ]
    ),
    st.sampled_from(
        [b'{"timeout": 1e999}', b'{"timeout": NaN}', b'{"a": 1, "a": 2}', b'{"task": {"kind": "answer"', b"\xff"]
    ),
).map(Raw)
_SOUND = st.fixed_dictionaries({"settings": _MEANT}, optional={"task": _TASK})
_JOBS = st.tuples(_PROMPTS, st.one_of(_ABOUT, _ABOUT, _SOUND, _SOUND, _SOUND, _RAW))


def put(workspace: Workspace, name: str, prompt: str, about: dict[str, Any] | Raw) -> None:
    """A job made by hand, there at once."""
    staging = Path(workspace.input) / f".{name}"
    staging.mkdir()
    (staging / "prompt.txt").write_bytes(prompt.encode("utf-8", "surrogatepass"))
    data = about.content if isinstance(about, Raw) else _as_json(about)
    (staging / "job.json").write_bytes(data)
    staging.rename(Path(workspace.input) / name)


def _as_json(about: dict[str, Any]) -> bytes:
    # Nested deeper than json can write it, it is written here.
    try:
        return json.dumps(about).encode()
    except RecursionError:
        return b'{"task": {"template_kwargs": ' + b'{"a":' * 1500 + b"1" + b"}" * 1500 + b"}}"


@pytest.fixture(scope="module")
def served_by(
    model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DaemonProcess, Workspace]]:
    folder = tmp_path_factory.mktemp("hostile")
    daemon = DaemonProcess(model_file, folder / "workspace", OPTIONS, folder / "daemon.log")
    daemon.wait_ready()
    yield daemon, Workspace(folder / "workspace")
    daemon.kill()


def test_what_is_nested_deep_fails_its_own_job_and_what_is_not_so_deep_is_answered(
    served_by: tuple[DaemonProcess, Workspace],
) -> None:
    daemon, workspace = served_by
    engine = daemon.engine_pid()
    depths = (100, 101, 120, 500, 850, 900, 950, 990, 1500, 100_000)
    for depth in depths:
        variables = b'{"a":' * depth + b"1" + b"}" * depth
        put(workspace, f"deep-{depth}", "Say hi.", Raw(b'{"task": {"template_kwargs": ' + variables + b"}}"))
    jobs = [workspace.find(f"deep-{depth}") for depth in depths]
    until(lambda: all(workspace.find(job.id).is_finished for job in jobs), "the end of all jobs", _PATIENCE_S)
    assert daemon.engine_pids() == [engine], daemon.log[-3000:]
    answered, *failed = [workspace.find(job.id) for job in jobs]
    receipt = workspace.receipt(answered)
    assert answered.state is JobState.DONE
    assert receipt and receipt.task and list(receipt.task) == ["template_kwargs"]
    for job in failed:
        assert job.state is JobState.FAILED
        assert "is nested more than 100 deep: make it flatter" in workspace.answer(job)


@pytest.mark.slow
def test_no_job_whatever_it_holds_keeps_a_good_one_from_its_answer_or_ends_the_engine(
    served_by: tuple[DaemonProcess, Workspace], rounds: Callable[..., int]
) -> None:
    daemon, workspace = served_by
    engine = daemon.engine_pid()
    count = 0
    ends = dict.fromkeys((JobState.DONE, JobState.FAILED), 0)

    @settings(
        max_examples=rounds(quick=4, ci=24, long=100),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=os.environ.get("CI") == "true",
        database=None,
    )
    @given(st.lists(_JOBS, min_size=_BATCH, max_size=_BATCH))
    def hold(jobs: list[tuple[str, dict[str, Any] | Raw]]) -> None:
        nonlocal count
        good, bad = [], []
        for prompt, about in jobs:
            count += 1
            bad.append(f"job-{count:06d}")
            put(workspace, bad[-1], prompt, about)
            if count % 5 == 0:
                good.append(workspace.submit(f"Name the number {count}."))
        names = [*good, *bad]
        until(
            lambda: (
                daemon.process.poll() is not None
                or daemon.engine_pids() != [engine]
                or all(workspace.find(name).is_finished for name in names)
            ),
            "the end of all jobs",
            _PATIENCE_S,
        )
        assert daemon.engine_pids() == [engine], daemon.log[-3000:]
        assert {workspace.find(name).state for name in good} == {JobState.DONE}
        for name in names:
            job = workspace.find(name)
            ends[job.state] += 1
            # What was filed can be read, too.
            receipt = workspace.receipt(job)
            assert receipt is not None, name
            assert workspace.answer(job) is not None
            assert (receipt.error is None) == (job.state is JobState.DONE)

    hold()
    surprises = [line for line in daemon.log.splitlines() if "nobody foresaw" in line]
    assert not surprises, surprises[:20]
    # Both kinds were there in earnest.
    assert min(ends.values()) > count // 10
    print(f"\n{count} hostile jobs: {ends[JobState.DONE]} done with the good ones, {ends[JobState.FAILED]} refused")

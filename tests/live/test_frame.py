"""The live view's lines, drawn from snapshots without a terminal or a workspace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.columns import columns_of
from nrvna.live.frame import (
    BLOCKS,
    LETTERS,
    Failure,
    Running,
    Server,
    Snapshot,
    duration,
    frame,
    sentence,
    text_of,
)

ID = "20261122-130405-123456-7f3a2"
SERVER = Server("SmolLM2", ready=True)
BUSY = Snapshot(
    "~/work",
    done=5,
    failed=1,
    unfinished=6,
    running=(
        Running(f"{ID}a", 75.0, 1234, "and that is why\ntrees are balanced"),
        Running(f"{ID}b", 3.4, 7, "東京は日本の首都であり、世界最大の都市圏です。"),
    ),
    failures=(Failure(f"{ID}c", "the prompt has 5000 tokens, and 4096 are allowed"),),
    servers=(SERVER,),
    elapsed_s=20,
    tokens=900,
    tokens_per_s=112.4,
    left_s=14.2,
)
texts = st.text(st.one_of(st.sampled_from("ab 東京\u0301\u200d\ufe0f👨🦀🇯\x1b\x9b\n\t\u202e\udcff"), st.characters()))
ids = st.one_of(st.just(f"{ID}a"), texts.filter(bool))
times = st.floats(0, 1e9)
snapshots = st.builds(
    Snapshot,
    path=texts,
    done=st.integers(0, 100_000),
    failed=st.integers(0, 20),
    unfinished=st.integers(0, 100_000),
    running=st.lists(st.builds(Running, ids, times, st.integers(0, 10**7), texts), max_size=30).map(tuple),
    failures=st.lists(st.builds(Failure, ids, texts), max_size=8).map(tuple),
    servers=st.lists(st.builds(Server, texts, st.booleans()), max_size=3).map(tuple),
    elapsed_s=times,
    tokens=st.integers(0, 10**9),
    tokens_per_s=st.none() | st.floats(0, 1e6),
    left_s=st.none() | times,
    is_over=st.booleans(),
)


def drawn(snapshot: Snapshot, width: int, height: int = 24) -> list[str]:
    return [text_of(line) for line in frame(snapshot, width, height)]


@given(snapshots, st.integers(1, 200), st.integers(1, 60), st.sampled_from([BLOCKS, LETTERS, "ascii", "latin-1"]))
def test_a_frame_stays_within_its_window(snapshot: Snapshot, width: int, height: int, marks: object) -> None:
    used = LETTERS._replace(encoding=marks) if isinstance(marks, str) else marks
    lines = [text_of(line) for line in frame(snapshot, width, height, used)]  # type: ignore[arg-type]
    assert 0 < len(lines) <= height
    assert max(map(columns_of, lines)) <= width
    # Nothing in it steers a terminal, and nothing is beyond what it can show.
    assert all(char.isprintable() or ord(char) > 160 for line in lines for char in line)
    for line in lines:
        line.encode(used.encoding)  # type: ignore[attr-defined]


@given(snapshots)
def test_a_sentence_is_one_line(snapshot: Snapshot) -> None:
    assert len(sentence(snapshot._replace(path="~/work")).splitlines()) == 1


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(40, 120))
def test_a_bar_is_full_when_all_is_finished_and_not_before(done: int, failed: int, left: int, width: int) -> None:
    if not done + failed + left:
        return
    [bar, *_] = drawn(Snapshot("w", done=done, failed=failed, unfinished=left, servers=(SERVER,)), width, 5)
    assert ("░" in bar) == (left > 0)
    assert ("▒" in bar) == (failed > 0)


def test_a_frame_at_80_columns() -> None:
    assert drawn(BUSY, 79) == [
        "~/work, served by SmolLM2",
        f"{'█' * 25}{'▒' * 5}{'░' * 30}  6/12, 1 failed",
        "112 tokens/s, about 14 s left, 2 running, 4 waiting",
        f"{ID}a  75 s  1,234 tokens  …t is why trees are balanced",
        f"{ID}b   3 s      7 tokens  …り、世界最大の都市圏です。",
        f"failed  {ID}c  the prompt has 5000 tokens, and 4096 ar…",
    ]


def test_a_narrow_frame_keeps_the_ends_of_ids_and_some_words() -> None:
    assert drawn(BUSY, 29) == [
        "~/work, served by SmolLM2",
        f"{'█' * 5}▒{'░' * 7}  6/12, 1 failed",
        "112 tokens/s, about 14 s left",
        "7f3a2a  1234  …s are balanced",
        "7f3a2b     7  …の都市圏です。",
        "failed  7f3a2c  the prompt h…",
    ]


def test_a_low_window_shows_what_is_needed_most() -> None:
    assert drawn(BUSY, 19, 5) == [
        "6/12, 1 failed",
        "112 tokens/s",
        "7f3a2a  …e balanced",
        "7f3a2b  …市圏です。",
        "7f3a2c  the prompt…",
    ]


@pytest.mark.parametrize("height", [3, 24])
def test_who_has_no_daemon_learns_how_to_start_one(height: int) -> None:
    [line, *_] = drawn(BUSY._replace(servers=()), 79, height)
    assert line == "no daemon answers these jobs, start one: nrvnad MODEL ~/work"


def test_daemons_are_told_by_their_models() -> None:
    loading = Server("other", ready=False)
    assert drawn(BUSY._replace(servers=(SERVER, loading, SERVER)), 79)[0].endswith("by SmolLM2 (2 daemons), other")
    assert drawn(BUSY._replace(servers=(loading,)), 79)[0] == "~/work, served by other (being loaded)"


def test_what_cannot_be_told_yet_is_not_told() -> None:
    assert drawn(BUSY._replace(tokens_per_s=None, left_s=None), 79)[2] == "2 running, 4 waiting"


def test_more_jobs_than_lines_are_counted() -> None:
    many = tuple(Running(f"{number}", 1.0, 1, "words") for number in range(30))
    lines = drawn(BUSY._replace(running=many, unfinished=30), 79, 10)
    assert len(lines) == 10
    assert lines[-2] == "and 25 more"


def test_the_last_frame_sums_up() -> None:
    over = BUSY._replace(unfinished=0, running=(), is_over=True, failed=0, failures=())
    assert drawn(over, 79)[1:] == [f"{'█' * 60}  5/5", "all finished in 20 s, 900 tokens, 45 tokens/s"]


def test_where_nothing_is_unfinished_there_is_nothing_to_wait_for() -> None:
    over = Snapshot("~/work", is_over=True)
    assert drawn(over, 79) == ["nothing to wait for: every job is finished"] == [sentence(over)]


def test_a_terminal_without_unicode_gets_letters() -> None:
    lines = [text_of(line) for line in frame(BUSY, 79, 24, LETTERS._replace(encoding="ascii"))]
    assert lines[1] == f"{'#' * 25}{'x' * 5}{'.' * 30}  6/12, 1 failed"
    assert lines[4].endswith("...2\\u570f\\u3067\\u3059\\u3002")


def test_colours_are_for_the_bar_and_for_failures() -> None:
    coloured = [(span.text, span.colour) for line in frame(BUSY, 79, 24) for span in line if span.colour]
    assert coloured == [("█" * 25, "good"), ("▒" * 5, "bad"), (", 1 failed", "bad"), ("failed  ", "bad")]


def test_a_log_is_told_in_sentences() -> None:
    assert sentence(BUSY) == "6 of 12 finished, 1 failed, 112 tokens/s, about 14 s left"
    waiting = BUSY._replace(servers=(), tokens_per_s=None, left_s=None)
    assert sentence(waiting).endswith("1 failed, no daemon answers them: nrvnad MODEL ~/work")
    over = BUSY._replace(unfinished=0, running=(), is_over=True)
    assert sentence(over) == f"6 of 6 finished in 20 s, 1 failed, 900 tokens, 45 tokens/s; failed: {ID}c"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (7000, "2 h"), (1e6, "12 d")]
)
def test_a_time_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text

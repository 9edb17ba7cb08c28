"""Threads that do tasks in their order, unless one of them takes long."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest
from processes import PATIENCE_S, until

from nrvna.engine.lanes import Lanes


def test_tasks_are_done_one_after_the_other_in_their_order() -> None:
    lanes = Lanes(4, patience_s=60)
    done: list[int] = []
    at_once: list[int] = []
    busy = threading.Semaphore(1)

    def task(number: int) -> None:
        if not busy.acquire(blocking=False):
            at_once.append(number)
        time.sleep(0.0005)
        done.append(number)
        busy.release()

    for number in range(200):
        lanes.add(lambda number=number: task(number))  # type: ignore[misc]
    until(lambda: lanes.is_idle, "the last task")
    assert done == list(range(200))
    assert at_once == []


def test_a_task_that_takes_long_is_passed_by_all_the_others_in_their_order() -> None:
    lanes = Lanes(2, patience_s=0.01)
    done: list[int] = []
    release = threading.Event()
    lanes.add(lambda: release.wait(PATIENCE_S) and done.append(-1))  # type: ignore[func-returns-value, arg-type]
    for number in range(50):
        lanes.add(lambda number=number: done.append(number))  # type: ignore[misc]
    until(lambda: len(done) == 50, "the others")
    assert not lanes.is_idle
    release.set()
    until(lambda: lanes.is_idle, "the slow one")
    assert done == [*range(50), -1]


def test_as_many_slow_tasks_as_there_are_lanes_hold_up_the_rest_and_no_fewer() -> None:
    lanes = Lanes(3, patience_s=0.01)
    release = threading.Event()
    begun: list[int] = []

    def slow(number: int) -> None:
        begun.append(number)
        release.wait(PATIENCE_S)

    for number in range(4):
        lanes.add(lambda number=number: slow(number))  # type: ignore[misc]
    until(lambda: len(begun) == 3, "three slow ones")
    time.sleep(0.1)
    assert begun == [0, 1, 2]
    release.set()
    until(lambda: lanes.is_idle, "the end")
    assert begun == [0, 1, 2, 3]


def test_where_no_more_threads_can_be_started_those_there_are_do_all() -> None:
    lanes = Lanes(4, patience_s=0.01)
    done: list[int] = []
    release = threading.Event()
    usual = threading.stack_size()
    try:
        threading.stack_size(1 << 46)  # More than a process can have, as where memory is short.
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=release.set).start()
        for slow in (True, True, False):
            release.clear()
            if slow:
                lanes.add(lambda: release.wait(PATIENCE_S) and done.append(-1))  # type: ignore[func-returns-value, arg-type]
            lanes.add(lambda: done.append(1))
            until(lambda: done[-1:] == [1], "the task behind a slow one")
            release.set()
            until(lambda: lanes.is_idle, "the slow one")
    finally:
        threading.stack_size(usual)
    assert done == [1, -1, 1, -1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are not nice by themselves here")
def test_a_task_that_takes_long_goes_on_nicely_and_those_after_it_do_not() -> None:
    lanes = Lanes(3, patience_s=0.01)
    found: list[int] = []

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def slow() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while niceness() == usual and time.monotonic() < deadline:
            time.sleep(0.001)
        found.append(niceness())

    usual = niceness()
    for _ in range(2):
        lanes.add(slow)
        until(lambda: lanes.is_idle, "the slow one")
        lanes.add(lambda: found.append(niceness()))
        until(lambda: lanes.is_idle, "the next")
    assert usual >= 19 or found[0] > usual
    assert found == [found[0], usual] * 2

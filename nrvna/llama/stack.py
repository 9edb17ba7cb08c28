"""A call on a stack as deep as it needs, for C++ that recurses once a character."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

# How large the stacks of new threads are is one setting of the whole process.
_starting = threading.Lock()
_PAGE = 4096


def call_on_stack(size: int, function: Callable[[], T]) -> T:
    """Call ``function`` on a thread of its own with a stack of ``size`` bytes, and return what it returns.

    What is not used of the stack takes no memory. Raises what ``function`` raises, and MemoryError if the system
    does not grant such a stack.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="nrvna-stack")
    with _starting:
        former = threading.stack_size(-(-size // _PAGE) * _PAGE)
        try:
            thread.start()
        except RuntimeError as error:
            raise MemoryError(f"no thread with a stack of {size} bytes: {error}") from None
        finally:
            threading.stack_size(former)
    thread.join()
    return outcome.result()

"""One Python object for one C object: freed once, early with ``close`` or a ``with`` block, late by the collector."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import Any, Self

from nrvna.errors import ContextError
from nrvna.llama.library import Library


class Handle:
    """Base of the binding's classes. ``parent`` is what the C object points into, a model for most."""

    def __init__(self, library: Library, pointer: Any, free: Any, parent: Handle | None = None) -> None:
        self._library = library
        self._ffi = library.ffi
        self._lib = library.lib
        # Held by what frees the object, so that the parent is freed later: the collector clears a Python object's
        # attributes in an order of its own.
        kept = parent.pointer if parent else None
        self._pointer: Any = library.ffi.gc(pointer, partial(_free, free, kept))

    @property
    def pointer(self) -> Any:
        """The C pointer. Raises ContextError after :meth:`close`: C would crash the process."""
        if self._pointer is None:
            raise ContextError(f"this {type(self).__name__} was closed already")
        return self._pointer

    @property
    def is_closed(self) -> bool:
        """Whether the C object was freed."""
        return self._pointer is None

    def close(self) -> None:
        """Free the C object now; a second call does nothing."""
        if self._pointer is not None:
            self._ffi.release(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free(free: Any, _kept: Any, pointer: Any) -> None:
    free(pointer)

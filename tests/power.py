"""A disk whose power can be cut after any operation: what may be found on it then, by all that is not promised.

:class:`Recorder` writes down the file operations that some work makes for real. :class:`Disk` plays them back and
tells after each what a crash of the machine may leave. It promises as little as file systems do:

- What a folder holds is on the disk once that folder was synced, a file's content once that file was.
- A rename is whole or not at all, and may be undone until the folder that it led into is synced.
- What was not synced is kept or lost piece by piece, in any combination: the removal of a folder may stay where the
  move of what was in it does not. Content may be whole, cut short, empty or zeros.

It knows of no times, modes or FIFOs.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from nrvna import files

# Relative path to a file's content, or to None for a folder; those above stand before what is in them.
Tree = dict[str, bytes | None]


class Killed(BaseException):
    """The process whose work was recorded is no more."""


class Operation(NamedTuple):
    """``path`` is relative to the disk's root; ``handle`` numbers what was opened."""

    kind: str
    path: str = ""
    target: str = ""
    handle: int = 0
    data: bytes = b""
    size: int = 0


class Recorder:
    """Writes down what happens below a folder, as long as it is installed."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._handles: dict[int, int] = {}
        self._count = 0
        self._is_dead = False
        self.events: list[Any] = []
        # Called after each operation; what it does itself is written down too.
        self.observer: Callable[[], None] | None = None
        # Whether the process dies right after this operation.
        self.dies_after: Callable[[Operation], bool] = lambda _: False

    @property
    def operations(self) -> int:
        return sum(isinstance(event, Operation) for event in self.events)

    @contextmanager
    def installed(self) -> Iterator[None]:
        replaced = [
            *((os, name, self._by_path(name, getattr(os, name))) for name in ("mkdir", "unlink", "rmdir")),
            *((os, name, self._by_descriptor(name, getattr(os, name))) for name in ("fsync", "ftruncate")),
            (os, "open", self._opening(os.open)),
            (os, "close", self._closing(os.close)),
            (os, "rename", self._moving(os.rename)),
            (os, "write", self._writing(os.write)),
            (files, "_rename_exclusively", self._moving(files._rename_exclusively)),
            (files, "_sync_file_system", self._syncing_all(files._sync_file_system)),
        ]
        plain = [(module, name, getattr(module, name)) for module, name, _ in replaced]
        abilities: list[set[Any]] = [os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks]
        before = [set(functions) for functions in abilities]
        for module, name, function in replaced:
            for functions in abilities:
                if getattr(module, name) in functions:
                    # Else shutil would take another way than it does in earnest.
                    functions.add(function)
            setattr(module, name, function)
        try:
            yield
        finally:
            for module, name, function in plain:
                setattr(module, name, function)
            for functions, some in zip(abilities, before, strict=True):
                functions.intersection_update(some)

    def bury(self) -> None:
        """Let go of what the process that was killed held open, its locks above all; another one goes on."""
        for descriptor in list(self._handles):
            # What was closed by a file object may be somebody else's by now.
            with suppress(OSError):
                if _opened(descriptor).startswith(self._root + "/"):
                    os.close(descriptor)
        self._handles.clear()
        self._is_dead = False
        self.dies_after = lambda _: False

    def _note(self, kind: str, path: str = "", **rest: Any) -> None:
        operation = Operation(kind, path, **rest)
        self.events.append(operation)
        if self.dies_after(operation):
            self._is_dead = True
            raise Killed
        if self.observer:
            observer, self.observer = self.observer, None
            observer()
            self.observer = observer

    def _place(self, path: Any, dir_fd: int | None = None) -> str | None:
        if self._is_dead:
            raise Killed
        full = os.fsdecode(path)
        if dir_fd is not None:
            full = f"{_opened(dir_fd)}/{full}"
        return full[len(self._root) + 1 :] if f"{full}/".startswith(self._root + "/") else None

    def _by_path(self, kind: str, plain: Callable[..., None]) -> Callable[..., None]:
        def recorded(path: Any, *arguments: Any, dir_fd: int | None = None, **options: Any) -> None:
            place = self._place(path, dir_fd)
            plain(path, *arguments, dir_fd=dir_fd, **options)
            if place is not None:
                self._note(kind, place)

        return recorded

    def _opening(self, plain: Callable[..., int]) -> Callable[..., int]:
        def recorded(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            place = self._place(path, dir_fd)
            if place is None:
                return plain(path, flags, mode, dir_fd=dir_fd)
            is_new = flags & os.O_CREAT and not os.path.lexists(f"{self._root}/{place}")
            descriptor = plain(path, flags, mode, dir_fd=dir_fd)
            self._count += 1
            self._handles[descriptor] = self._count
            if is_new:
                self._note("create", place)
            elif flags & os.O_TRUNC:
                self._note("truncate", place)
            self.events.append(Operation("open", place, handle=self._count, size=flags & os.O_APPEND))
            return descriptor

        return recorded

    def _closing(self, plain: Callable[[int], None]) -> Callable[[int], None]:
        def recorded(descriptor: int) -> None:
            self._handles.pop(descriptor, None)
            plain(descriptor)

        return recorded

    def _by_descriptor(self, kind: str, plain: Callable[..., None]) -> Callable[..., None]:
        def recorded(descriptor: int, *size: int) -> None:
            if self._is_dead:
                raise Killed
            plain(descriptor, *size)
            if descriptor in self._handles:
                self._note(kind, handle=self._handles[descriptor], size=size[0] if size else 0)

        return recorded

    def _writing(self, plain: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def recorded(descriptor: int, data: Any) -> int:
            if self._is_dead:
                raise Killed
            written = plain(descriptor, data)
            if descriptor in self._handles:
                self._note("write", handle=self._handles[descriptor], data=bytes(data[:written]))
            return written

        return recorded

    def _moving(self, plain: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
        def recorded(origin: str, target: str) -> Any:
            old, new = self._place(origin), self._place(target)
            code = plain(origin, target)
            if old is not None and new is not None and not code:
                self._note("rename", old, target=new)
            return code

        return recorded

    def _syncing_all(self, plain: Callable[[str], bool]) -> Callable[[str], bool]:
        def recorded(path: str) -> bool:
            place = self._place(path)
            done = plain(path)
            if place is not None and done:
                self._note("syncfs")
            return done

        return recorded


def _opened(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


class _Node:
    """A file or a folder: all the places it has had, of which the one at ``safe`` is on the disk."""

    def __init__(self, is_folder: bool) -> None:
        self.is_folder = is_folder
        # (folder, name), or None: it is nowhere, which it is before it is made and after it is removed.
        self.places: list[tuple[_Node, str] | None] = [None]
        self.safe = 0
        # When each place was taken.
        self.arrivals: list[int] = [0]
        self.content = self.saved = b""
        # So many bytes of what was saved were never cut off or written over since.
        self.kept = 0

    @property
    def last(self) -> int:
        return len(self.places) - 1

    def variants(self) -> list[bytes]:
        """Other contents that a crash may leave than what was saved and what was written."""
        head, rest = self.saved[: self.kept], self.content[self.kept :]
        possible = {head, head + rest[: len(rest) // 2], head + bytes(len(rest))}
        return sorted(possible - {self.saved, self.content})


class Disk:
    """A tree of files, as it is and as it may be found."""

    def __init__(self, tree: Tree) -> None:
        self._clock = 0
        self._root = _Node(is_folder=True)
        self._nodes: list[_Node] = []
        self._now: dict[tuple[_Node, str], _Node] = {}
        self._open: dict[int, tuple[_Node, bool]] = {}
        self._positions: dict[int, int] = {}
        # A file went, in its version so and so, because the other one in its version so and so came in its place.
        self._replaced: list[tuple[_Node, int, _Node, int]] = []
        for path, content in tree.items():
            self._make(path, is_folder=content is None)
            self._find(path).content = content or b""
        self._sync_all()

    def apply(self, operation: Operation) -> None:
        self._clock += 1
        kind, path = operation.kind, operation.path
        if kind in ("mkdir", "create"):
            self._make(path, is_folder=kind == "mkdir")
        elif kind in ("unlink", "rmdir"):
            node = self._find(path)
            del self._now[self._place(path)]
            self._put(node, None)
        elif kind == "rename":
            self._rename(path, operation.target)
        elif kind == "open":
            self._open[operation.handle] = self._find(path), bool(operation.size)
            self._positions[operation.handle] = 0
        elif kind == "truncate":
            self._cut(self._find(path), 0)
        elif kind == "ftruncate":
            self._cut(self._open[operation.handle][0], operation.size)
        elif kind == "write":
            self._write(operation.handle, operation.data)
        elif kind == "fsync":
            self._sync(self._open[operation.handle][0])
        else:
            assert kind == "syncfs"
            self._sync_all()

    def outcomes(self, chance: random.Random, subsets: int) -> Iterator[Tree]:
        """What a crash at this moment may leave: nothing more, everything, all but one thing, one alone, chance's."""
        moved = [node for node in self._nodes if node.safe < node.last]
        written = [node for node in self._nodes if node.saved != node.content]
        lost: dict[_Node, int] = {node: node.safe for node in moved}
        kept: dict[_Node, int] = {node: node.last for node in moved}
        old, new = {node: node.saved for node in written}, {node: node.content for node in written}
        yield self._tree(lost, old)
        yield self._tree(kept, new)
        for node in moved:
            yield self._tree({**lost, node: node.last}, old)
            for version in range(node.safe, node.last):
                yield self._tree({**kept, node: version}, new)
        for node in written:
            yield self._tree(lost, {**old, node: node.content})
            yield self._tree(kept, {**new, node: node.saved})
            for variant in node.variants():
                yield self._tree(kept, {**new, node: variant})
        for _ in range(subsets if len(moved) + len(written) > 1 else 0):
            places = {node: chance.randint(node.safe, node.last) for node in moved}
            contents = {node: chance.choice([node.saved, node.content, *node.variants()]) for node in written}
            yield self._tree(places, contents)

    def _tree(self, places: dict[_Node, int], contents: dict[_Node, bytes]) -> Tree:
        versions = {node: places.get(node, node.last) for node in self._nodes}
        inside = self._settle(versions)
        tree: Tree = {}
        waiting = [("", self._root)]
        while waiting:
            path, folder = waiting.pop()
            for name, node in sorted(inside.get(folder, {}).items()):
                below = f"{path}/{name}" if path else name
                tree[below] = None if node.is_folder else contents.get(node, node.content)
                if node.is_folder:
                    waiting.append((below, node))
        return tree

    def _settle(self, versions: dict[_Node, int]) -> dict[_Node, dict[str, _Node]]:
        """Who is where; what excludes each other in one place, or is one change, is made up its mind about."""
        while True:
            for gone, left, came, arrived in self._replaced:
                if versions[gone] >= left:
                    versions[came] = max(versions[came], arrived)
            inside: dict[_Node, dict[str, _Node]] = {}
            settled = True
            for node in self._nodes:
                place = node.places[versions[node]]
                if place is None:
                    continue
                other = inside.setdefault(place[0], {}).setdefault(place[1], node)
                if other is not node:
                    earlier = min(node, other, key=lambda one: one.arrivals[versions[one]])
                    versions[earlier] += 1
                    settled = False
                    break
            if settled:
                return inside

    def _find(self, path: str) -> _Node:
        node = self._root
        for name in path.split("/") if path else ():
            node = self._now[node, name]
        return node

    def _place(self, path: str) -> tuple[_Node, str]:
        above, _, name = path.rpartition("/")
        return self._find(above), name

    def _put(self, node: _Node, place: tuple[_Node, str] | None) -> None:
        node.places.append(place)
        node.arrivals.append(self._clock)

    def _make(self, path: str, *, is_folder: bool) -> None:
        node = _Node(is_folder)
        self._nodes.append(node)
        place = self._place(path)
        self._now[place] = node
        self._put(node, place)

    def _rename(self, path: str, target: str) -> None:
        node = self._find(path)
        place = self._place(target)
        replaced = self._now.get(place)
        del self._now[self._place(path)]
        self._now[place] = node
        self._put(node, place)
        if replaced:
            self._put(replaced, None)
            self._replaced.append((replaced, replaced.last, node, node.last))

    def _cut(self, node: _Node, size: int) -> None:
        node.content = node.content[:size]
        node.kept = min(node.kept, size)

    def _write(self, handle: int, data: bytes) -> None:
        node, at_end = self._open[handle]
        start = len(node.content) if at_end else self._positions[handle]
        node.content = node.content[:start] + data + node.content[start + len(data) :]
        node.kept = min(node.kept, start)
        self._positions[handle] = start + len(data)

    def _sync(self, node: _Node) -> None:
        node.saved, node.kept = node.content, len(node.content)
        for other in self._nodes:
            for version in range(other.last, other.safe, -1):
                # What was moved out is safe once the folder is that it was moved into, what was removed is so here.
                place = other.places[version] or other.places[version - 1]
                if place and place[0] is node:
                    other.safe = version
                    break

    def _sync_all(self) -> None:
        for node in self._nodes:
            node.saved, node.kept, node.safe = node.content, len(node.content), node.last


def read_tree(root: Path) -> Tree:
    """What is in a folder, but for what is neither file nor folder."""
    tree: Tree = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir():
            tree[name] = None
        elif path.is_file():
            tree[name] = path.read_bytes()
    return tree


def write_tree(root: Path, tree: Tree) -> None:
    """Make a folder with that in it, all of it as old as can be."""
    root.mkdir()
    for path, content in tree.items():
        if content is None:
            (root / path).mkdir(0o700)
        else:
            (root / path).write_bytes(content)
    for path in reversed(tree):
        os.utime(root / path, (0, 0))


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for what is made and read a thousand times."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="nrvna-") as folder:
        yield Path(folder)

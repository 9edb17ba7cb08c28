"""A process that has everything imported and forks daemons and tools in a few ms, so that thousands can be killed.

The daemons are the real ones in all but their engine, which is toy_engine.py. Everything that is forked gets its
standard streams from the test, and is waited for by it: a process that was killed stays a zombie until then, so that
its number is nobody else's.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nrvna.files import folders_in
from nrvna.workspace import Workspace

PATIENCE_S = 60.0
TOY = Path(__file__).with_name("toy_engine.py")
# Names the engines of one test run among all processes.
_TAG = "--tag"


class Child:
    """A forked process."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote = zygote
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code once it ended, negative for a signal."""
        if self.code is None:
            self.code = self._zygote.ask({"reap": self.pid})
        return self.code

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        deadline = time.monotonic() + patience_s
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for the end of process {self.pid}"
            time.sleep(0.002)
        return code

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without a chance to clean up, and wait for that."""
        self.signal(signal.SIGKILL)
        self.wait()

    def children(self) -> list[int]:
        """A daemon's engine, while there is one."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []


class ToyDaemon:
    """A forked daemon with its log in a file."""

    def __init__(self, child: Child, log: Path) -> None:
        self.child = child
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_log(self, text: str, patience_s: float = 20.0) -> None:
        deadline = time.monotonic() + patience_s
        while text not in self.log:
            assert self.child.poll() is None or text in self.log, f"the daemon ended: {self.log}"
            assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {text!r} in: {self.log}"
            time.sleep(0.01)


StartToy = Callable[..., ToyDaemon]


class Zygote:
    """Forks on demand. What it forked dies with it, and it dies with the test."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno()), tag]
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
        )
        theirs.close()

    def ask(self, request: dict[str, Any], descriptors: list[int] | None = None) -> Any:
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors or [])
        return json.loads(self._socket.recv(1 << 16))

    def fork(self, function: str, *arguments: Any, out: int | None = None, err: int | None = None) -> Child:
        """Call ``module:function`` in a process of its own; what it returns is the exit code."""
        with open(os.devnull, "r+b") as null:  # noqa: PTH123 - of a descriptor's life only
            streams = [null.fileno() if stream is None else stream for stream in (out, err)]
            return Child(self, self.ask({"call": function, "arguments": arguments}, streams))

    def daemon(
        self, workspace: str, model: Path, log: Path, *options: str, pace: dict[str, float] | None = None
    ) -> Child:
        """``nrvnad`` with the toy engine.

        ``pace`` sets the daemon module's constants, ``step_s`` of its engine and ``restart_s`` until the next one,
        and ``max_unended``, how often a job may go down with its daemon.
        """
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            arguments = [[*options, str(model), workspace], pace or {}]
            return self.fork("zygote:run_daemon", *arguments, out=descriptor, err=descriptor)
        finally:
            os.close(descriptor)

    def engines(self) -> list[int]:
        """The toy engines that live now."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"{_TAG}\0{self.tag}\0".encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        self._socket.close()
        self._process.wait(PATIENCE_S)


def jobs_claimed_by(workspace: Workspace, daemon: Child) -> set[str]:
    """What is in the daemon's folder, which may vanish meanwhile."""
    folders = [folder for folder in workspace.daemon_folders() if f"-{daemon.pid}-" in folder]
    return {name for folder in folders for name in folders_in(folder)}


def use_toy_engine(step_s: float = 0.001) -> None:
    """From here on this process's daemons have toy engines."""
    from nrvna.engine import process

    options = ["--step", str(step_s), "--parent", str(os.getpid()), _TAG, os.environ["TOY_TAG"]]
    process.COMMAND = (sys.executable, "-I", "-S", str(TOY), *options)


def run_daemon(argv: list[str], pace: dict[str, float]) -> int:
    from nrvna import daemon, dispatch, lease, replica, serving

    restart_s = pace.pop("restart_s", None)
    lease.MAX_UNENDED = int(pace.pop("max_unended", lease.MAX_UNENDED))
    use_toy_engine(pace.pop("step_s", 0.001))
    for name, value in pace.items():
        setattr(next(module for module in (serving, dispatch) if hasattr(module, name)), name, value)
    if restart_s is not None:

        def restart_soon(self: replica.Replica) -> None:
            self._restart_at = time.monotonic() + restart_s

        replica.Replica.restart_later = restart_soon  # type: ignore[method-assign]
    return daemon.main(argv)


def run_tool(name: str, argv: list[str]) -> int:
    """``wrk`` or ``flw``."""
    code: int = importlib.import_module(f"nrvna.{name}").main(argv)
    return code


def _call(function: str, arguments: list[Any], streams: list[int]) -> None:
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for place, stream in enumerate(streams, 1):
            os.dup2(stream, place)
            os.close(stream)
        # Those of this process were made for other files: what can be asked of a pipe is something else.
        sys.stdout, sys.stderr = (os.fdopen(place, "w", closefd=False) for place in (1, 2))
        module, _, name = function.partition(":")
        code = getattr(sys.modules["__main__"] if module == "zygote" else importlib.import_module(module), name)(
            *arguments
        )
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for file in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                file.flush()
        os._exit(code or 0)


def main(argv: list[str]) -> None:
    channel = socket.socket(fileno=int(argv[0]))
    os.environ["TOY_TAG"] = argv[1]
    # All that a daemon or a tool imports sooner or later.
    for module in ("nrvna.daemon", "nrvna.wrk", "nrvna.flw", "ctypes", "shutil", "hashlib", "heapq", "failpoints"):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    living: set[int] = set()
    while True:
        data, streams, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        if not data:
            break
        request = json.loads(data)
        answer: int | None
        if "call" in request:
            answer = os.fork()
            if not answer:
                channel.close()
                _call(request["call"], request["arguments"], streams)
            living.add(answer)
        else:
            pid, status = os.waitpid(request["reap"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            living.discard(pid)
        for stream in streams:
            os.close(stream)
        channel.send(json.dumps(answer).encode())
    for pid in living:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])

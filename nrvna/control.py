"""Daemons from the outside: start one that goes on by itself, see how they are doing, end them.

Exit codes of ``--status`` follow the Linux Standard Base: 0 a daemon is ready, 3 none runs, 4 it is not ready yet.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from nrvna.config import Config, Setting
from nrvna.environment import daemon_environment
from nrvna.errors import UnsafeWorkspaceError, WorkspaceError
from nrvna.files import folders_in
from nrvna.terminal import abandon_stdout, printable
from nrvna.workspace import Peer, Workspace, holds_lock, living

DONE, FAILED, USAGE, NOT_RUNNING, LOADING, INTERRUPTED = 0, 1, 2, 3, 4, 130

# -P: modules of the user's current folder are not the daemon's.
COMMAND = (sys.executable, "-P", "-m", "nrvna.daemon")
_END_PATIENCE_S = 15.0
_SAY_WAITING_AFTER_S = 2.0
_LOOK_EVERY_S = 0.05
# Its engine is given this time before it is killed, and the daemon some more.
_HALF_STARTED_PATIENCE_S = 5.0


def daemonize(model: Path, workspace: Workspace, config: Config, given: Mapping[Setting, str | None]) -> int:
    """Start a daemon in a session of its own; returns the exit code once it is ready, or has ended.

    ``given`` are the options of this call, which become that daemon's. The start-up page goes to standard output, and
    how loading goes to a terminal.
    """
    log_file = config.log_file or workspace.log_file
    try:
        workspace.create()
        os.close(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except WorkspaceError as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"nrvnad: cannot write to the log file {log_file}: {error.strerror}", file=sys.stderr)
        return USAGE
    arguments = [
        setting.daemon_option if setting.is_flag else f"{setting.daemon_option}={text}"
        for setting, text in given.items()
        if text is not None and setting.field != "log_file"
    ]
    # Absolute, so that whoever lists the processes sees which this is.
    paths = [str(Path(path).absolute()) for path in (log_file, model, workspace.path)]
    return _start([*arguments, f"--log-file={paths[0]}", *paths[1:]], model.name, log_file)


def _start(arguments: list[str], name: str, log_file: str) -> int:
    listening, telling = os.pipe()
    with open(log_file, "ab") as log:
        daemon = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[telling],
            env=daemon_environment(telling),
            start_new_session=True,
        )
    os.close(telling)
    try:
        with _interruptible(), os.fdopen(listening, "rb") as news:
            last = _last_word(news, name)
            if "ready" in last:
                return _print_page(last["ready"])
            end = _end_of(daemon)
    except KeyboardInterrupt:
        _end(daemon)
        print("nrvnad: stopped before it was ready", file=sys.stderr)
        return INTERRUPTED
    print(f"nrvnad: {last.get('failed') or f'the daemon ended with {end}; its log is {log_file}'}", file=sys.stderr)
    return FAILED


@contextmanager
def _interruptible() -> Iterator[None]:
    """Whatever asks this process to end does as Ctrl-C does: the daemon must not be left half-started."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_word(news: Any, name: str) -> dict[str, Any]:
    """What a daemon that starts says in the end (see service.Starter); empty if it died without a word."""
    shows = sys.stderr.isatty()
    message: dict[str, Any] = {}
    try:
        for line in news:
            message = json.loads(line)
            if "loading" not in message:
                return message
            if shows:
                done = message["loading"]
                state = f"loading {name}: {100 * done:.0f} %" if done < 1 else f"loaded {name}, trying it out"
                print(f"\r\x1b[K{printable(state)}", end="", file=sys.stderr, flush=True)
        return {}
    finally:
        if shows and message:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _print_page(page: str) -> int:
    try:
        print(page, flush=True)
    except OSError as error:
        abandon_stdout()
        print(f"nrvnad: the daemon is ready, but standard output failed: {error.strerror}", file=sys.stderr)
        return FAILED
    return DONE


def _end_of(daemon: subprocess.Popen[bytes]) -> str:
    code = daemon.wait()
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(_HALF_STARTED_PATIENCE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        daemon.kill()
        daemon.wait()


def status(workspace: Workspace) -> int:
    """Print how each daemon of the workspace is doing, and its jobs; returns the exit code. Raises WorkspaceError."""
    peers = _peers(workspace)
    counts = workspace.counts()
    for peer in peers:
        print(_row(peer), *_engines(peer), sep="\n")
    if not peers:
        print(f"no daemon serves {workspace.path}")
    print("jobs         " + ", ".join(f"{number} {state}" for state, number in counts._asdict().items()))
    if not peers:
        return NOT_RUNNING
    return DONE if any(peer.ready for peer in peers) else LOADING


def _row(peer: Peer) -> str:
    said = f"process {peer.pid:<6}{'ready' if peer.ready else 'loading'}"
    with suppress(ValueError, OverflowError):
        since = datetime.fromisoformat(peer.since).astimezone()
        said += f" since {since:%Y-%m-%d %H:%M:%S}"
    if peer.ready:
        said += f", {sum(1 for _ in folders_in(peer.folder))} jobs at hand"
        if parallel := peer.about.get("parallel"):
            said += f", {parallel} at a time"
    if not holds_lock(peer):
        said += f", on {peer.host or 'another machine'} or in a container"
    said += f": {peer.model.get('path')}{', named' if peer.named else ''}"
    return printable(said).replace("\n", " ")


def _engines(peer: Peer) -> Iterator[str]:
    """A row for each of its engines, where it has several and told of them, and for one that does not run."""
    if trouble := peer.about.get("trouble"):
        yield printable(f"  {trouble}").replace("\n", " ")
    told = peer.about.get("replicas")
    for one in told if isinstance(told, list) else ():
        if isinstance(one, dict):
            how = f"ready, {one.get('parallel')} at a time" if one.get("ready") else one.get("trouble") or "loading"
            yield printable(f"  [{one.get('name')}] {how}").replace("\n", " ")


def stop(workspace: Workspace) -> int:
    """Ask every daemon of the workspace to end, and wait for it; returns the exit code. Raises WorkspaceError.

    That none runs is what was wanted.
    """
    peers = _peers(workspace)
    if not peers:
        print(f"nrvnad: no daemon serves {workspace.path}", file=sys.stderr)
        return DONE
    ended = [_Ending(peer) for peer in peers]
    started, said = time.monotonic(), False
    while waiting := [each for each in ended if each.was_asked and not each.is_over]:
        passed = time.monotonic() - started
        if passed > _END_PATIENCE_S:
            break
        if passed > _SAY_WAITING_AFTER_S and not said:
            said = True
            who = " and ".join(str(each.peer.pid) for each in waiting)
            print(f"nrvnad: waiting for process {who} to hand its jobs back", file=sys.stderr)
        time.sleep(_LOOK_EVERY_S)
    for each in ended:
        if each.is_over:
            print(f"stopped process {each.peer.pid}, {printable(str(each.peer.model.get('path')))}")
        else:
            print(f"nrvnad: {each.trouble}", file=sys.stderr)
    return DONE if all(each.is_over for each in ended) else FAILED


class _Ending:
    """A daemon that is asked to end. It is, if it is the process that the workspace says it is."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.was_asked = False
        self.trouble = (
            f"process {peer.pid} has not ended within {_END_PATIENCE_S:.0f} s: `kill -9 {peer.pid}` loses no job"
        )
        # A handle, as the number may be another process's soon; some systems have none.
        self._handle: int | None = None
        try:
            if hasattr(os, "pidfd_open"):
                self._handle = os.pidfd_open(peer.pid)
            if not holds_lock(peer):
                if living(peer.folder):
                    where = peer.host or "another machine"
                    self.trouble = f"process {peer.pid} runs on {where}, or in a container: stop it from there"
                return
            if self._handle is None:
                os.kill(peer.pid, signal.SIGTERM)
            else:
                signal.pidfd_send_signal(self._handle, signal.SIGTERM)
            self.was_asked = True
        except ProcessLookupError:
            # In another container, or it has just ended.
            self.trouble = (
                f"process {peer.pid} is none that this container can see: stop it from where it was started"
            )
        except PermissionError:
            self.trouble = f"process {peer.pid} is another user's, who must stop it"

    @property
    def is_over(self) -> bool:
        if living(self.peer.folder):
            return False
        return self._handle is None or bool(select.select([self._handle], (), (), 0)[0])


def _peers(workspace: Workspace) -> list[Peer]:
    # Whoever may write to it, its daemons can be seen and stopped.
    with suppress(UnsafeWorkspaceError):
        workspace.check()
    return sorted(workspace.peers(), key=lambda peer: (peer.since, peer.pid))

"""What a process needs that runs unattended: signals that ask, not interrupt, a log file, a word to its starter.

That is systemd, or a ``nrvnad --daemonize`` that waits for it to be ready. The first process of a container also has
to bury the others.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from nrvna.environment import notify_socket, starter_descriptor


class Signals:
    """SIGTERM and SIGINT ask for an orderly end; a second one ends the process at once, which is safe too.

    SIGHUP asks for the same where it tells of a closed terminal, and else that the log be opened again.
    ``descriptor`` becomes readable when one came.
    """

    def __init__(self, *, has_log_file: bool) -> None:
        self.descriptor, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self.descriptor, False)
        self.stop = False
        self.reopen = False
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        on_hangup = self._on_reopen if has_log_file or not _has_terminal() else self._on_stop
        wanted = {signal.SIGTERM: self._on_stop, signal.SIGINT: self._on_stop, signal.SIGHUP: on_hangup}
        for number, handler in wanted.items():
            # nohup and a shell's background jobs have asked that some be ignored.
            if signal.getsignal(number) is not signal.SIG_IGN or handler == self._on_reopen:
                signal.signal(number, handler)

    def drain(self) -> None:
        """Forget what made :attr:`descriptor` readable."""
        with suppress(BlockingIOError):
            os.read(self.descriptor, 1024)

    def _on_stop(self, *_: object) -> None:
        if self.stop:
            os._exit(1)
        self.stop = True

    def _on_reopen(self, *_: object) -> None:
        self.reopen = True


def log_to(path: str) -> None:
    """From here on everything that goes to standard error goes to the end of this file. Raises OSError."""
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def reap_orphans(own: Collection[int]) -> None:
    """Take notice of the ends of processes that became this one's when their parents died.

    The first of a container gets them. Of its ``own`` children, by their numbers, whoever started them will ask.
    """
    if not hasattr(os, "waitid"):
        return
    with suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in own:
                # It hides what ended after it, until it is asked for: soon.
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def notify(state: str) -> None:
    """Tell systemd how the service is doing, as sd_notify does; without it nobody listens, and nothing is done."""
    address = notify_socket()
    if not address:
        return
    # Imported here: few are started by systemd.
    import socket

    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), address)


class Starter:
    """The ``nrvnad --daemonize`` that started this process and waits to hear how that goes, if there is one.

    It is told JSON objects, one a line: ``{"loading": 0.4}``, then ``{"ready": "..."}`` with the start-up page, or
    ``{"failed": "..."}`` with the reason. After either, it waits no more.
    """

    def __init__(self) -> None:
        self._descriptor = starter_descriptor()
        if self._descriptor is not None:
            try:
                is_pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
                os.set_inheritable(self._descriptor, False)
                # It may be stopped, and is then not waited for.
                os.set_blocking(self._descriptor, False)
            except OSError:
                is_pipe = False
            if not is_pipe:
                self._descriptor = None

    def tell(self, message: dict[str, Any]) -> None:
        """Nothing happens where nobody waits, or waits any more."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        if "loading" not in message:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True

"""What a daemon says once it is ready: in a few lines, what runs where with which settings, and how to use it."""

from __future__ import annotations

import shlex
from typing import Any

from nrvna.config import Config, changed
from nrvna.engine.protocol import Ready
from nrvna.terminal import printable
from nrvna.workspace import Peer


def start_page(
    about: Ready,
    model: dict[str, Any],
    config: Config,
    workspace: str,
    *,
    queued: int,
    peers: list[Peer],
    has_terminal: bool,
    engine: str = "",
) -> list[str]:
    """Five lines, six where a GPU computes. ``model`` is the file's fingerprint, ``queued`` the number of jobs that
    wait, ``peers`` are the other daemons of the workspace; one that ``has_terminal`` is stopped from there.
    ``engine`` says which this is ``about``, where there are several."""
    rows = {
        "model": f"{about.description}: {model['path']} ({_size(model['size'])})",
        "runs on": f"{about.device or 'unknown'} ({about.backend}), {counted(about.threads, 'thread')}; "
        f"{counted(about.parallel, 'job')} at a time, {about.context} tokens each{engine and f'; {engine}'}",
        **({"offloaded": offloaded(about)} if about.offloaded else {}),
        "workspace": f"{workspace}: {_waiting(queued)}{_beside(peers)}",
        "settings": _settings(config),
        "use it": _use(about, model, config, workspace, has_terminal=has_terminal),
    }
    return [printable(f"{name:<9}  {text}").replace("\n", " ") for name, text in rows.items()]


def offloaded(about: Ready) -> str:
    """How much of the model is on which GPU, and the memory that those have left."""
    shares = [
        f"{share.name} {_mib(share.weights)} MiB of weights"
        + (f", {_mib(share.free)} of {_mib(share.total)} MiB free" if share.total else "")
        for share in about.shares
        if share.weights
    ]
    return "; ".join([f"{about.offloaded} of {counted(about.layers, 'layer')}", *shares])


def _waiting(queued: int) -> str:
    return "no job waits" if not queued else "1 job waits" if queued == 1 else f"{queued} jobs wait"


def _beside(peers: list[Peer]) -> str:
    return f"; served by process {' and '.join(str(peer.pid) for peer in peers)} as well" if peers else ""


def _settings(config: Config) -> str:
    # The log has its place in the last line.
    own = {variable: text for variable, text in changed(config).items() if variable != "NRVNA_LOG_FILE"}
    different = [f"{variable}={shlex.quote(text)}" for variable, text in own.items()]
    return " ".join(different) + " (the others are the defaults)" if different else "the defaults"


def _use(about: Ready, model: dict[str, Any], config: Config, workspace: str, *, has_terminal: bool) -> str:
    place = shlex.quote(workspace)
    kind = "" if about.writes else "--embed "
    name = f"--model {shlex.quote(model['path'].rpartition('/')[2])} " if config.named else ""
    end = "Ctrl-C" if has_terminal else f"`nrvnad --stop {place}`"
    log = f"; log: {config.log_file}" if config.log_file else ""
    return f"`wrk {name}{kind}{place} PROMPT` queues, `flw {place}` shows, {end} stops{log}"


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

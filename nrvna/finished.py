"""What else may become of finished jobs: they are asked again, or removed.

Asked again, a job moves back into the queue under its own id: nothing of its former fate is on the disk when it does,
and what a daemon filed beside it is cleared when one claims it, as always. Removed, it is hidden by a rename within
its folder, which is on the disk before anything of it is deleted: a crash leaves it whole, or hidden for others to
sweep.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from os.path import dirname, join

from nrvna.errors import SubmitError
from nrvna.files import clear, move, read_text, remove, sync, sync_tree
from nrvna.job import Job, JobState
from nrvna.lease import UNFINISHED
from nrvna.submit import key_path, keys_locked, mark_priority, wake
from nrvna.workspace import REMOVED, Workspace


def ask_again(workspace: Workspace, jobs: Sequence[Job]) -> list[str]:
    """Put finished jobs back into the queue and return their ids; some hundreds at once are quickest.

    A job that is not there any more is passed over. Raises SubmitError if one cannot be put back, with the ids of
    the others; WorkspaceError if none could be.
    """
    ready: list[Job] = []
    with workspace.explained("queue a job again in"):
        for job in jobs:
            with suppress(FileNotFoundError):
                _forget_fate(workspace, job)
                ready.append(job)
        if not ready:
            return []
        # What is cleared must stay so: a mark of who wanted it cancelled would cancel it once more.
        sync_tree([job.directory for job in ready], [workspace.priority] if os.path.isdir(workspace.priority) else [])
    moved: list[str] = []
    trouble: OSError | None = None
    for job in ready:
        try:
            move(job.directory, join(workspace.input, job.id))
            moved.append(job.id)
        except FileNotFoundError:
            continue
        except OSError as error:
            trouble = error
    try:
        sync(workspace.input)
    except OSError as error:
        reason = f"the disk did not confirm that {', '.join(moved)} will run, but it may: {error.strerror}"
        raise SubmitError(reason, [], moved) from error
    wake(workspace)
    if trouble:
        reason = f"cannot queue a job again in {workspace.path}: {trouble.strerror}"
        raise SubmitError(reason, moved, []) from trouble
    return moved


def _forget_fate(workspace: Workspace, job: Job) -> None:
    os.stat(job.directory)
    for name in UNFINISHED:
        clear(join(job.directory, name))
    order = workspace.order(job)
    if order and order.priority:
        mark_priority(workspace, job.id, order.priority)


def remove_finished(workspace: Workspace, jobs: Sequence[Job]) -> list[str]:
    """Remove finished jobs, for good, and return their ids. One that is not there any more is passed over.

    Raises WorkspaceError; of those that were hidden by then nothing is seen again.
    """
    hidden: dict[str, str] = {}
    with workspace.explained("remove a job from"):
        try:
            for job in jobs:
                folder = dirname(job.directory)
                place = join(folder, f"{REMOVED}{job.id}-{os.urandom(3).hex()}")
                with suppress(FileNotFoundError):
                    move(job.directory, place)
                    hidden[job.id] = place
        finally:
            for folder in {dirname(place) for place in hidden.values()}:
                sync(folder)
            _drop_keys(workspace, hidden)
            for place in hidden.values():
                remove(place)
    return list(hidden)


def _drop_keys(workspace: Workspace, hidden: dict[str, str]) -> None:
    keys: dict[str, str] = {}
    for job_id, place in hidden.items():
        order = workspace.order(Job(job_id, JobState.DONE, place))
        if order and order.key is not None:
            keys[job_id] = key_path(workspace, order.key)
    if not keys:
        return
    with keys_locked(workspace):
        for job_id, path in keys.items():
            # It may be another job's by now.
            if read_text(path, 1000) == job_id:
                clear(path)

"""Why an answer may be long in coming: no daemon, a model that nobody serves, other jobs, a model being loaded."""

from __future__ import annotations

from os.path import basename

from nrvna.errors import JobNotFoundError
from nrvna.job import Job, JobState
from nrvna.order import Order
from nrvna.workspace import Peer, Workspace

# Of the jobs that it comes after, no more are looked for.
_LOOKED_FOR = 1000


def outlook(workspace: Workspace, job: Job) -> str:
    """What keeps an unfinished job: a clause that begins with a comma, or nothing. Raises WorkspaceError."""
    peers = workspace.peers()
    order = _order_of(workspace, job)
    if clause := _obstacle(workspace, peers, order) or _comes_after(workspace, order.after):
        return clause
    is_ready = any(peer.ready for peer in peers if peer.answers(order.model))
    return "" if is_ready else ", and its daemon is still loading the model"


def obstacle(workspace: Workspace, job: Job | None = None) -> str:
    """The same for what will keep it until somebody does something; without a job, for any. Raises WorkspaceError."""
    return _obstacle(workspace, workspace.peers(), _order_of(workspace, job) if job else Order(b""))


def _order_of(workspace: Workspace, job: Job) -> Order:
    # One that runs has nothing to wait for any more.
    return (workspace.order(job) if job.state is JobState.QUEUED else None) or Order(b"")


def _obstacle(workspace: Workspace, peers: list[Peer], order: Order) -> str:
    if not peers:
        return f", and no daemon answers it (start one: nrvnad MODEL {workspace.path})"
    if any(peer.answers(order.model) for peer in peers):
        return ""
    served = ", ".join(sorted({basename(str(peer.model.get("path"))) for peer in peers}))
    if order.model:
        return f", and asks for the model {order.model}, which no daemon here serves (they serve {served})"
    return f", and names no model, as the daemons here want it (they serve {served})"


def _comes_after(workspace: Workspace, after: tuple[str, ...]) -> str:
    unfinished: list[Job] = []
    for parent in after[:_LOOKED_FOR]:
        try:
            job = workspace.find(parent)
        except JobNotFoundError:
            # Not waited for: the job will be told.
            return ""
        if not job.is_finished:
            unfinished.append(job)
    if not unfinished:
        return ""
    others = f", and {len(unfinished) - 1} more" if len(unfinished) > 1 else ""
    return f", and comes after {unfinished[0].id}, which is {unfinished[0].state}{others}"

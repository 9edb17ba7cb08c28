"""What ``flw`` is told to do with jobs by a verb: cancel, retry, rm, purge, export and stats."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from os.path import join
from typing import NamedTuple

from nrvna.arguments import Parser
from nrvna.collect import DONE, FAILED, NOT_READY, worst
from nrvna.errors import SubmitError
from nrvna.files import is_folder
from nrvna.finished import ask_again, remove_finished
from nrvna.job import Job, JobState, seconds_of
from nrvna.lease import cancel as cancel_jobs
from nrvna.lease import recover
from nrvna.selection import Glance, Selection, queued_at, select
from nrvna.terminal import complain, printable
from nrvna.waiting import POLL_S
from nrvna.which import add_filters, add_jobs, duration, selection_of
from nrvna.workspace import Workspace

_CANCEL_PATIENCE_S = 3.0
# Jobs that wait for the disk together.
_GROUP = 200
_FINISHED = ("done", "cut", "failed")

_EPILOGS = {
    "cancel": """\
examples:
  flw cancel ~/work ID           this one, whether it waits or runs
  flw cancel ~/work --tag trial  all unfinished ones with this tag
  flw cancel ~/work --all        all that are not finished

Prints the ids of those that it ended. Of a job that is cancelled there will be no answer.

exit codes: 0 cancelled, 1 one was done already, 2 usage, 3 a daemon did not confirm it yet
""",
    "retry": """\
examples:
  flw retry ~/work ID                    ask this one again
  flw retry ~/work --state failed        all that failed
  flw retry ~/work --state cut --again   all that were cut at a limit; their answers are thrown away

Prints the ids of those that are in the queue again: under the ids they had, where they were.

exit codes: 0 queued again, 1 one was not, 2 usage
""",
    "rm": """\
examples:
  flw rm ~/work ID                 remove a finished job, answer and all
  flw rm ~/work @1 @2              the newest two
  flw rm ~/work --tag trial --force  all with this tag; unfinished ones are cancelled first

Prints the ids of those that it removed. A job whose answer an unfinished one waits for stays,
without --force.

exit codes: 0 removed, 1 one was not, 2 usage, 3 a daemon did not confirm yet that it cancelled one
""",
    "purge": """\
examples:
  flw purge ~/work --older 7d                  what has been finished for a week
  flw purge ~/work --older 12h --state failed  failed jobs only
  flw purge ~/work --older 4w --dry-run        say what would be removed

Prints the ids of those that it removed. A job whose answer an unfinished one waits for stays.

exit codes: 0 done, 2 usage
""",
    "export": """\
examples:
  flw export ~/work -o answers.jsonl             every finished job with all that is known of it
  flw export ~/work --tag review -o reviews.md   prompts and answers to read
  flw export ~/work --state done --format csv    a table, on standard output

The file is there whole, or as it was before. Without --format its ending says how it is written.

exit codes: 0 written, 2 usage, or the file could not be written
""",
    "stats": """\
examples:
  flw stats ~/work               how many jobs, how many tokens, how fast, what failed
  flw stats ~/work --since 24h   of what was finished within a day
  flw stats ~/work --json        for programs

Busy is the time in which at least one job was being answered. Tokens of an answer that was shared by
several jobs are counted once. The wait is from the queueing of a job to its start.

exit codes: 0 done, 2 usage
""",
}
_DESCRIPTIONS = {
    "cancel": "See to it that jobs are not answered, whether they wait or run.",
    "retry": "Put failed jobs back into the queue.",
    "rm": "Remove finished jobs.",
    "purge": "Remove jobs that have been finished for long.",
    "export": "Write prompts, answers and all that is known beside into one file.",
    "stats": "Sum up how the jobs of a workspace fared.",
}


def make_parser(verb: str) -> Parser:
    """What a verb takes, with its help. Raises KeyError for another word."""
    usages = {"purge": "WORKSPACE --older AGE", "stats": "WORKSPACE"}
    parser = Parser(
        prog=f"flw {verb}",
        usage=f"flw {verb} [options] {usages.get(verb, 'WORKSPACE [ID ...]')}",
        description=_DESCRIPTIONS[verb],
        epilog=_EPILOGS[verb],
    )
    if verb in ("purge", "stats"):
        parser.add_argument("workspace", metavar="WORKSPACE", help="the workspace's folder")
        add_filters(parser)
    else:
        add_jobs(parser)
    if verb == "cancel":
        parser.add_argument("-a", "--all", action="store_true", help="all that are not finished")
    elif verb == "retry":
        parser.add_argument("--again", action="store_true", help="what is done, too: its answer is thrown away")
    elif verb == "rm":
        parser.add_argument("-f", "--force", action="store_true", help="also what is unfinished, or waited for")
    elif verb == "purge":
        parser.add_argument(
            "--older", type=duration, required=True, metavar="AGE", help="finished longer ago: 30m, 12h, 7d, 4w"
        )
        parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    elif verb == "export":
        parser.add_argument("-o", "--output", metavar="FILE", help="the file to write, instead of standard output")
        parser.add_argument("--format", choices=("jsonl", "csv", "md"), help="how it is written")
    else:
        parser.add_argument("--since", type=duration, metavar="AGE", help="what was finished since: 30m, 12h, 7d, 4w")
        parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    return parser


def run_verb(verb: str, argv: Sequence[str]) -> int:
    """``flw VERB ...``; returns the exit code. Raises JobNotFoundError and WorkspaceError."""
    parser = make_parser(verb)
    options = parser.read(argv)
    workspace = Workspace(options.workspace)
    workspace.check()
    runs: dict[str, Callable[[Parser, argparse.Namespace, Workspace], int]] = {
        "cancel": _run_cancel,
        "retry": _run_retry,
        "rm": _run_rm,
        "purge": _run_purge,
        "export": _run_export,
        "stats": _run_stats,
    }
    return runs[verb](parser, options, workspace)


def _run_cancel(parser: Parser, options: argparse.Namespace, workspace: Workspace) -> int:
    selection = selection_of(parser, options, needed="" if options.all else "IDs, --tag, --state or --all")
    if options.all and selection.names:
        parser.error("--all cancels all: name no jobs beside it")
    jobs = select(workspace, selection)
    return cancel(workspace, [job.id for job in jobs if selection.names or not job.is_finished])


def cancel(workspace: Workspace, ids: Sequence[str]) -> int:
    """See to it that these jobs get no answer, and print those that were ended; returns the exit code.

    Raises JobNotFoundError.
    """
    ends = _end(workspace, ids)
    ended = set(ends.ended)
    _print_ids([job_id for job_id in ids if job_id in ended])
    for job_id in ends.done:
        complain(f"{job_id} is done already")
    return worst([FAILED if ends.done else DONE, _say_unconfirmed(ends)])


class _Ends(NamedTuple):
    """Ids of jobs that were cancelled, that were done before, and whose daemon did not confirm it in time."""

    ended: list[str]
    done: list[str]
    unconfirmed: list[str]


def _end(workspace: Workspace, ids: Sequence[str]) -> _Ends:
    # The last first: what comes after others goes before them.
    jobs = [workspace.find(job_id) for job_id in reversed(ids)]
    if any(job.state is JobState.RUNNING for job in jobs):
        # A dead daemon confirms nothing.
        recover(workspace)
    ends = _Ends([], [], [])
    pending = [job.id for job in jobs if job.state is not JobState.FAILED]
    marked: set[str] = set()
    deadline: float | None = None
    while pending:
        jobs = [workspace.find(job_id) for job_id in pending]
        ends.done.extend(job.id for job in jobs if job.state is JobState.DONE)
        if failed := [job.id for job in jobs if job.state is JobState.FAILED]:
            workspace.confirm()
            ends.ended.extend(failed)
        jobs = [job for job in jobs if not job.is_finished]
        if deadline is not None and time.monotonic() > deadline:
            ends.unconfirmed.extend(job.id for job in jobs)
            break
        # Who runs and was told needs not be told again.
        untold = [job for job in jobs if job.state is JobState.QUEUED or job.id not in marked]
        ended = set(cancel_jobs(workspace, *untold))
        marked |= {job.id for job in untold if job.state is JobState.RUNNING}
        ends.ended.extend(ended)
        pending = [job.id for job in jobs if job.id not in ended]
        deadline = deadline or time.monotonic() + _CANCEL_PATIENCE_S
        if pending:
            time.sleep(POLL_S)
    return ends


def _say_unconfirmed(ends: _Ends) -> int:
    for job_id in ends.unconfirmed:
        complain(f"{job_id} is asked to end, but its daemon did not confirm that yet: look again")
    return NOT_READY if ends.unconfirmed else DONE


def _run_retry(parser: Parser, options: argparse.Namespace, workspace: Workspace) -> int:
    selection = selection_of(parser, options, needed="IDs, --tag, or --state failed")
    if not options.again and {"done", "cut"} & set(selection.states):
        parser.error("what is done is asked again with --again: its answer is thrown away")
    code = DONE
    chosen: list[Job] = []
    for job in select(workspace, selection):
        if job.state is JobState.FAILED or (job.state is JobState.DONE and options.again):
            chosen.append(job)
        elif selection.names and job.state is JobState.DONE:
            complain(f"{job.id} is done: --again throws its answer away and asks once more")
            code = FAILED
        elif selection.names:
            complain(f"{job.id} is {job.state} already")
    # What others come after goes before them: else they would fail for its sake once more.
    chosen.sort(key=lambda job: job.id)
    _warn_of_parents(workspace, chosen)
    for group in _groups(chosen):
        try:
            _print_ids(ask_again(workspace, group))
        except SubmitError as error:
            _print_ids(error.queued)
            raise
    return code


def _warn_of_parents(workspace: Workspace, jobs: Sequence[Job]) -> None:
    again = {job.id for job in jobs}
    for job in jobs:
        order = workspace.order(job)
        for parent in order.after if order else ():
            if parent not in again and is_folder(join(workspace.failed, parent)):
                complain(f"{job.id} comes after {parent}, which failed: retry that too")


def _run_rm(parser: Parser, options: argparse.Namespace, workspace: Workspace) -> int:
    selection = selection_of(parser, options, needed="IDs, --tag or --state")
    jobs = select(workspace, selection)
    codes = [DONE]
    unfinished = [job.id for job in jobs if not job.is_finished]
    if unfinished and options.force:
        codes.append(_say_unconfirmed(_end(workspace, unfinished)))
        jobs = [workspace.find(job.id) for job in jobs]
    elif unfinished:
        codes.append(FAILED)
        who = ", ".join(unfinished) if selection.names else f"{len(unfinished)} of them"
        are = "is" if len(unfinished) == 1 else "are"
        complain(f"{who} {are} not finished: --force cancels, and removes, what is not")
    finished = [job for job in jobs if job.is_finished]
    chosen = finished if options.force else _not_awaited(workspace, finished)
    _remove(workspace, chosen)
    codes.append(FAILED if len(chosen) < len(finished) else DONE)
    return worst(codes)


def _run_purge(parser: Parser, options: argparse.Namespace, workspace: Workspace) -> int:
    selection = selection_of(parser, options)
    if odd := set(selection.states) - set(_FINISHED):
        parser.error(f"only finished jobs are purged, not {', '.join(sorted(odd))}: {', '.join(_FINISHED)}")
    wanted = selection._replace(states=selection.states or ("done", "failed"))
    before = time.time() - options.older
    old = [
        job
        for job in Glance(workspace).select(wanted)
        # One that was queued later needs no further look.
        if queued_at(job, {}) <= before and _finished_at(workspace, job) <= before
    ]
    chosen = _not_awaited(workspace, old)
    if options.dry_run:
        _print_ids([job.id for job in chosen])
    else:
        _remove(workspace, chosen)
        workspace.sweep_removed()
    if sys.stderr.isatty():
        verb = "would be removed" if options.dry_run else "removed"
        print(f"{len(chosen)} {'job' if len(chosen) == 1 else 'jobs'} {verb}", file=sys.stderr)
    return DONE


def _finished_at(workspace: Workspace, job: Job) -> float:
    """Seconds since the epoch."""
    receipt = workspace.receipt(job)
    if receipt and (finished := seconds_of(receipt.finished)) is not None:
        return finished
    with suppress(OSError):
        return os.stat(job.directory).st_mtime
    return time.time()


def _not_awaited(workspace: Workspace, jobs: list[Job]) -> list[Job]:
    """Those that no unfinished job comes after; of the others it is said."""
    awaited = Glance(workspace).awaited() if jobs else {}
    for job in jobs:
        if job.id in awaited:
            complain(f"{job.id} stays: {awaited[job.id]}, which is not finished, comes after it")
    return [job for job in jobs if job.id not in awaited]


def _remove(workspace: Workspace, jobs: Sequence[Job]) -> None:
    for group in _groups(jobs):
        _print_ids(remove_finished(workspace, group))


def _run_export(parser: Parser, options: argparse.Namespace, workspace: Workspace) -> int:
    from nrvna.export import export, format_of

    selection = selection_of(parser, options)
    if not selection.names and not selection.filters:
        selection = Selection(states=_FINISHED)
    export(workspace, select(workspace, selection), options.output, options.format or format_of(options.output))
    return DONE


def _run_stats(parser: Parser, options: argparse.Namespace, workspace: Workspace) -> int:
    from nrvna.stats import print_stats, stats

    selection = selection_of(parser, options)
    found = stats(Glance(workspace), selection, options.since)
    print_stats(found, as_json=options.json)
    return DONE


def _groups(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), _GROUP):
        yield jobs[start : start + _GROUP]


def _print_ids(ids: Sequence[str]) -> None:
    if ids:
        print("\n".join(map(printable, ids)), flush=True)

"""``flw``: see how the jobs of a workspace are doing, collect their answers, and settle what becomes of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from nrvna.arguments import Parser
from nrvna.collect import (
    DONE,
    FAILED,
    INTERRUPTED,
    NOT_READY,
    USAGE,
    follow,
    in_pager,
    print_answers,
    show_each,
    show_prompt,
    show_reasoning,
    show_receipt,
    worst,
)
from nrvna.errors import JobNotFoundError, WorkspaceError
from nrvna.job import Job, JobState
from nrvna.listing import SHOWN, print_json, print_list, print_sum
from nrvna.selection import Glance, Selection, select
from nrvna.terminal import abandon_stdout, complain, one_line, open_streams
from nrvna.waiting import Waiting
from nrvna.which import add_jobs, duration, natural, selection_of
from nrvna.workspace import Workspace

VERBS = ("cancel", "retry", "rm", "purge", "export", "stats")

EPILOG = """\
examples:
  flw ~/work                     the newest jobs, newest last: state, age, tokens, prompt, answer
  flw ~/work ID                  one answer, alone on standard output
  flw -w ~/work ID               the same, once it is there
  flw -f ~/work ID               the same, as it is being written
  flw -w ~/work                  wait until everything queued now is finished
  flw --watch ~/work             watch the jobs: how many, how fast, their last words
  flw ~/work --state failed      what went wrong
  flw -w ~/work --tag review     wait for all that have this tag
  flw ~/work --jsonl             every job with all that is known of it, for programs
  flw --batch BATCH ~/work -o out.jsonl
                                 a batch file's answers, as far as they are there

An ID is a job's id, its beginning, its end (4 characters or more), or @1 for the newest job, @2 for
the one before.

verbs, each with a --help of its own:
  flw cancel ~/work ID           no answer is wanted any more
  flw retry ~/work ID            ask again what failed
  flw rm ~/work ID               remove what is finished
  flw purge ~/work --older 7d    remove what has been finished for a week
  flw export ~/work -o all.csv   prompts and answers in one file: jsonl, csv or md
  flw stats ~/work               how many, how fast, what failed

A workspace that is called like a verb is reached as ./cancel.

exit codes: 0 done, 1 failed, 2 usage, 3 not ready yet; of several jobs, 3 comes before 1
"""


def make_parser(verb: str = "") -> Parser:
    """All that flw takes, or one of its VERBS, with its help."""
    if verb:
        # Imported here: most calls have none.
        from nrvna.verbs import make_parser

        return make_parser(verb)
    parser = Parser(
        prog="flw",
        usage="flw [options] WORKSPACE [ID ...]\n       flw VERB WORKSPACE ...",
        description="List the jobs of a workspace, or print the answers of some.",
        epilog=EPILOG,
    )
    add_jobs(parser)
    parser.add_argument("-w", "--wait", action="store_true", help="wait until it is finished")
    seconds = partial(duration, plain=True)
    parser.add_argument("--timeout", type=seconds, metavar="S", help="wait no longer than this, such as 90 or 5m")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("-f", "--follow", action="store_true", help="print the answer as it is being written")
    shown.add_argument("--open", action="store_true", help="read the answer in $PAGER")
    shown.add_argument("--prompt", action="store_true", help="print what was asked")
    shown.add_argument("--reasoning", action="store_true", help="print the thought that led to the answer")
    shown.add_argument("--receipt", action="store_true", help="print how the job was answered, in JSON")
    shown.add_argument("--json", action="store_true", help="all that is known of the jobs, as one JSON array")
    shown.add_argument("--jsonl", action="store_true", help="the same as a JSON object on each line")
    shown.add_argument("--watch", action="store_true", help="watch the jobs until all are finished")
    shown.add_argument("--cancel", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch", metavar="BATCH", help="how the requests of a batch file are doing")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the batch's answers, - is standard output")
    parser.add_argument("--errors", metavar="FILE", help="with -o: where its failures go, if not beside FILE")
    parser.add_argument("--batches", action="store_true", help="list the batches")
    parser.add_argument("-n", "--newest", type=natural, metavar="N", help=f"list so many jobs, not {SHOWN}")
    parser.add_argument("-a", "--all", action="store_true", help="list every job")
    return parser


def look(parser: Parser, options: argparse.Namespace) -> int:
    """``flw WORKSPACE ...``; returns the exit code. Raises JobNotFoundError and WorkspaceError."""
    workspace = Workspace(options.workspace)
    workspace.check()
    selection = selection_of(parser, options)
    _check(parser, options, selection)
    if options.batch is not None or options.batches:
        # Imported here: most calls are about jobs.
        from nrvna.batch.output import list_batches, write_batch

        if options.batch is None:
            return list_batches(workspace)
        about = {"wait": options.wait, "as_json": options.json or options.jsonl}
        return write_batch(workspace, options.batch, options.output, errors=options.errors, **about)
    if options.watch:
        # Imported here: only this needs to draw.
        from nrvna.live.watch import watch

        return watch(workspace)
    is_about_each = options.open or options.prompt or options.reasoning or options.receipt or options.cancel
    if selection.names or (selection.filters and is_about_each):
        return show_jobs(workspace, options, select(workspace, selection))
    return wait_and_list(workspace, options, selection) if options.wait else list_jobs(workspace, options, selection)


def _check(parser: Parser, options: argparse.Namespace, selection: Selection) -> None:
    if options.ids and options.ids[0] in VERBS:
        parser.error(f"the verb comes first: flw {options.ids[0]} {options.workspace} ...")
    if options.batch is None and (options.output is not None or options.errors is not None):
        parser.error("-o and --errors are for a batch: flw --batch BATCH -o FILE WORKSPACE")
    if (options.batch is not None or options.batches) and (selection.names or selection.filters):
        parser.error("a batch goes without jobs and what chooses them: flw --batch BATCH WORKSPACE")
    if options.watch and selection.names:
        parser.error("--watch is of a whole workspace: leave out the ID, or follow it with flw -f WORKSPACE ID")
    if options.watch and (selection.filters or options.wait or options.all or options.newest):
        parser.error("--watch is of a whole workspace, until all are finished: it goes with no other option")
    if selection.names and (options.all or options.newest):
        parser.error("-n and -a are for the list, without an ID")
    if options.all and options.newest:
        parser.error("-n and -a contradict each other")
    if options.timeout is not None and not (options.wait or options.follow):
        parser.error("--timeout is for waiting: give -w or -f too")
    for name in ("follow", "open", "prompt", "reasoning", "receipt", "cancel"):
        if getattr(options, name) and not (selection.names or (selection.filters and name != "follow")):
            parser.error(f"name a job too: flw --{name} WORKSPACE ID")
    if options.follow and len(selection.names) > 1:
        parser.error("-f follows one job, not several")


def show_jobs(workspace: Workspace, options: argparse.Namespace, jobs: list[Job]) -> int:
    """``flw WORKSPACE ID ...``; returns the exit code."""
    ids = [job.id for job in jobs]
    if options.cancel:
        from nrvna.verbs import cancel

        return cancel(workspace, ids)
    if options.follow:
        return follow(workspace, ids[0], options.timeout)
    answers = partial(print_answers, workspace, ids, wait=options.wait, timeout=options.timeout)
    if options.open:
        return in_pager(answers)
    shows = {"prompt": show_prompt, "reasoning": show_reasoning, "receipt": show_receipt}
    chosen = next((name for name in shows if getattr(options, name)), None)
    if not (chosen or options.json or options.jsonl):
        return answers()
    if options.wait and chosen != "prompt":
        Waiting(workspace, options.timeout).until(partial(all_finished, workspace, ids), ids[0])
    workspace.confirm()
    jobs = [workspace.find(job_id) for job_id in ids]
    if chosen:
        return show_each(workspace, jobs, shows[chosen], headed=chosen != "receipt")
    print_json(Glance(workspace), jobs, as_lines=options.jsonl)
    return worst(code_of(job) for job in jobs)


def list_jobs(workspace: Workspace, options: argparse.Namespace, selection: Selection) -> int:
    """``flw WORKSPACE``; returns the exit code."""
    glance = Glance(workspace)
    if options.json or options.jsonl:
        print_json(glance, glance.select(selection, options.newest), as_lines=options.jsonl)
        return DONE
    limit = None if options.all else options.newest or SHOWN
    jobs = glance.select(selection, limit)
    print_list(glance, jobs)
    sys.stdout.flush()
    print_sum(glance, len(jobs), filtered=selection.filters, limit=limit)
    return DONE


def wait_and_list(workspace: Workspace, options: argparse.Namespace, selection: Selection) -> int:
    """``flw -w WORKSPACE``: what is unfinished now, or all that is meant, once it is finished; the exit code."""
    glance = Glance(workspace)
    ids = [job.id for job in glance.select(selection) if selection.filters or not job.is_finished]
    Waiting(workspace, options.timeout).until(partial(none_unfinished, workspace, frozenset(ids)))
    glance = Glance(workspace)
    wanted = set(ids)
    jobs = [job for job in glance.select(Selection()) if job.id in wanted]
    if options.json or options.jsonl:
        print_json(glance, jobs, as_lines=options.jsonl)
    else:
        print_list(glance, jobs)
        sys.stdout.flush()
        print_sum(glance, len(jobs), filtered=True, limit=None)
    return worst(code_of(job) for job in jobs)


def all_finished(workspace: Workspace, ids: Sequence[str]) -> bool:
    """Raises JobNotFoundError if one is gone."""
    return all(workspace.find(job_id).is_finished for job_id in ids)


def none_unfinished(workspace: Workspace, ids: frozenset[str]) -> bool:
    """The same for many, where those that are gone count for nothing."""

    def is_over() -> bool:
        unfinished = (JobState.QUEUED, JobState.RUNNING)
        return not any(seen.id in ids and seen.state in unfinished for seen in workspace.survey())

    # Twice, as a job that is put back into the queue meanwhile may be missed once.
    return is_over() and is_over()


def code_of(job: Job) -> int:
    """The exit code that a job's state stands for."""
    codes = {JobState.DONE: DONE, JobState.FAILED: FAILED}
    return codes.get(job.state, NOT_READY)


def main(argv: list[str] | None = None) -> int:
    open_streams("flw")
    given = sys.argv[1:] if argv is None else argv
    try:
        if given and given[0] in VERBS:
            # Imported here: most calls have none.
            from nrvna.verbs import run_verb

            code = run_verb(given[0], given[1:])
        else:
            parser = make_parser()
            code = look(parser, parser.read(given))
        sys.stdout.flush()
    except (JobNotFoundError, WorkspaceError) as error:
        print(f"flw: {one_line(str(error))}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough.
        abandon_stdout()
        return DONE
    except OSError as error:
        if error.filename is not None:
            complain(one_line(f"cannot read {os.fsdecode(error.filename)}: {error.strerror}"))
            return USAGE
        abandon_stdout()
        print(f"flw: standard output failed: {error.strerror}", file=sys.stderr)
        return USAGE
    return code


def run() -> None:
    """The installed command ``flw``."""
    sys.exit(main())


if __name__ == "__main__":
    run()

"""``flw``: see how the jobs of a workspace are doing, collect their answers, or cancel them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from nrvna.arguments import Parser
from nrvna.errors import JobNotFoundError, WorkspaceError
from nrvna.job import Job, JobState
from nrvna.terminal import abandon_stdout, open_streams, printable
from nrvna.workspace import Counts, Workspace

DONE, FAILED, USAGE, NOT_READY, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = """\
examples:
  flw ~/work                  the newest jobs, newest last: state, id, prompt, answer
  flw ~/work ID               one answer, alone on standard output
  flw -w ~/work ID            the same, once it is there
  flw -f ~/work ID            the same, as it is being written
  flw -w ~/work               wait until everything queued now is finished
  flw --watch ~/work          watch the jobs until all are finished: how many, how fast, their last words
  flw --reasoning ~/work ID   what a model that thinks thought before it answered
  flw --receipt ~/work ID     how it was answered: tokens, settings, probabilities, in JSON
  flw --cancel ~/work ID      cancel it, if it is not done yet

exit codes: 0 done, 1 failed, 2 usage, 3 not ready yet
"""

_SHOWN = 20
_POLL_S = 0.05
_SHOW_EVERY_S = 0.5
_WARN_AFTER_S = 2.0
_CANCEL_PATIENCE_S = 3.0


def first_line(text: str, width: int) -> str:
    """The first line with something on it, cut to a width."""
    line = printable(next((line.strip() for line in text.splitlines() if line.strip()), "")).replace("\t", " ")
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def row(workspace: Workspace, job: Job, width: int) -> str:
    """A job on one line: id, state, the beginning of its prompt and of its answer or reason.

    An answer that ends at a limit is "cut", so that nobody takes it for a whole one.
    """
    receipt = workspace.receipt(job) if job.state is JobState.DONE else None
    label = "cut" if receipt and receipt.was_cut else job.state
    head = f"{first_line(job.id, 200)}  {label:<7}  "
    room = max(20, width - len(head))
    prompt = first_line(workspace.prompt(job), room * 2 // 5)
    answer = first_line(workspace.answer(job), room - len(prompt) - 3)
    return f"{head}{prompt} → {answer}" if answer else f"{head}{prompt}"


def print_list(workspace: Workspace, jobs: list[Job]) -> None:
    """The jobs given, oldest first."""
    width = (os.get_terminal_size().columns or 80) if sys.stdout.isatty() else 160
    for job in jobs:
        print(row(workspace, job, width))


def print_sum(counts: Counts, shown: int) -> None:
    """On a terminal a line that sums up some jobs, of which so many were shown."""
    if sys.stderr.isatty():
        numbers = ", ".join(f"{number} {state}" for state, number in counts._asdict().items())
        older = f"; {sum(counts) - shown} older ones with --all" if sum(counts) > shown else ""
        print(f"{sum(counts)} jobs: {numbers}{older}", file=sys.stderr)


def show(workspace: Workspace, job: Job) -> int:
    """Print a finished job's answer on stdout, or on stderr why there is none; returns the exit code."""
    if job.state is JobState.FAILED:
        print(f"flw: {job.id} failed: {printable(workspace.answer(job).strip())}", file=sys.stderr)
        return FAILED
    if job.state is not JobState.DONE:
        print(f"flw: {job.id} is {job.state}{_hint(workspace)}; -w waits for it", file=sys.stderr)
        return NOT_READY
    answer = workspace.answer(job)
    write_answer(answer)
    if not answer.endswith("\n"):
        write_answer("\n")
    return judge(workspace, job)


def write_answer(text: str) -> None:
    """To standard output; a terminal is not steered by it."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)


def judge(workspace: Workspace, job: Job) -> int:
    """Say on stderr what there is to know of a done job's answer; returns the exit code."""
    receipt = workspace.receipt(job)
    if receipt and not workspace.is_intact(job, receipt):
        print("flw: this answer is damaged: it is not the one that its receipt was written for", file=sys.stderr)
        return FAILED
    if receipt and receipt.was_cut:
        variable = {"length": "NRVNA_PREDICT", "context": "NRVNA_CTX"}[receipt.finish_reason]
        note = f"flw: this answer was cut at its {receipt.generated_tokens}th token: nrvnad with a larger {variable}"
        print(f"{note} allows more", file=sys.stderr)
    return DONE


def _hint(workspace: Workspace) -> str:
    """Why an answer may be long in coming."""
    peers = workspace.peers()
    if not peers:
        return f", and no daemon answers it (start one: nrvnad MODEL {workspace.path})"
    return "" if any(peer.ready for peer in peers) else ", and its daemon is still loading the model"


class Waiting:
    """Waits until a condition holds, and shows on a terminal how the jobs are doing meanwhile."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._started = time.monotonic()

    def until(self, finished: Callable[[], bool]) -> None:
        show_at, warned = _SHOW_EVERY_S, False
        while True:
            looked = time.monotonic()
            if finished():
                break
            waited = time.monotonic() - self._started
            if waited >= show_at and sys.stderr.isatty():
                show_at = waited + _SHOW_EVERY_S
                self._show(waited)
            if not warned and waited > _WARN_AFTER_S:
                warned = True
                if not self._workspace.peers():
                    self._clear()
                    print(f"flw: still waiting{_hint(self._workspace)}", file=sys.stderr)
            # Looking at thousands of jobs takes a while: no more than a twentieth of a core goes into it.
            time.sleep(max(_POLL_S, 20 * (time.monotonic() - looked)))
        self._clear()

    @staticmethod
    def _clear() -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self, waited: float) -> None:
        counts = self._workspace.counts()
        line = ", ".join(f"{number} {state}" for state, number in counts._asdict().items())
        line += f"  {waited:.0f} s  "
        room = os.get_terminal_size(2).columns - len(line) - 1
        newest = self._workspace.newest_running()
        words = " ".join(printable(self._workspace.answer(newest)).split()) if newest else ""
        print(f"\r\x1b[K{line}{words[-room:] if room > 0 else ''}", end="", file=sys.stderr, flush=True)


def collect(workspace: Workspace, job_id: str, *, wait: bool) -> int:
    """``flw WORKSPACE ID``. Raises JobNotFoundError."""
    job = workspace.find(job_id)
    if wait and not job.is_finished:
        Waiting(workspace).until(lambda: workspace.find(job_id).is_finished)
        job = workspace.find(job_id)
    if job.is_finished:
        # Whoever is shown an answer may rely on it, also after a power cut in this very moment.
        workspace.confirm()
    return show(workspace, job)


def follow(workspace: Workspace, job_id: str) -> int:
    """``flw -f WORKSPACE ID``: the answer as it grows. Raises JobNotFoundError."""
    shown, warned, started = "", False, time.monotonic()
    while True:
        looked = time.monotonic()
        job = workspace.find(job_id)
        if job.is_finished:
            workspace.confirm()
        if job.state is JobState.FAILED:
            write_answer("\n" if shown else "")
            return show(workspace, job)
        text = workspace.answer(job)
        if not text.startswith(shown) and (text or job.is_finished):
            write_answer("\n")
            sys.stdout.flush()
            print("flw: it was interrupted, and is answered anew:", file=sys.stderr)
            shown = ""
        if len(text) > len(shown):
            write_answer(text[len(shown) :])
            sys.stdout.flush()
            shown = text
        if job.state is JobState.DONE:
            write_answer("" if shown.endswith("\n") else "\n")
            return judge(workspace, job)
        if not warned and not shown and time.monotonic() - started > _WARN_AFTER_S:
            warned = True
            if hint := _hint(workspace):
                print(f"flw: {job_id} is {job.state}{hint}", file=sys.stderr)
        # A long answer takes a while to read: no more than a fifth of a core goes into it.
        time.sleep(max(_POLL_S, 4 * (time.monotonic() - looked)))


def cancel(workspace: Workspace, job_id: str) -> int:
    """``flw --cancel WORKSPACE ID``: 0 once it is certain that there will be no answer. Raises JobNotFoundError."""
    # Imported here: nothing else of flw moves jobs.
    from nrvna.lease import cancel as cancel_job

    deadline = time.monotonic() + _CANCEL_PATIENCE_S
    is_marked = False
    while time.monotonic() < deadline:
        job = workspace.find(job_id)
        if job.state is JobState.DONE:
            print(f"flw: {job_id} is done already", file=sys.stderr)
            return FAILED
        if job.state is JobState.FAILED:
            workspace.confirm()
            return DONE
        if job.state is JobState.QUEUED or not is_marked:
            if cancel_job(workspace, job):
                return DONE
            is_marked = job.state is JobState.RUNNING
        time.sleep(_POLL_S)
    print(f"flw: {job_id} is asked to end, but its daemon did not confirm that yet: look again", file=sys.stderr)
    return NOT_READY


def show_beside(workspace: Workspace, job_id: str, *, reasoning: bool) -> int:
    """``flw --reasoning`` or ``--receipt``: what stands beside a finished job's answer. Raises JobNotFoundError."""
    job = workspace.find(job_id)
    if not job.is_finished:
        print(f"flw: {job.id} is {job.state}{_hint(workspace)}; -w waits for it", file=sys.stderr)
        return NOT_READY
    receipt = workspace.receipt(job)
    text = workspace.reasoning(job) if reasoning else receipt.to_json() if receipt else ""
    if not text:
        print(f"flw: {job.id} has no {'reasoning' if reasoning else 'receipt'}", file=sys.stderr)
        return FAILED
    write_answer(text if text.endswith("\n") else text + "\n")
    return DONE


def collect_all(workspace: Workspace, *, wait: bool, everything: bool) -> int:
    """``flw WORKSPACE``: with ``wait``, the jobs unfinished now, once they are finished; 1 if one of them failed."""
    if not wait:
        jobs = workspace.jobs(None if everything else _SHOWN)
        print_list(workspace, jobs)
        print_sum(workspace.counts(), len(jobs))
        return DONE
    waited_for = {job.id for job in workspace.jobs() if not job.is_finished}

    def is_unfinished() -> bool:
        return any(not job.is_finished and job.id in waited_for for job in workspace.jobs())

    # Twice, as a job that is put back into the queue meanwhile may be missed once.
    Waiting(workspace).until(lambda: not is_unfinished() and not is_unfinished())
    finished = [job for job in workspace.jobs() if job.id in waited_for]
    print_list(workspace, finished)
    print_sum(Counts(*(sum(job.state is state for job in finished) for state in JobState)), len(finished))
    return FAILED if any(job.state is JobState.FAILED for job in finished) else DONE


def make_parser() -> Parser:
    """All that flw takes, with its help."""
    parser = Parser(
        prog="flw",
        description="List the jobs of a workspace, or print the answer of one.",
        epilog=EPILOG,
    )
    parser.add_argument("workspace", metavar="WORKSPACE", help="the workspace's folder")
    parser.add_argument("id", nargs="?", metavar="ID", help="a job's id, as wrk printed it")
    parser.add_argument("-w", "--wait", action="store_true", help="wait until it is finished")
    parser.add_argument("-f", "--follow", action="store_true", help="print the answer as it is being written")
    parser.add_argument("--reasoning", action="store_true", help="print the thought that led to the answer")
    parser.add_argument("--receipt", action="store_true", help="print how the job was answered, in JSON")
    parser.add_argument("--cancel", action="store_true", help="see to it that the job is not answered")
    parser.add_argument("--watch", action="store_true", help="watch the jobs until all are finished")
    parser.add_argument("-a", "--all", action="store_true", help=f"list every job, not only the newest {_SHOWN}")
    return parser


def main(argv: list[str] | None = None) -> int:
    open_streams()
    parser = make_parser()
    options = parser.parse_args(argv)
    workspace = Workspace(options.workspace)
    try:
        workspace.check()
        for name in ("follow", "cancel", "reasoning", "receipt"):
            if options.id is None and getattr(options, name):
                parser.error(f"name a job too: flw --{name} WORKSPACE ID")
        if options.watch and options.id is not None:
            parser.error("--watch is of a whole workspace: leave out the ID, or follow it with flw -f WORKSPACE ID")
        if options.watch:
            # Imported here: only this needs to draw.
            from nrvna.live.watch import watch

            code = watch(workspace)
        elif options.cancel:
            code = cancel(workspace, options.id)
        elif options.reasoning or options.receipt:
            code = show_beside(workspace, options.id, reasoning=options.reasoning)
        elif options.follow:
            code = follow(workspace, options.id)
        elif options.id is None:
            code = collect_all(workspace, wait=options.wait, everything=options.all)
        else:
            code = collect(workspace, options.id, wait=options.wait)
        sys.stdout.flush()
    except (JobNotFoundError, WorkspaceError) as error:
        print(f"flw: {error}", file=sys.stderr)
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
        abandon_stdout()
        print(f"flw: standard output failed: {error.strerror}", file=sys.stderr)
        return USAGE
    return code


def run() -> None:
    """The installed command ``flw``."""
    sys.exit(main())


if __name__ == "__main__":
    run()

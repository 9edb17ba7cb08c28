"""``wrk``: queue prompts. Prints the jobs' ids, and returns at once."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

from nrvna.arguments import Parser
from nrvna.errors import JobError, JobNotFoundError, NoFolderError, SettingError, WorkspaceError, shown
from nrvna.lines import read_given
from nrvna.order import MAX_PROMPT_BYTES, MAX_TIMEOUT_S, Order, check_prompt, copies
from nrvna.prompts import Part, compose, part_of_words
from nrvna.terminal import abandon_stdout, open_streams
from nrvna.workspace import Workspace

if TYPE_CHECKING:
    from nrvna.pile import Recipe

EPILOG = """\
examples:
  wrk ~/work "Explain what a B-tree is."       queue a prompt
  wrk -w ~/work "Name a prime."                the same, and print the answer once it is there
  git diff | wrk ~/work "Review this:" -       the words, then standard input
  wrk ~/work "Compare these:" -f a.py -f b.py  the words, then the files with their names
  wrk ~/work "Good news?" --choices yes,no     one of these, with probabilities
  wrk ~/work "Say hi." --temp 0 --stop .       settings of this job's own

many at once:
  wrk ~/work "Translate:" --lines words.txt    a job for each line, the words before it
  wrk ~/work "Review this:" --each 'src/*.py'  a job for each file
  wrk ~/work --jsonl jobs.jsonl                a job for each object: {"prompt": "...", "temp": 0, "tags": ["x"]}
  wrk ~/work --jsonl rows.jsonl --template 'Is {name} a {kind}?'
  wrk ~/work --batch in.jsonl                  the requests of an OpenAI batch file; flw --batch collects them

one after another:
  id=$(wrk ~/work "Write a limerick.")
  wrk ~/work --after $id "Make this better: {result}"
{result} and {result:ID} are answers in the words and in --template; {{result}} is the text {result}. Whatever is in
files, lines, fields and standard input stays as it is.

exit codes: 0 queued, 1 the workspace could not be written, 2 usage, or a prompt that cannot run;
with -w those of flw
"""

# With these alone, nothing is asked that takes long to look at.
_PLAIN_OPTIONS = (
    *("-", "--", "-f", "--file", "--lines", "--jsonl", "--each", "--template", "--batch", "--again"),
    *("-w", "--wait", "--tag", "--priority", "--after", "--key", "--timeout", "--model", "--init"),
)
_PILES = ("lines", "jsonl", "each", "batch")


def pipe_is_waiting() -> bool:
    """Whether somebody wrote to standard input through a pipe."""
    try:
        waiting = fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, b"\0" * 4)
        return not sys.stdin.isatty() and int.from_bytes(waiting, sys.byteorder) > 0
    except (OSError, ValueError):
        return False


def encouragement(workspace: Workspace, job_id: str) -> str:
    """What to do next, for a person."""
    with suppress(WorkspaceError):
        if not workspace.peers():
            return f"queued, and waiting for a daemon: nrvnad MODEL {workspace.path}"
    return f"queued; collect the answer with: flw -w {workspace.path} {job_id}"


def make_parser(*, everything: bool = True) -> Parser:
    """The options; without ``everything`` only those that most calls have."""
    parser = Parser(
        prog="wrk",
        usage="wrk [options] WORKSPACE [PROMPT ...]",
        description="Queue prompts in a workspace and print the jobs' ids. A daemon (nrvnad) answers them.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("workspace", metavar="WORKSPACE", help="the workspace's folder")
    words = "words of the prompt; a last - is standard input"
    parser.add_argument("prompt", nargs="*", default=[], metavar="PROMPT", help=words)
    add = parser.add_argument
    add("-f", "--file", action="append", default=[], metavar="FILE", help="put FILE, with its name, under the words")
    add("-w", "--wait", action="store_true", help="wait, and print the answer in place of the id")
    add("--init", action="store_true", help="make the workspace first if it does not exist")
    pile = parser.add_argument_group("many jobs in one call").add_mutually_exclusive_group()
    pile.add_argument("--lines", metavar="FILE", help="a job for each line of FILE, - for standard input")
    pile.add_argument(
        "--jsonl", metavar="FILE", help="a job for each line of FILE, a JSON object; - for standard input"
    )
    pile.add_argument("--batch", metavar="FILE", help="the requests of an OpenAI batch file; prints the batch's id")
    pile.add_argument(
        "--each", action="append", metavar="PATTERN", help="a job for each file that matches, as in 'src/**/*.py'"
    )
    add = parser.add_argument_group("how it is queued").add_argument
    add("--again", action="store_true", help="with --batch: queue the file anew if it was queued before")
    add(
        "--template",
        metavar="TEXT",
        help="the prompt, with {line}; with {file} (name and content), {path}, {name}, {stem}, {text}; "
        "or with an object's fields",
    )
    add("--tag", action="append", default=[], metavar="TAG", help="a word to find it by; several, or A,B")
    add("--priority", metavar="N", help="start before jobs of a lower one: -100 to 100, default 0")
    add("--after", action="append", default=[], metavar="ID", help="start when that job is done; several, or a list")
    add("--key", metavar="KEY", help="whatever is queued with this KEY again is the same job")
    add("--timeout", metavar="TIME", help="give it up after so long at work: 90s, 15m, 2h")
    add("--model", metavar="NAME", help="leave it to a daemon whose model file has this name")
    if everything:
        # Imported here: it takes longer than all the rest of what most calls do.
        from nrvna.ask import add_options

        add_options(parser)
    return parser


def read_orders(options: argparse.Namespace, workspace: Workspace, *, everything: bool) -> list[Order]:
    """What is asked of each copy of a prompt, still without it.

    Raises SettingError or JobError, JobNotFoundError, and OSError for a file that cannot be read.
    """
    if options.model == "":
        raise SettingError("--model is '', but must be the name of a daemon's model file")
    after: list[str] = []
    if names := _words_of(options.after):
        # Imported here: few jobs come after others.
        from nrvna.selection import Selection, select

        after = [job.id for job in select(workspace, Selection(tuple(names)))]
    timeout = None
    if options.timeout is not None:
        from nrvna.durations import parse_duration

        timeout = parse_duration(options.timeout, "--timeout", MAX_TIMEOUT_S)
    order = Order(
        b"",
        model=options.model,
        priority=_whole_number(options.priority, "--priority") if options.priority is not None else 0,
        after=tuple(dict.fromkeys(after)),
        timeout=timeout,
    )
    order.check()
    if not everything:
        return [order]
    from nrvna import ask

    return [order._replace(settings=own, task=ask.task_of(options)) for own in ask.settings_of(options)]


def _whole_number(text: str, given_as: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"{given_as} is {shown(text)}, but must be a whole number") from None


def read_recipe(options: argparse.Namespace, orders: list[Order]) -> Recipe:
    """What becomes of each row of a pile. Raises as :func:`read_orders`."""
    from nrvna.pile import FILE_FIELDS, LINE_FIELDS, Recipe
    from nrvna.prompts import Template, quoted_file

    words: list[str] = options.prompt
    if options.each and words and all(os.path.isfile(word) for word in words):
        raise SettingError(
            f"quote the pattern, as in --each 'src/*.py': the shell made {words[0]!r} and others of it"
        )
    template = Template(options.template, "--template") if options.template is not None else None
    if template and words:
        raise SettingError(f"--template is the whole prompt: put {' '.join(words)[:40]!r} into it")
    key = Template(options.key, "--key") if options.key is not None else None
    if key and not key.names:
        raise SettingError(f"--key {options.key!r} would be that of every job: give it a field, as {{line}}")
    tags = [Template(tag, "--tag") for tag in _words_of(options.tag)]
    known = {"lines": LINE_FIELDS, "each": FILE_FIELDS}
    for name, fields in known.items():
        for each in (template, key, *tags):
            if each and getattr(options, name) is not None:
                each.check(fields)
    return Recipe(words, [quoted_file(path) for path in options.file], template, orders, key, tags)


def _words_of(given: list[str]) -> list[str]:
    """An option's words, whether it was given several times or with a list."""
    return [word for text in given for word in text.replace(",", " ").split()]


def queue_pile(options: argparse.Namespace, workspace: Workspace, orders: list[Order]) -> tuple[list[str], int]:
    """A job for each row of a pile; the ids, and how many rows cannot run.

    Raises what submitting does, and OSError.
    """
    # Imported here: most calls queue one prompt.
    from nrvna import pile

    tell = _say_nothing if options.wait else print_ids

    recipe = read_recipe(options, orders)
    if options.each:
        return pile.queue_pile(workspace, pile.files(options.each), recipe, tell)
    if options.lines is not None:
        return pile.queue_pile(workspace, pile.lines(_opened(options.lines)), recipe, tell)
    return pile.queue_pile(workspace, pile.objects(_opened(options.jsonl)), recipe, tell)


def print_ids(ids: list[str]) -> None:
    """Raises OSError if standard output does not take them."""
    if ids:
        print("\n".join(ids), flush=True)


def _say_nothing(_: list[str]) -> None:
    """Who waits is given the answers."""


def queue_batch_file(options: argparse.Namespace, workspace: Workspace, orders: list[Order]) -> int:
    """The requests of a batch file; the exit code. Raises as submitting does, and OSError."""
    # Imported here: it reads the table of settings.
    from nrvna.batch.queueing import queue_batch

    names = {"prompt": "a prompt", **{name: f"--{name}" for name in ("file", "template", "key", "wait")}}
    surplus = [called for name, called in names.items() if getattr(options, name)] + ["-n"] * (len(orders) > 1)
    if surplus:
        raise SettingError(f"{' and '.join(surplus)} has no place beside --batch: its file says what is asked")
    base = orders[0]._replace(tags=tuple(_words_of(options.tag)))
    return queue_batch(workspace, options.batch, base=base, again=options.again)


def _opened(path: str) -> int:
    if path == "-":
        return sys.stdin.fileno()
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def queue_one(options: argparse.Namespace, workspace: Workspace, orders: list[Order]) -> list[str]:
    """A job, or copies of it, of words, files and what is piped in. Raises as submitting does, and OSError."""
    words: list[str] = options.prompt
    if options.template is not None:
        raise SettingError("--template goes with --lines, --jsonl or --each: without them words are enough")
    piped = None
    if words[-1:] == ["-"] or not (words or options.file or sys.stdin.isatty()):
        words = words[:-1]
        piped = read_given(sys.stdin.buffer, MAX_PROMPT_BYTES)
    elif not (words or options.file):
        raise JobError("no prompt: name one after the workspace, or pipe one in")
    elif pipe_is_waiting():
        # In a shell's loop it is the loop's: it is left alone, but not without a word.
        print("wrk: standard input is not part of this prompt; a last - would put it there", file=sys.stderr)
    files = []
    if options.file:
        # Imported here: most prompts are words.
        from nrvna.prompts import quoted_file

        files = [quoted_file(path) for path in options.file]
    parts = [part_of_words(" ".join(words), waits=bool(orders[0].after))] if words else []
    parts += [Part(text) for text in (*files, piped) if text is not None]
    prompt = compose(parts)
    made = copies(check_prompt(prompt.text), orders, _words_of(options.tag), options.key, prompt.results)
    return workspace.submit_all(made)


def wait_for(workspace: Workspace, ids: list[str]) -> int:
    """``wrk -w``: the answers, in the order of their prompts; the exit code. Whoever stops waiting stops no job.

    On a terminal a single one is printed as it grows.
    """
    # Imported here: most go on working.
    from nrvna.collect import follow, print_answers

    try:
        if len(ids) == 1 and sys.stdout.isatty():
            return follow(workspace, ids[0])
        return print_answers(workspace, ids, wait=True)
    except BrokenPipeError:
        # The reader has seen enough.
        abandon_stdout()
        return 0
    except KeyboardInterrupt:
        print(f"\nwrk: it goes on; collect with: flw -w {workspace.path} {' '.join(ids[:3])}", file=sys.stderr)
        raise


def main(argv: list[str] | None = None) -> int:
    open_streams("wrk")
    given = sys.argv[1:] if argv is None else argv
    everything = any(word.startswith("-") and word.split("=")[0] not in _PLAIN_OPTIONS for word in given)
    parser = make_parser(everything=everything)
    options = parser.read(given)
    workspace = Workspace(options.workspace)
    is_pile = any(getattr(options, name) is not None for name in _PILES)
    ids: list[str] = []
    try:
        if options.init:
            workspace.create()
            if not (options.prompt or options.file or is_pile):
                return 0
        try:
            workspace.check()
        except WorkspaceError as error:
            parser.exit(2, f"wrk: {error}\n")
        if options.again and options.batch is None:
            raise SettingError("--again is for a file that was queued before: it goes with --batch FILE")
        orders = read_orders(options, workspace, everything=everything)
        if options.batch is not None:
            return queue_batch_file(options, workspace, orders)
        if is_pile:
            ids, refused = queue_pile(options, workspace, orders)
        else:
            ids, refused = queue_one(options, workspace, orders), 0
            if not options.wait:
                print_ids(ids)
        if options.wait:
            return max(2 if refused else 0, wait_for(workspace, ids))
    except (SettingError, JobError, JobNotFoundError) as error:
        parser.exit(2, f"wrk: {error}\n")
    except WorkspaceError as error:
        parser.exit(2 if isinstance(error, NoFolderError) else 1, f"wrk: {error}\n")
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename:
            parser.exit(2, f"wrk: cannot read {error.filename}: {error.strerror}\n")
        abandon_stdout()
        about = f"{ids[0]} is queued, but " if ids else ""
        parser.exit(1, f"wrk: {about}standard output failed: {error.strerror}\n")
    if sys.stderr.isatty() and ids and not options.wait:
        print(encouragement(workspace, ids[-1]), file=sys.stderr)
    return 2 if refused else 0


def run() -> None:
    """The installed command ``wrk``."""
    sys.exit(main())


if __name__ == "__main__":
    run()

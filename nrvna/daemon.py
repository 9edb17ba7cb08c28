"""The command ``nrvnad``: serve a workspace, or look after the daemons that do."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from pathlib import Path

from nrvna import __version__, logs
from nrvna.arguments import Parser
from nrvna.config import SETTINGS, Config, add_options, from_environment
from nrvna.engine.process import run_engine
from nrvna.errors import ModelNotFoundError, NoFolderError, NrvnaError, SettingError, WorkspaceError, shown
from nrvna.placement import first_place
from nrvna.service import Starter, log_to
from nrvna.serving import serve
from nrvna.terminal import open_streams
from nrvna.workspace import Workspace

log = logging.getLogger("nrvna")

# What --tune is given, where nobody says otherwise.
TUNE_S = 120
_MAX_TUNE_S = 86_400


def run_in_foreground(model: Path, workspace: Workspace, config: Config) -> int:
    """Serve until a signal comes; returns the exit code, with the reason on standard error if it is not 0."""
    starter = Starter()
    try:
        if config.log_file:
            log_to(config.log_file)
    except OSError as error:
        starter.tell({"failed": f"cannot write to the log file {config.log_file}: {error.strerror}"})
        print(f"nrvnad: cannot write to the log file {config.log_file}: {error.strerror}", file=sys.stderr)
        return 2
    logs.configure(config)
    try:
        serve(model, workspace, config, starter)
    except (NrvnaError, OSError) as error:
        starter.tell({"failed": str(error)})
        if config.log_json:
            log.error("%s", error)
        else:
            print(f"nrvnad: {error}", file=sys.stderr)
        return 2 if isinstance(error, ModelNotFoundError | NoFolderError) else 1
    return 0


def check(model: Path, config: Config) -> int:
    """Print whether a model will work here; 0 if so, else 1."""
    try:
        return 1 if run_engine("--check", config, path=str(model)).returncode else 0
    except KeyboardInterrupt:
        return 130


EPILOG = """\
Queue jobs with `wrk WORKSPACE PROMPT`, collect the answers with `flw WORKSPACE`. Jobs that are unfinished when it
stops go back into the queue. A second model in a workspace must be --named; jobs ask for it with `wrk --model NAME`.

examples:
  nrvnad ~/models/model.gguf ~/work              answer the jobs of the folder ~/work
  nrvnad --daemonize ~/models/model.gguf ~/work  the same, by itself: this returns once it is ready
  nrvnad --status ~/work                         whether one runs, and with what
  nrvnad --stop ~/work                           end it
  nrvnad --check ~/models/model.gguf             what the model is and whether it will work here
  nrvnad --tune ~/models/model.gguf              which settings are faster on this machine
  nrvnad --gpus 0,1 ~/models/model.gguf ~/work   with an engine on each of two GPUs, sharing the queue
  nrvnad --temp 0 ~/models/model.gguf ~/work     with a setting for the jobs that have none of their own

exit codes: 0 stopped as asked, or ready with --daemonize, 1 it could not start, with --check the model will
not work, with --stop one did not end, 2 usage, or no such model file, 3 with --status none runs, 4 with
--status it is not ready yet
"""
# Ways to call it that take one word, and which.
_ONE_WORD = {"check": "MODEL", "tune": "MODEL", "status": "WORKSPACE", "stop": "WORKSPACE"}
_WAYS = {
    "daemonize": "return when it is ready, and let it go on by itself; its log is WORKSPACE/.nrvna/nrvnad.log",
    "status": "say how the daemons of WORKSPACE are doing",
    "stop": "end the daemons of WORKSPACE, and wait until they have",
    "check": "say whether MODEL will work here, and exit 0 or 1",
    "tune": "try MODEL with several settings on this machine, and print those worth exporting",
}
_USAGE = """\
nrvnad [settings] [--daemonize] MODEL WORKSPACE
       nrvnad --status | --stop WORKSPACE
       nrvnad [settings] --check | --tune MODEL"""


def make_parser() -> Parser:
    """The command line of nrvnad. The first of two words is MODEL, one alone is what its option says."""
    parser = Parser(
        prog="nrvnad",
        usage=_USAGE,
        description="Answer the jobs of a workspace with a local GGUF model, until Ctrl-C.",
        epilog=EPILOG,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a .gguf file")
    parser.add_argument("workspace", nargs="?", metavar="WORKSPACE", help="a folder; made if it does not exist")
    ways = parser.add_mutually_exclusive_group()
    for way, words in _WAYS.items():
        ways.add_argument(f"--{way}", dest="way", action="store_const", const=way, help=words)
    parser.add_argument(
        "--within", metavar="SECONDS", help=f"how long --tune may take at most; {TUNE_S} unless told otherwise"
    )
    parser.add_argument("--version", action="version", version=f"nrvna {__version__}")
    add_options(parser)
    return parser


def _check_words(parser: Parser, options: Namespace) -> None:
    """Ends the process if the words and options do not suit the way that was chosen."""
    way = options.way
    if wanted := _ONE_WORD.get(way):
        if options.model is None:
            parser.error(f"--{way} needs a {wanted}: nrvnad --{way} {wanted}")
        if options.workspace is not None:
            hint = "; a text that ends answers is --stop-text" if way == "stop" else ""
            parser.error(f"--{way} takes a {wanted} alone, not {options.workspace!r} as well{hint}")
    elif options.model is None:
        parser.error("name a model and a workspace: nrvnad MODEL WORKSPACE")
    elif not options.workspace:
        parser.error("name a workspace too: nrvnad MODEL WORKSPACE")
    if wanted == "WORKSPACE":
        for setting in SETTINGS:
            if getattr(options, setting.field) is not None:
                parser.error(f"{setting.daemon_option} is for a daemon that starts, not for --{way}")
    if options.within is not None and way != "tune":
        parser.error("--within is for --tune alone")


def main(argv: list[str] | None = None) -> int:
    open_streams("nrvnad")
    parser = make_parser()
    given = sys.argv[1:] if argv is None else argv
    options = parser.read(given)
    _check_words(parser, options)
    if _ONE_WORD.get(options.way) == "WORKSPACE":
        return _look_after(options.way, Workspace(options.model))
    texts = {setting: getattr(options, setting.field) for setting in SETTINGS}
    try:
        config = from_environment({setting.field: text for setting, text in texts.items()})
        within_s = tune_seconds(options.within)
    except SettingError as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return 2
    model = Path(options.model)
    if options.way == "check":
        return check(model, first_place(config))
    # Imported here: most daemons are started without.
    if options.way == "tune":
        from nrvna.tune import tune

        return tune(model, first_place(config), within_s)
    workspace = Workspace(options.workspace)
    if options.way == "daemonize":
        from nrvna.control import daemonize

        return daemonize(model, workspace, config, texts)
    return run_in_foreground(model, workspace, config)


def tune_seconds(text: str | None) -> int:
    """How long ``--tune`` may take. Raises SettingError."""
    if text is None:
        return TUNE_S
    # Python reads no number of thousands of digits.
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= _MAX_TUNE_S:
        allowed = f"a whole number of seconds from 1 to {_MAX_TUNE_S}"
        raise SettingError(f"--within is {shown(text)}, but must be {allowed}")
    return int(text)


def _look_after(way: str, workspace: Workspace) -> int:
    """``--stop`` and ``--status``."""
    from nrvna import control

    try:
        return control.stop(workspace) if way == "stop" else control.status(workspace)
    except WorkspaceError as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return control.USAGE
    except KeyboardInterrupt:
        return control.INTERRUPTED


def run() -> None:
    """The installed command ``nrvnad``."""
    sys.exit(main())


if __name__ == "__main__":
    run()

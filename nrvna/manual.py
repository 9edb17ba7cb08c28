"""The tools' manual pages, made from their arguments.

``python -m nrvna.manual wrk`` prints one, for ``man -l -``; ``--write docs/man`` writes all of them anew.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

from nrvna import __version__
from nrvna.arguments import Parser
from nrvna.config import SETTINGS
from nrvna.tools import Tool, all_tools, help_of, options_of, places_of, summary_of, value_of

_SETTINGS = {setting.field: setting for setting in SETTINGS}
# What stands in for characters that roff reads as its own, or shows as others than they are.
_ESCAPES = {"\\": r"\[rs]", "-": r"\-", "'": r"\[aq]", "`": r"\[ga]", "^": r"\[ha]", "~": r"\[ti]", '"': r"\[dq]"}

# "0 done, 1 failed", or one on each line.
_EXIT_CODE = re.compile(r"(?:^|[,;])\s*(\d+)\s+(.*?)(?=[,;\n]\s*\d+\s|\s*\Z)", re.DOTALL | re.MULTILINE)

# The day of the version that is in __version__.
RELEASED = "2026-11-25"
_LINE = 72

FILES = {
    "WORKSPACE/input/ID/": "a job in the queue: prompt.txt, and job.json with what else it asks for",
    "WORKSPACE/processing/DAEMON/ID/": "one that a daemon has taken, with its tokens so far",
    "WORKSPACE/output/ID/": "one that is done: result.txt, the answer, and receipt.json, how it came about",
    "WORKSPACE/failed/ID/": "one that failed: error.txt, the reason, and its prompt",
    "WORKSPACE/.nrvna/context.txt": "put before every job of the workspace as its system message",
}
DAEMON_FILES = {
    "~/.local/share/nrvna/": "llama.cpp as it was built, and models that were fetched; XDG_DATA_HOME moves it",
}


def man_page(tool: Tool, *, has_environment: bool, files: dict[str, str], see_also: list[str]) -> str:
    """A page of section 1 in roff's man macros, ASCII only. ``has_environment``: the tool reads nrvna's variables."""
    parser = tool.parser
    description, sections = _read_epilog(parser.epilog or "")
    lines = [f'.TH {parser.prog.upper()} 1 "{RELEASED}" "nrvna {__version__}" "User Commands"']
    # Words of a command line are not broken, and none is stretched.
    lines += [".nh", ".ad l"]
    lines += [".SH NAME", rf"{_plain(parser.prog)} \- {_plain(summary_of(parser))}"]
    lines += [".SH SYNOPSIS", ".nf", *map(_synopsis, _usages(parser)), ".fi"]
    lines += [".SH DESCRIPTION", *_text(parser.description or "")]
    for paragraph in description:
        lines += [".PP", *_text(paragraph)]
    if tool.verbs:
        lines += [".SH COMMANDS"]
        for name, verb in tool.verbs.items():
            lines += [f".SS {_plain(name)}", ".nf", *map(_synopsis, _usages(verb)), ".fi", ".PP"]
            lines += [*_text(verb.description or ""), *_arguments(verb)]
    lines += [".SH OPTIONS", *_groups(parser)]
    if has_environment:
        lines += [
            ".SH ENVIRONMENT",
            *_text("An option wins over its variable. An empty variable is one that is unset."),
        ]
        for action in options_of(parser):
            if setting := _SETTINGS.get(action.dest):
                default = str(setting.shown_default or setting.default).strip("`")
                lines += [
                    ".TP",
                    _bold(setting.variable),
                    *_text(f"as {action.option_strings[0]}; default: {default}"),
                ]
    for heading, content in sections.items():
        if heading == "verbs" and tool.verbs:
            # Told of at length above.
            continue
        if heading == "exit codes":
            lines += [".SH EXIT STATUS"]
            for code, meaning in _EXIT_CODE.findall(content):
                lines += [".TP", _bold(code), *_text(meaning)]
        else:
            lines += [f".SH {_plain(heading.upper())}", *_pairs(content)]
    lines += [".SH FILES"]
    for name, about in files.items():
        lines += [".TP", _marked(name), *_text(about)]
    lines += [".SH SEE ALSO", *(f".BR {_plain(name)} (1){',' if name != see_also[-1] else ''}" for name in see_also)]
    return "\n".join(lines) + "\n"


def _read_epilog(epilog: str) -> tuple[list[str], dict[str, str]]:
    """Its paragraphs of prose, and what stands under each heading: a line with a colon behind it, and lines below.

    Exit codes may go on behind the colon. Of a heading its beginning counts, up to a comma.
    """
    prose: list[str] = []
    sections: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", epilog.strip("\n")):
        heading = re.match(r"([^\n]+):\n(?=  )|(exit codes):\s", paragraph)
        if heading:
            sections[(heading[1] or heading[2]).partition(",")[0]] = paragraph[heading.end() :]
        elif paragraph.strip():
            prose.append(paragraph)
    return prose, sections


def _pairs(content: str) -> list[str]:
    """Lines of a command or word, and behind two spaces what it does."""
    lines: list[str] = []
    for line in content.splitlines():
        shown, _, about = re.sub(r"\s{2,}", "\0", line.strip()).partition("\0")
        lines += [".TP", _bold(shown), *_text(about)] if about else [".PP", _bold(shown)]
    # A heading begins a paragraph by itself.
    return lines[1:] if lines[:1] == [".PP"] else lines


def _usages(parser: argparse.ArgumentParser) -> list[str]:
    if parser.usage:
        return [line.strip() for line in parser.usage.replace("%(prog)s", parser.prog).splitlines()]
    words = [parser.prog, "[options]"]
    for action in places_of(parser):
        several = {"*": "[{} ...]", "+": "{} ...", "?": "[{}]"}
        words.append(several.get(str(action.nargs), "{}").format(value_of(action)))
    return [" ".join(words)]


def _synopsis(usage: str) -> str:
    return " ".join(_marked(word, is_tool=number == 0) for number, word in enumerate(usage.split()))


def _marked(words: str, *, is_tool: bool = False) -> str:
    """Bold what is typed as it stands, italic what stands for something else."""
    if is_tool:
        return _bold(words)
    parts = re.split(r"(\[options\]|\[settings\]|[\[\]]|\.\.\.$|\b[A-Z][A-Z_]+\b|\b[A-Z]\b)", words)
    marked = []
    for part in parts:
        if re.fullmatch(r"[A-Z][A-Z_]*", part):
            marked.append(rf"\fI{_plain(part)}\fR")
        else:
            marked.append(_plain(part) if re.fullmatch(r"[\[\]]|\[\w+\]|\.\.\.|", part) else _bold(part))
    return "".join(marked)


def _groups(parser: argparse.ArgumentParser) -> list[str]:
    lines: list[str] = []
    for group in parser._action_groups:
        entries = [line for action in group._group_actions for line in _entry(parser, action)]
        if not entries:
            continue
        if group.title == "positional arguments":
            lines += [".SS Arguments"]
        elif group.title:
            lines += [f".SS {_plain(group.title[:1].upper() + group.title[1:])}", *_text(group.description or "")]
        lines += entries
    return lines


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    return [line for action in (*places_of(parser), *options_of(parser)) for line in _entry(parser, action)]


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    if action.help == argparse.SUPPRESS or action.nargs == argparse.PARSER:
        return []
    value = rf"\fI{_plain(value_of(action))}\fR" if value_of(action) else ""
    names = ", ".join(_bold(name) for name in action.option_strings)
    about = help_of(parser, action)
    if action.metavar == "X" and action.dest in _SETTINGS:
        about += f". Takes {_SETTINGS[action.dest].range}."
    return [".TP", " ".join(filter(None, (names, value))), *_text(about)]


def _bold(text: str) -> str:
    return rf"\fB{_plain(text)}\fR"


def _plain(text: str) -> str:
    r"""Text as roff shows it: "-" as the one that is typed, nothing taken for a command."""
    shown = "".join(_ESCAPES.get(char) or (char if char.isascii() else rf"\[u{ord(char):04X}]") for char in text)
    # Lists without spaces may go on in the next line.
    return re.sub(r";(?=\S)", r";\\:", shown)


def _text(prose: str) -> list[str]:
    """Prose as lines of roff, each sentence on lines of its own; what stands in backticks is bold."""
    lines: list[str] = []
    for sentence in re.split(r"(?<=[.:;?!]) (?=[A-Z])", " ".join(prose.split())):
        lines += textwrap.wrap(sentence, _LINE, break_long_words=False, break_on_hyphens=False)
    escaped = "\n".join((r"\&" if line.startswith(".") else "") + _plain(line) for line in lines)
    return re.sub(r"\\\[ga\](.*?)\\\[ga\]", r"\\fB\1\\fR", escaped, flags=re.DOTALL).splitlines()


def page_of(name: str) -> str:
    """The page of one of the tools. Raises KeyError for another name."""
    tools = all_tools()
    serves = name == "nrvnad"
    files = FILES | DAEMON_FILES if serves else FILES
    others = [other for other in tools if other != name]
    return man_page(tools[name], has_environment=serves, files=files, see_also=others)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m nrvna.manual", description="Print the manual page of a tool, for man -l -.")
    parser.add_argument("tool", nargs="?", choices=list(all_tools()), help="the tool")
    parser.add_argument("--write", metavar="FOLDER", help="write the pages of all tools into FOLDER instead")
    options = parser.parse_args(argv)
    if options.write:
        for name in all_tools():
            Path(options.write, f"{name}.1").write_text(page_of(name))
    elif options.tool:
        sys.stdout.write(page_of(options.tool))
    else:
        parser.error("name a tool")
    return 0


if __name__ == "__main__":
    sys.exit(main())

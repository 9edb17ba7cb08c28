"""Completion for fish, 3.1 or newer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from nrvna.completion.kinds import FILE, FOLDER, JOB, MODEL, TEXT, WORD, kind_of, parsers_of, takes_many
from nrvna.tools import Tool, help_of, options_of, places_of, summary_of

_SCRIPT = r"""# Completion of {names} for fish. In config.fish: python -m nrvna.completion fish | source

# Prints the words before the cursor that are neither options nor their values. TAKES are the options with values.
function __nrvna_words
    set -l words (commandline -opc)
    set -l value no
    set -l only_places no
    for word in $words[2..-1]
        if test $value = yes
            set value no
        else if test "$only_places$word" = no--
            set only_places yes
        else if test $only_places = no; and string match -q -- '-?*' $word
            contains -- $word $argv; and set value yes
        else
            printf '%s\n' $word
        end
    end
    true
end

# Prints the verb of a tool, if one was given, and then the other words.
function __nrvna_read --argument-names tool
    set -l verbs
    set -l takes
    switch $tool
{tables}
    end
    set -l words (__nrvna_words $takes)
    if set -q words[1]; and contains -- $words[1] $verbs
        printf '%s\n' $words
    else
        printf '%s\n' '' $words
    end
end

function __nrvna_has_verb --argument-names tool verb
    set -l words (__nrvna_read $tool)
    test "$words[1]" = "$verb"
end

# Whether the cursor is at a place, counted from 0; "from" a place, whether there or after it.
function __nrvna_is_at --argument-names tool verb place from
    set -l words (__nrvna_read $tool)
    test "$words[1]" = "$verb"; or return 1
    set -l here (math (count $words) - 1)
    test $here -eq $place; or test "$from" = from -a $here -ge $place
end

# The jobs of the workspace that was named first, the newest first.
function __nrvna_jobs --argument-names tool
    set -l words (__nrvna_read $tool)
    set -q words[2]; or return
    set -l workspace (string replace -r '^~(?=/|$)' $HOME -- $words[2])
    set -l ids $workspace/input/* $workspace/processing/*/* $workspace/output/* $workspace/failed/*
    set -q ids[1]; or return
    string replace -r '.*/' '' -- $ids | string match -- (commandline -ct)'*' | sort -ru | head -n 50
end

function __nrvna_folders
    __fish_complete_directories (commandline -ct) ''
end

function __nrvna_models
    __fish_complete_path (commandline -ct) | string match -r '.*(?:\.gguf|/)(?:\t.*)?$'
end

{completions}
"""
_ACTIONS = {
    FILE: "-r -F",
    FOLDER: "-x -a '(__nrvna_folders)'",
    MODEL: "-x -a '(__nrvna_models)'",
    TEXT: "-x",
}


def script(tools: Mapping[str, Tool]) -> str:
    """What fish must read to complete these tools."""
    tables, lines = [], []
    for name, tool in tools.items():
        parsers = [tool.parser, *tool.verbs.values()]
        takes = {each for parser in parsers for action in options_of(parser) if action.nargs != 0
                 for each in action.option_strings}  # fmt: skip
        tables += [f"        case {name}", f"            set verbs {' '.join(tool.verbs)}".rstrip()]
        tables += [f"            set takes {' '.join(sorted(takes))}".rstrip()]
        lines.append(f"complete -c {name} -f")
        for verb, parser in tool.verbs.items():
            lines.append(f"complete -c {name} -n {_at(name, '', 0)} -a {verb} -d {_quoted(summary_of(parser))}")
    for name, verb, parser in parsers_of(tools):
        for number, action in enumerate(places_of(parser)):
            where = _at(name, verb, number, many=takes_many(action))
            if kind_of(action).name != TEXT:
                lines.append(f"complete -c {name} -n {where} {_action(name, action)}")
        where = f" -n {_quoted(f'__nrvna_has_verb {name} {_quoted(verb)}')}" if tools[name].verbs else ""
        for action in options_of(parser):
            names = [
                f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}" for each in action.option_strings
            ]
            value = [_action(name, action)] if action.nargs != 0 else []
            about = ["-d", _quoted(help_of(parser, action))]
            lines.append(" ".join([f"complete -c {name}{where}", *names, *value, *about]))
    text = _SCRIPT.replace("{names}", " ".join(tools)).replace("{tables}", "\n".join(tables))
    return text.replace("{completions}", "\n".join(lines))


def _at(name: str, verb: str, number: int, *, many: bool = False) -> str:
    return _quoted(f"__nrvna_is_at {name} {_quoted(verb)} {number}{' from' if many else ''}")


def _action(tool: str, action: argparse.Action) -> str:
    kind = kind_of(action)
    if kind.name == WORD:
        return f"-x -a {_quoted(' '.join(kind.words))}"
    return f"-x -k -a '(__nrvna_jobs {tool})'" if kind.name == JOB else _ACTIONS[kind.name]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

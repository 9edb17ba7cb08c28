"""Completion for zsh."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from nrvna.completion.kinds import FILE, FOLDER, JOB, MODEL, TEXT, WORD, kind_of, takes_many
from nrvna.tools import Tool, help_of, options_of, places_of, summary_of, value_of

_SCRIPT = r"""#compdef {names}
# Completion of {names} for zsh. In ~/.zshrc, after compinit: source <(python -m nrvna.completion zsh)

# The jobs of the workspace that was named first, the newest first.
_nrvna_jobs() {
  local workspace=${~${(Q)line[1]}} expl
  local -a ids
  [[ -n $workspace ]] || return 1
  ids=( $workspace/{input,processing/*,output,failed}/${(b)${(Q)PREFIX}}*(N:t) )
  ids=( ${(Ou)ids} )
  _wanted -V jobs expl job compadd -a 'ids[1,50]'
}

{functions}

_nrvna() {
  _"nrvna_$service"
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _nrvna "$@"
else
  compdef _nrvna {names}
fi
"""
_ACTIONS = {FILE: "_files", FOLDER: "_directories", MODEL: '_files -g "*.gguf(-.)"', JOB: "_nrvna_jobs", TEXT: " "}


def script(tools: Mapping[str, Tool]) -> str:
    """What zsh must read to complete these tools."""
    functions = "\n\n".join(_function(name, tool) for name, tool in tools.items())
    return _SCRIPT.replace("{names}", " ".join(tools)).replace("{functions}", functions)


def _function(name: str, tool: Tool) -> str:
    lines = [f"_nrvna_{name}() {{"]
    if tool.verbs:
        lines += ["  if (( CURRENT > 2 )); then", "    case $words[2] in"]
        for verb, parser in tool.verbs.items():
            lines += [f"    {verb})", "      shift words", "      (( CURRENT-- ))"]
            lines += [*_arguments(parser, "      "), "      return", "      ;;"]
        lines += ["    esac", "  fi"]
        verbs = " ".join(_quoted(f"{verb}:{summary_of(parser)}") for verb, parser in tool.verbs.items())
        lines += [f"  local -a verbs=({verbs})"]
    lines += [*_arguments(tool.parser, "  ", verbs=bool(tool.verbs)), "}"]
    return "\n".join(lines)


def _arguments(parser: argparse.ArgumentParser, indent: str, *, verbs: bool = False) -> list[str]:
    specs = [_option(parser, action) for action in options_of(parser)]
    for number, action in enumerate(places_of(parser), 1):
        if verbs and number == 1:
            specs.append(_quoted("1: :{ _describe -t verbs verb verbs; _directories }"))
            continue
        place = "*" if takes_many(action) else f"{number}:" if action.nargs == "?" else str(number)
        specs.append(_quoted(f"{place}:{_name(action)}:{_action(action)}"))
    return [
        f"{indent}_arguments -s -S \\",
        *(f"{indent}  {spec} \\" for spec in specs[:-1]),
        f"{indent}  {specs[-1]}",
    ]


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """As _arguments has it: what it excludes, its names, its help, what it takes."""
    again = isinstance(action, argparse._AppendAction | argparse._CountAction | argparse._ExtendAction)
    others = {name for group in parser._mutually_exclusive_groups if action in group._group_actions
              for other in group._group_actions for name in other.option_strings}  # fmt: skip
    excluded = "*" if again else f"({' '.join(sorted(others | set(action.option_strings)))})"
    about = (
        help_of(parser, action).translate({ord("["): "(", ord("]"): ")"}).replace("\\", "\\\\").replace(":", r"\:")
    )
    value, ends = "", ["" for _ in action.option_strings]
    if action.nargs != 0:
        value = f":{_name(action)}:{_action(action)}"
        ends = ["=" if name.startswith("--") else "+" for name in action.option_strings]
    names = [name + end for name, end in zip(action.option_strings, ends, strict=True)]
    shown = names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
    return f"{_quoted(excluded)}{shown}{_quoted(f'[{about}]{value}')}"


def _name(action: argparse.Action) -> str:
    return value_of(action).replace(":", r"\:")


def _action(action: argparse.Action) -> str:
    kind = kind_of(action)
    return f"({' '.join(kind.words)})" if kind.name == WORD else _ACTIONS[kind.name]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"'\''") + "'"

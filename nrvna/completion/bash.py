"""Completion for bash, 4.4 or newer."""

from __future__ import annotations

from collections.abc import Mapping

from nrvna.completion.kinds import kind_of, parsers_of, takes_many
from nrvna.tools import Tool, options_of, places_of

# In both tables a key is the tool, a space and its verb if there is one, a colon, and an option or a place's number.
_SCRIPT = r"""# Completion of {names} for bash. In ~/.bashrc: source <(python -m nrvna.completion bash)

# Sets kind, and words, to what an option or a place takes; fails if it takes nothing.
_nrvna_kind() {
    words=
    case $1 in
{kinds}
    *) return 1 ;;
    esac
}

# Sets words to the options, or else the verbs, of a tool.
_nrvna_options() {
    case $1 in
{options}
    esac
}

_nrvna_verbs() {
    words=
    case $1 in
{verbs}
    esac
}

# Prints a word as the shell will read it, without running anything; fails if it would have to.
_nrvna_unquoted() {
    local whole='^([^][[:space:]"'\''\\`;&|<>(){}*?$]|\\.|"[^"`$]*"|'\''[^'\'']*'\''|\$[A-Za-z_][A-Za-z_0-9]*)*$' read
    [[ $1 =~ $whole ]] && eval "read=$1" && printf '%s' "$read"
}

# Prints the jobs of a workspace whose ids begin so, the newest first.
_nrvna_jobs() (
    workspace=$(_nrvna_unquoted "$1") || exit
    set +u
    shopt -u failglob
    shopt -s nullglob
    set -- "$workspace"/{input,processing/*,output,failed}/"$2"*
    [[ $# == 0 ]] || printf '%s\n' "${@##*/}" | LC_ALL=C command sort -ru | command head -n 50
)

_nrvna() {
    local name=${1##*/} cur=${COMP_WORDS[COMP_CWORD]}
    local tool=$name kind= words= option= workspace= place=0 only_places= word i
    COMPREPLY=()
    [[ $cur == = ]] && cur=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ -n $option ]]; then
            [[ $word == = ]] || option=
        elif [[ -z $only_places && $word == -- ]]; then
            only_places=1
        elif [[ -z $only_places && $word == -?* ]]; then
            _nrvna_kind "$tool:$word" && option=$word
        elif [[ $place == 0 && $tool == "$name" ]] && _nrvna_verbs "$tool" && [[ " $words " == *" $word "* ]]; then
            tool="$tool $word"
        else
            _nrvna_kind "$tool:$place"
            [[ -z $workspace && $kind == folder ]] && workspace=$word
            place=$((place + 1))
        fi
    done
    kind=
    if [[ -n $option ]]; then
        _nrvna_kind "$tool:$option"
    elif [[ -z $only_places && $cur == -* ]]; then
        _nrvna_options "$tool"
        kind=word
    else
        _nrvna_kind "$tool:$place"
        if [[ $place == 0 && $tool == "$name" ]]; then
            _nrvna_verbs "$tool"
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        fi
    fi
    case $kind in
    file) compopt -o default ;;
    folder) compopt -o filenames -o plusdirs ;;
    model)
        compopt -o filenames -o plusdirs
        mapfile -t COMPREPLY < <(compgen -f -X '!*.gguf' -- "$cur")
        ;;
    word) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur") ;;
    job)
        compopt -o nosort
        [[ -n $workspace ]] && mapfile -t COMPREPLY < <(_nrvna_jobs "$workspace" "$cur")
        ;;
    esac
}

complete -F _nrvna {names}
"""


def script(tools: Mapping[str, Tool]) -> str:
    """What bash must read to complete these tools."""
    kinds, options, verbs = [], [], []
    for name, verb, parser in parsers_of(tools):
        tool = f"{name} {verb}".strip()
        kinds += [
            _case([f"{tool}:{each}" for each in action.option_strings], _kind(kind_of(action)))
            for action in options_of(parser)
            if action.nargs != 0
        ]
        for number, action in enumerate(places_of(parser)):
            # Cases are tried in order: what takes many takes what is left.
            patterns = f"'{tool}:'[0-9]*" if takes_many(action) else f"'{tool}:{number}'"
            kinds.append(f"    {patterns}) {_kind(kind_of(action))} ;;")
        flags = " ".join(each for action in options_of(parser) for each in action.option_strings)
        options.append(_case([tool], f"words='{flags}'"))
    for name, about in tools.items():
        if about.verbs:
            verbs.append(_case([name], f"words='{' '.join(about.verbs)}'"))
    parts = {"names": " ".join(tools), "kinds": kinds, "options": options, "verbs": verbs or ["    *) ;;"]}
    text = _SCRIPT
    for part, lines in parts.items():
        text = text.replace("{" + part + "}", lines if isinstance(lines, str) else "\n".join(lines))
    return text


def _case(keys: list[str], action: str) -> str:
    return f"    {' | '.join(map(_quoted, keys))}) {action} ;;"


def _kind(kind: tuple[str, tuple[str, ...]]) -> str:
    name, words = kind
    return f"kind={name} words={_quoted(' '.join(words))}" if words else f"kind={name}"


def _quoted(text: str) -> str:
    return f"'{text}'"

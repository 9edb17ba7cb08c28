"""Renders a chat template in a process of its own: it is a program that somebody else wrote into a model file.

The process has a second of CPU time for each rendering and little memory, and can open nothing: what loops, grows or
gets past jinja2's sandbox ends here, and the engine goes on. Its parent, :class:`ChatTemplate`, says one JSON
object a line on stdin, and gets one for each on stdout:

    {"template": source}                compile it; the answer is {}
    {"variables": {...}, "now": "2026-01-31T12:00:00", "most": 4096}
                                        render it; the answer is {"text": "..."} of that many characters at most
    {"error": "reason"}                 the answer where either failed; a process that was killed gives none
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

# Templates take milliseconds. Of CPU time, so that a busy machine fails none of them.
CPU_S = 1.0
# Python itself takes a tenth.
_MEMORY_BYTES = 1 << 29
# Brings in what Python and jinja2 load on first use: to write a text, and to say where a template failed.
_WARM_UP = """{% macro m(a, b='\\n') %}{{ a | trim ~ b | tojson(indent=1) }}{% endmacro %}{{ m('é', {'a': [1.5]}) }}
{%- set n = namespace(i=0) %}{% for a in [2, 1] | sort %}{% set n.i = n.i + a %}{% if a == 9 %}{% break %}{% endif %}
{%- endfor %}{{ strftime_now('%d %B %Y %Z') }}{% generation %}{{ '%s' | format(n.i) | striptags }}{{ '{}'.format(1) }}
{%- endgeneration %}{{ raise_exception(none.missing.further) }}"""


class Template:
    """A compiled template, in the environment that its author expects: that of transformers' apply_chat_template."""

    def __init__(self, source: str) -> None:
        self._now = datetime.min
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: self._now.strftime(form)
        environment.globals["dict"] = _Dict()
        environment.globals["namespace"] = _Namespace
        self._template = environment.from_string(source)

    def render(self, variables: dict[str, Any], *, now: datetime, most: int) -> str:
        """Raises jinja2.TemplateError for a text of more than ``most`` characters, and whatever a template raises."""
        self._now = now
        pieces = []
        for piece in self._template.generate(variables):
            most -= len(piece)
            if most < 0:
                raise jinja2.TemplateError("its text grows far beyond that of the messages")
            pieces.append(piece)
        return "".join(pieces)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is passed through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own: what is set within is not seen outside, as where the author tried it.
        return jinja2.nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """Stands for ``dict``, of whose class nothing else is to be had."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Namespace(jinja2.utils.Namespace):
    """``namespace``, without names that Python gives a meaning."""

    def __init__(*values: Any, **named: Any) -> None:
        # The signature leaves every name, also "self", to the template.
        self, *rest = values
        given = dict(*rest, **named)
        for name in given:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}, which begins with an underscore")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def main() -> None:
    # Ctrl-C in a terminal is for the parent: this process ends with it, as its stdin then does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(jinja2.TemplateError):
        Template(_WARM_UP).render({}, now=datetime.now(), most=4096)
    # What is there may be used, nothing new is opened: no file, no socket, no program.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    template: Template | None = None
    for line in sys.stdin.buffer:
        request, answer = json.loads(line), dict[str, Any]()
        # The kernel's own action ends the process, also where Python would not come to look for signals.
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            match request:
                case {"template": source}:
                    template = Template(source)
                case {"variables": variables, "now": now, "most": most}:
                    assert template is not None
                    answer["text"] = template.render(variables, now=datetime.fromisoformat(now), most=most)
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except Exception as error:
            # Somebody else's program may fail with anything.
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

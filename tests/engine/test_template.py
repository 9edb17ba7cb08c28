"""Chat templates rendered as their authors see them, and templates that mean harm."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from build_llama import Pin, PinnedSource

from nrvna.engine.sandbox import CPU_S, Template
from nrvna.engine.template import ChatTemplate, TemplateLimitError
from nrvna.errors import TemplateError

NOW = datetime(2026, 1, 31, 12, 30)
NAMES = sorted(file.stem for file in (PinnedSource(Pin.read()).tree() / "models" / "templates").glob("*.jinja"))

# Templates that are rendered differently from transformers, with the reason.
EXCEPTIONS: dict[str, str] = {}

Message = dict[str, Any]


def said(*messages: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in messages]


CHATS = {
    "one message": said(("user", "Hi")),
    "a system message": said(("system", "Be brief."), ("user", "Hi <b>é</b> 'quoted'")),
    "several turns": said(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", " c\n")),
    "a thought": said(("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c")),
    "an answer begun": said(("user", "a"), ("assistant", "b")),
    "two system messages": said(("system", "a"), ("system", "b"), ("user", "c")),
    "a tool's answer": said(("user", "a"), ("assistant", "b"), ("tool", "c")),
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "nothing": [],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "w"}}},
    },
}
VARIABLES: list[dict[str, Any]] = [
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"thinking": True, "reasoning_effort": "low"},
    {"tools": [TOOL], "functions": "none", "datetime": "today"},
]


def outcome(render: Callable[[], str]) -> str:
    """What a template writes, or how it refuses."""
    try:
        return render()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


Reference = Callable[[str, list[Message], dict[str, Any]], str]


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    """transformers' own rendering of (template, messages, variables), on a fixed day."""
    from transformers.utils import chat_template_utils

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:  # noqa: ARG003
            return NOW

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Frozen)

        def render(source: str, messages: list[Message], variables: dict[str, Any]) -> str:
            return str(chat_template_utils.render_jinja_template([messages], chat_template=source, **variables)[0][0])

        yield render


@pytest.mark.parametrize("name", NAMES)
def test_every_template_is_rendered_as_transformers_does(
    name: str, templates: dict[str, str], reference: Reference
) -> None:
    source = templates[name]
    ours = Template(source)
    different = []
    texts = set()
    for chat, messages in CHATS.items():
        for variables in VARIABLES:
            for opened in (True, False):
                given = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": opened, **variables}
                expected = outcome(lambda: reference(source, messages, given))  # noqa: B023
                all_given = {"tools": None, "documents": None, "messages": messages, **given}
                found = outcome(lambda: ours.render(all_given, now=NOW, most=1 << 20))  # noqa: B023
                texts.add(found)
                if found != expected:
                    different.append((chat, variables, opened, expected, found))
    assert len(texts) > 4
    assert bool(different) == (name in EXCEPTIONS), different[:3]


def test_what_no_template_of_these_uses_is_rendered_as_transformers_does(reference: Reference) -> None:
    source = (
        "{{ strftime_now('%Y-%m-%d %H:%M') }}"
        "{{ {'b': 'é<', 'a': 1} | tojson(sort_keys=true, separators=(',', '=')) }}"
        "{% set x = 1 %}{% generation %}{% set x = 2 %}g{{ x }}{% endgeneration %}{{ x }}\n"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}\n"
        "{{ dict(a=1) }}{{ dict.fromkeys([1], 2) }}{{ namespace(self=3).self }}{{ '<b>x</b>' | striptags }}"
    )
    found = Template(source).render({"tools": None}, now=NOW, most=4096)
    assert found == reference(source, [], {})
    assert found.startswith("2026-01-31 12:30")


@pytest.mark.parametrize("attribute", ["{{ namespace(_a=1) }}", "{% set n = namespace() %}{% set n['_a'] = 1 %}"])
def test_a_namespace_takes_no_private_names(attribute: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(attribute).render([])


@pytest.fixture
def chatml() -> Iterator[ChatTemplate]:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}", bos="<s>"
    )
    yield template
    template.close()


def test_it_is_the_same_in_the_process_of_its_own(templates: dict[str, str], chatml: ChatTemplate) -> None:
    messages = CHATS["several turns"]
    assert chatml.render(messages) == "<s>system: s;user: a;assistant: b;user:  c\n;"
    source = templates["meta-llama-Llama-3.2-3B-Instruct"]
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    given = {
        "tools": None,
        "messages": messages,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_generation_prompt": True,
    }
    expected = Template(source).render(given, now=NOW, most=4096)
    assert template.render(messages, now=NOW) == expected
    assert "31 Jan 2026" in expected
    template.close()


TIMES_60 = "{% for i in range(60) %}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "an endless loop": LOOPS,
    "a loop in calls": "{% set c = cycler(1) %}{% for a in range(99999) %}" + LOOPS + "{{ c.next() }}{% endfor %}",
    "a text of 10 GB": "{{ 'x' * 10**10 }}",
    "a text of 10 GB, seen only when it runs": "{% set n = 10 %}{{ 'x' * n**10 }}",
    "a text of 100 MB": "{{ 'x' * 10**8 }}",
    "a number of 10^10 digits": "{% set n = 10 %}{{ (n ** (n**10)) % 7 }}",
    "a text that doubles": "{% set n = namespace(s='x') %}" + TIMES_60 + "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(s=[0]) %}" + TIMES_60 + "{% set n.s = n.s + n.s %}{% endfor %}",
    "a text to the left of 10 GB": "{{ 'x'.ljust(10**10) }}",
    "a text in the middle of 10 GB": "{{ 'x' | center(10**10) }}",
    "an indent of 10 GB": "{{ 'a\nb' | indent(10**10) }}",
    "a number formatted into 10 GB": "{{ '%10000000000d' % 1 }}",
    "a number formatted into 10 GB, new style": "{{ '{:>10000000000}'.format(1) }}",
    "a block that writes for ever": "{% set b %}"
    + LOOPS.replace("{% endfor %}", "xxxxxxxxxx{% endfor %}", 1)
    + "{% endset %}",
    "giant output": LOOPS.replace("{% endfor %}", "xxxxxxxxxx{% endfor %}", 1),
    "a giant list as JSON": "{{ ([[]] * 10**7) | tojson }}",
    "a billion sentences": "{{ lipsum(n=10**9) }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "calls that double": "{% macro f(n) %}{{ n and f(n - 1) ~ f(n - 1) }}{% endmacro %}{{ f(99) }}",
    "its class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a function's globals": "{{ cycler.__init__.__globals__.os.system('echo hurt') }}",
    "the class of a format": "{{ '{0.__class__.__mro__}'.format('') }}{{ ''.__class__.x }}",
    "the caller's messages": "{{ messages.append(1) }}",
    "parentheses 20,000 deep": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "loops 200 deep": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "no template at all": "{% if %}{{",
}


@pytest.mark.slow
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_in_two_seconds_and_hurts_nobody(source: str) -> None:
    # What others left behind is not to be counted here.
    gc.collect()
    before, spent = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(TemplateError, match=r"^the chat template .+$"), closing(ChatTemplate(source)) as template:
        template.render(said(("user", "Hi")))
    after, now = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    assert now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime < 2 * CPU_S
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert after.ru_maxrss - before.ru_maxrss < 20_000


def test_attributes_that_it_must_not_have_are_undefined_to_it() -> None:
    assert ChatTemplate("[{{ '' | attr('__class__') }}]").render([]) == "[]"


def test_nothing_can_be_opened_where_a_template_runs() -> None:
    template = ChatTemplate("ok")
    assert template._process is not None
    limits = Path("/proc") / str(template._process.pid) / "limits"
    if not limits.exists():
        pytest.skip("no /proc here")
    [files] = [line for line in limits.read_text().splitlines() if line.startswith("Max open files")]
    assert files.split()[3:5] == ["0", "0"]


def test_it_goes_on_after_a_rendering_that_took_too_long() -> None:
    template = ChatTemplate("{% if messages[0].content == 'loop' %}" + LOOPS + "{% endif %}ok")
    with pytest.raises(TemplateLimitError, match="more than 1 s"):
        template.render(said(("user", "loop")))
    assert template.render(said(("user", "Hi"))) == "ok"


def test_it_goes_on_after_its_process_was_killed(chatml: ChatTemplate) -> None:
    assert chatml._process is not None
    os.kill(chatml._process.pid, signal.SIGKILL)
    chatml._process.wait()
    assert chatml.render(said(("user", "Hi"))) == "<s>user: Hi;"


def test_its_process_ends_with_it() -> None:
    template = ChatTemplate("ok")
    process = template._process
    assert process is not None and process.poll() is None
    del template
    assert process.poll() is not None


def test_several_threads_may_render_at_once(chatml: ChatTemplate) -> None:
    found: dict[int, str] = {}

    def render(number: int) -> None:
        found[number] = chatml.render(said(("user", str(number))))

    threads = [threading.Thread(target=render, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"<s>user: {number};" for number in range(16)}


def test_a_long_conversation_is_no_reason_to_stop(chatml: ChatTemplate) -> None:
    messages = said(*(("user", "é" * 2000) for _ in range(2000)))
    started = time.monotonic()
    assert len(chatml.render(messages)) > 4_000_000
    assert time.monotonic() - started < 10


def test_text_that_is_no_unicode_reaches_the_template_all_the_same(chatml: ChatTemplate) -> None:
    assert chatml.render(said(("user", "\ud800"))) == "<s>user: \ud800;"

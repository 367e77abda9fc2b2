"""Chat templates: equal to Transformers to the byte, and no template does harm."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from busy import BUSY
from chat_corpus import CHATS, TEMPLATES
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import ChatRejected, InvalidTemplate
from nanochat.templating import template
from nanochat.templating.template import MAX_OUTPUT, MAX_SOURCE, Template

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "hello"}]


def transformers_text(
    source: str, messages: list[dict[str, Any]], *, prompt: bool, **variables: Any
) -> str | None:
    """What Transformers renders; `None` where the template refuses the chat."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(
            conversations=[messages], chat_template=source, add_generation_prompt=prompt, **variables
        )
    except TemplateError:
        return None
    return texts[0]


compiled = cache(Template)


def our_text(source: str, messages: list[dict[str, Any]], *, prompt: bool, **variables: Any) -> str | None:
    # Transformers hands reasoning over under two names.
    given = [({"thinking": m["reasoning_content"]} if "reasoning_content" in m else {}) | m for m in messages]
    try:
        return compiled(source).render(
            given, add_generation_prompt=prompt, now=datetime.now(), variables=variables
        )
    except ChatRejected:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_popular_templates_render_as_in_transformers(name: str) -> None:
    source, rendered = TEMPLATES[name], 0
    for messages in CHATS.values():
        for prompt in (True, False):
            for thinking in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                expected = transformers_text(source, messages, prompt=prompt, **NAMES, **thinking)
                assert our_text(source, messages, prompt=prompt, **NAMES, **thinking) == expected
                rendered += expected is not None
    assert rendered >= 18, "most chats must really be rendered"


@settings(max_examples=80)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    texts=st.lists(
        st.one_of(st.text(max_size=12), st.sampled_from(["<think>a</think>b", "[INST]", " \n"])), min_size=1
    ),
)
def test_any_text_renders_as_in_transformers(name: str, texts: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    expected = transformers_text(TEMPLATES[name], messages, prompt=True, **NAMES)
    assert our_text(TEMPLATES[name], messages, prompt=True, **NAMES) == expected


def test_the_clock_is_the_one_given() -> None:
    text = Template(TEMPLATES["llama31"]).render(
        HELLO, add_generation_prompt=True, now=datetime(2031, 3, 4), variables={}
    )
    assert "Today Date: 04 Mar 2031" in text


def test_a_refusal_gives_the_reason_of_the_template() -> None:
    gemma = Template(TEMPLATES["gemma2"])
    with pytest.raises(ChatRejected, match="System role not supported"):
        gemma.render(
            [{"role": "system", "content": "x"}, *HELLO],
            add_generation_prompt=True,
            now=datetime.now(),
            variables={},
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "line 1"),
        ("{{ messages", "does not compile"),
        ("\n\n{% endfor %}", "line 3"),
        ("{{ x|nosuchfilter }}", "nosuchfilter"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "does not compile"),
        ("{% if x %}" * 3000 + "{% endif %}" * 3000, "does not compile"),
        ("x" * (MAX_SOURCE + 1), "262,145"),
    ],
)
def test_a_template_that_does_not_compile_is_named(source: str, message: str) -> None:
    with pytest.raises(InvalidTemplate, match=message):
        Template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[5].content.x }}",
        "{{ 1 // 0 }}",
        "{{ none + 1 }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}{{ y }}",
        "{% extends 'x' %}",
        "{{ 'a'.nosuch() }}",
        "{{ messages.content.strip() }}",
        "{{ raise_exception }}{{ dict(1) }}",
    ],
)
def test_a_template_that_fails_says_so(source: str) -> None:
    with pytest.raises(InvalidTemplate, match="fails on this chat"):
        our_text(source, HELLO, prompt=True)


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops with tests only": "{% for a in range(99999) %}{% for b in range(99999) %}{% if a == b %}{% endif %}"
    "{% endfor %}{% endfor %}",
    "nested loops without a call": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "comparing lists of a long text": "{% set a = ['x' * 1000000] * 99999 %}{% set b = ['x' * 1000001] %}"
    "{% set c = [b[0][1:]] * 99999 %}{{ a == c }}",
    "many slices": "{% set b = 'x' * 9000000 %}"
    + "".join(f"{{% set c{number} = b[{number}:] %}}" for number in range(1, 120)),
    "a product of ranges": "{{ (range(99999)|list * 99999)|length }}",
    "doubling a text": "{% set n = namespace(x='ab') %}{% for _ in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling with ~": "{% set n = namespace(x='ab') %}{% for _ in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for _ in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "nesting a list": "{% set n = namespace(x=[1]) %}{% for _ in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "nesting a tuple as key": "{% set n = namespace(x=(1,)) %}{% for _ in range(60) %}{% set n.x = (n.x, n.x) %}"
    "{% endfor %}{{ {n.x: 1} }}",
    "nesting a dictionary": "{% set n = namespace(x={}) %}{% for _ in range(60) %}{% set n.x = {'a': n.x, 'b': n.x} %}"
    "{% endfor %}{{ n.x|tojson }}",
    "nesting through dict()": "{% set n = namespace(x=1) %}{% for _ in range(60) %}{% set n.x = dict(a=n.x, b=n.x) %}"
    "{% endfor %}{{ n.x }}",
    "nesting namespaces": "{% set n = namespace(x=1) %}{% for _ in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}"
    "{% endfor %}{{ n.x }}",
    "nesting through varargs": "{% macro m() %}{% set n.x = varargs %}{% endmacro %}{% set n = namespace(x=1) %}"
    "{% for _ in range(60) %}{{ m(n.x, n.x) }}{% endfor %}{{ n.x }}",
    "fromkeys": "{{ dict.fromkeys(range(99999), 'x' * 99999)|string|length }}",
    "a multiplied text": "{{ 'x' * 10**12 }}",
    "a multiplied list": "{{ [1] * 10**10 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "powers of powers": "{% set n = namespace(x=3) %}{% for _ in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "round to nowhere": "{{ 5|round(-1000000000) }}",
    "round up": "{{ 5|round(1000000000, 'ceil') }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a starred format": "{{ '%*d' % (1000000000, 1) }}",
    "a wide str.format": "{{ '{:>1000000000}'.format('x') }}",
    "a nested str.format": "{{ '{:>{w}}'.format('x', w=1000000000) }}",
    "a repeating str.format": "{% set big = 'x' * 4000000 %}{{ ('{0}' * 100000).format(big) }}",
    "format_map": "{% set big = 'x' * 4000000 %}{{ ('{a}' * 100000).format_map({'a': big})|length }}",
    "a wide filter format": "{{ '%1000000000s'|format('x') }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "the replace filter": "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "join": "{{ ('b' * 1000000).join('a' * 1000000) }}",
    "join a generator": "{{ ('b' * 1000000).join(('a' * 100000)|map('upper')) }}",
    "the join filter": "{{ ('a' * 1000000)|join('b' * 1000000) }}",
    "indent": "{{ ('\n' * 1000000)|indent(1000000) }}",
    "tojson indent": "{{ range(9999)|list|tojson(indent=1000000) }}",
    "tojson separators": "{{ range(99999)|list|tojson(separators=('x' * 99999, '')) }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
    "branching loop": "{% for x in [60] recursive %}{% if x %}{{ loop([x - 1, x - 1]) }}{% endif %}{% endfor %}",
    "much literal text": "{% for a in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    "much text in a block": "{% set b %}{% for a in range(99999) %}" + "x" * 100_000 + "{% endfor %}{% endset %}",
    "much text in a macro": "{% macro m() %}" + "x" * 100_000 + "{% endmacro %}{% for a in range(99999) %}"
    "{% set b = m() %}{% endfor %}",
    "many long texts": "{% set n = namespace(x=[]) %}{% for a in range(9999) %}"
    "{% set n.x = n.x + ['x' * (a + 4000000)] %}{% endfor %}",
    "slices": "{% set b = 'x' * 9000000 %}{% for a in range(99999) %}{% set c = b[1:] %}{% endfor %}",
    "comparing": "{% set a = 'x' * 9000000 %}{% set b = 'x' * 9000000 + '' %}"
    "{% for _ in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "searching": "{% set a = 'x' * 9000000 %}{% for _ in range(99999) %}{% if 'y' in a %}{% endif %}{% endfor %}",
    "sorting": "{% for _ in range(99999) %}{{ range(99999)|sort|first }}{% endfor %}",
    "adding lists": "{{ ([[1] * 1000] * 9999)|sum(start=[])|length }}",
    "a string test": "{% set a = 'x' * 9000000 %}{% for _ in range(99999) %}{{ a is lower }}{% endfor %}",
    "splitting": "{{ ('a,' * 50000000).split(',')|length }}",
    "random words": "{{ lipsum(n=1000000000) }}",
    "urlize": "{{ ('http://' * 1000000)|urlize }}",
    "sums of selects": "{% for _ in range(99999) %}{{ range(99999)|select('odd')|sum }}{% endfor %}",
    "self-containing namespace": "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
}  # fmt: skip


@pytest.fixture
def short_time(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(template, "MAX_SECONDS", 0.25)
    return 0.25


def stopped(source: str) -> float:
    """Seconds until the template was stopped."""
    start = time.perf_counter()
    with pytest.raises(InvalidTemplate, match=r"was stopped|does not compile|fails on this chat"):
        Template(source).render(HELLO, add_generation_prompt=True, now=datetime.now(), variables={})
    return time.perf_counter() - start


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_is_stopped_in_time(name: str, short_time: float) -> None:
    assert stopped(BOMBS[name]) < short_time + 10  # unstopped, each takes minutes or for ever


@pytest.mark.parametrize(
    "name", [name for name in BOMBS if name.startswith(("doubling", "many", "much", "nesting"))]
)
def test_a_hostile_template_is_stopped_before_it_fills_the_memory(name: str, short_time: float) -> None:
    del short_time
    tracemalloc.start()
    try:
        stopped(BOMBS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 512 * 2**20


def test_the_time_of_a_template_is_two_seconds() -> None:
    assert template.MAX_SECONDS == 2
    assert stopped(BOMBS["nested loops"]) < 3


def test_output_beyond_the_cap_is_refused() -> None:
    assert len(
        our_text("{{ messages[0].content }}", [{"role": "user", "content": "x" * MAX_OUTPUT}], prompt=True)
        or ""
    )
    with pytest.raises(InvalidTemplate, match="more than 4,194,304"):
        our_text(
            "{{ messages[0].content }}", [{"role": "user", "content": "x" * (MAX_OUTPUT + 1)}], prompt=True
        )


ESCAPES = [
    "{{ ''.__class__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}", "{{ messages.__class__.__base__ }}", "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}", "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__ }}", "{{ strftime_now.__func__ }}", "{{ strftime_now.__self__ }}",
    "{{ strftime_now.__self__.filters }}", "{{ namespace.__init__ }}", "{{ namespace.__init__.__globals__ }}",
    "{{ namespace.mro() }}", "{{ dict.__class__ }}", "{{ dict.__call__.__globals__ }}", "{{ dict.mro() }}",
    "{{ range.__class__ }}", "{{ cycler.__init__.__globals__.os }}", "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__.os.popen('id') }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ '{0.__class__}'.format(messages) }}", "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{{ '{a.__class__}'.format_map({'a': messages}) }}", "{{ ('{0.__class__}'|attr('format'))(messages) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}", "{{ ['{0.__class__}']|map('format', messages)|list }}",
    "{{ [messages]|map(attribute='__class__')|list }}", "{{ [messages]|groupby('__class__') }}",
    "{{ [messages]|sum(attribute='__class__') }}", "{{ [messages]|sort(attribute='__class__.__name__') }}",
    "{{ [messages]|map('attr', '__class__')|list }}", "{{ [messages]|selectattr('__class__')|list }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}", "{{ namespace(__class__=1) }}",
    "{{ namespace({'__init__': 1}) }}", "{{ messages.append(1) }}", "{{ messages.clear() }}",
    "{{ messages[0].update({'a': 1}) }}", "{{ messages[0].pop('role') }}", "{{ messages.sort() }}",
    "{{ (1).__class__ }}", "{{ ''.join.__self__ }}", "{{ ''.join.__class__ }}", "{{ caller.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._environment }}", "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}", "{{ undefined.__init__.__globals__ }}",
    "{{ undefined._undefined_message }}", "{{ messages|tojson.__globals__ }}", "{{ config }}{{ config.items() }}",
    "{{ request.application.__globals__ }}", "{{ get_flashed_messages.__globals__ }}", "{{ url_for.__globals__ }}",
    "{{ (messages|map('upper')).gi_frame.f_builtins }}", "{{ (messages|map('upper')).gi_code }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os.popen('id') }}", "{% extends '/etc/passwd' %}",
    "{{ ''.encode().__class__ }}", "{{ 'a'.encode('rot13') }}", "{{ b''.fromhex('00') }}", "{{ (1).from_bytes }}",
]  # fmt: skip


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_gets_out_of_the_sandbox(
    source: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either it is refused, or what it renders shows nothing of Python's insides."""
    monkeypatch.chdir(tmp_path)
    before = [dict(message) for message in HELLO]
    try:
        text = our_text(source, HELLO, prompt=True) or ""
    except InvalidTemplate as error:
        text = "" if "unsafe" in str(error) else str(error.__cause__ or "")
    assert not any(
        sign in text for sign in ("<class", "<function", "<module", "__main__", "root:", "uid=", "builtins")
    )
    assert before == HELLO
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["{% set n = namespace() %}{% set n._x = 1 %}", "{{ namespace(_x=1) }}"])
def test_a_namespace_takes_no_underscored_names(source: str) -> None:
    with pytest.raises(InvalidTemplate, match="'_x'"):
        our_text(source, HELLO, prompt=True)


def test_an_ordinary_rendering_costs_less_than_five_milliseconds() -> None:
    source, messages = TEMPLATES["qwen3"], CHATS["three turns"] * 3
    qwen = Template(source)
    times: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        qwen.render(messages, add_generation_prompt=True, now=datetime.now(), variables=NAMES)
        times.append(time.perf_counter() - start)
    assert min(times) < BUSY * 0.005


def test_transformers_is_not_imported_for_a_template() -> None:
    code = (
        "import sys; from datetime import datetime; from nanochat.templating.template import Template; "
        "Template('{{ 1 }}').render([], add_generation_prompt=True, now=datetime.now(), variables={}); "
        "print([name for name in ('transformers', 'torch', 'textual') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""No template holds up its caller or grows without end, whatever it holds; its text is what transformers makes."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from jinja2.filters import FILTERS
from transformers.utils.chat_template_utils import render_jinja_template

from paceline.core.errors import InvalidRequestError
from paceline.templates import ChatTemplate

SMALL = 100_000
TURN = [{"role": "user", "content": "hello <b> é"}]


def render(source, *, max_characters=SMALL, seconds=0.5, messages=TURN):
    template = ChatTemplate(source, max_characters=max_characters, seconds=seconds)
    return template.render({"messages": messages, "bos_token": "<s>"})


def doubled(start, times=60):
    return f"{{% set x = {start} %}}" + "{% set x = [x, x] %}" * times


BOMBS = [
    "{{ ([[0]*1000]*7000)|sum(start=[])|length }}",
    '{{ ("a"*1000000).translate({97:"b"*100000})|length }}',
    '{{ ("a "*50000)|wordwrap(1)|wordwrap(1) ~ "a"*99999 }}',
    "{{ ([0]*7000000)|tojson }}",
    r'{{ ("\t"*10000).expandtabs(1000) }}',
    "{{ ('a'*10000).replace('a', 'b'*10000) }}",
    "{{ ('a'*10000)|replace('a', 'b'*10000) }}",
    "{{ ('b'*10000).join(['']*10000) }}",
    "{{ (['']*10000)|join('b'*10000) }}",
    "{% set b = 'b'*90000 ~ 'a' %}" + "{{ ('a'*90000).strip(b) }}{{ ('a'*90000)|trim(b) }}" * 999,
    "{% set b = 'b' ~ 'a'*40000 %}" + "{{ ('a'*90000).rfind(b) }}{{ ('a'*90000).rsplit(b)|length }}" * 9999,
    "{{ 'a'.startswith(('a'*10000,)*10000) }}",
    "{{ 1.5|round(1000000000, 'floor') }}",
    "{{ ('%s'*10000) % (('a'*10000,)*10000) }}",
    "{{ '%1000000000d' is even }}" * 9,
    "{{ ('{0}'*10000).format('a'*10000) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ (9**1300)**1300 }}",
    "{{ (('f'*1000000)|int(0,16)) // (('f'*500000)|int(0,16)) }}",
    "{{ (['a'*10000]*10000)|groupby('x') }}",
    "{{ (['a'*1000]*10)|tojson(indent=100000000) }}",
    "{{ ([1]*1000)|tojson(separators=('a'*10000,':')) }}",
    "{{ ([{'a':'b'*10000}]*10000)|map(attribute='a')|join }}",
    "{% for x in range(99999) if false %}{% endfor %}" * 300,
    "{% set b = 'a'*90000 %}" + "{% set a = b[1:] %}" * 50,
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "{% set a = ['a'*10000]*10000 %}{{ a == a[:] }}",
    "{% set a = ['a'*10000]*10000 %}{{ ('b' ~ a[0][1:]) in a }}",
    "{% set a = ['a'*10000]*10000 %}{{ a|unique|list }}{{ a|sort|length }}",
    doubled("[1]") + "{{ x }}",
    doubled("[1]") + "{{ x|string|length }}",
    doubled("[1]") + "{{ x|tojson|length }}",
    doubled("[1]") + "{{ 'a' ~ x }}",
    doubled("[1]") + "{{ raise_exception(x) }}",
    doubled("[1]") + "{% set y = x %}" + doubled("[1]") + "{{ x == y }}",
    doubled("(1, 2)").replace("[x, x]", "(x, x)") + "{{ {x: 1} }}",
    doubled("(1, 2)").replace("[x, x]", "(x, x)") + "{{ {}[x] }}",
    doubled("(1, 2)").replace("[x, x]", "(x, x)") + "{{ {}.get(x) }}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_the_class_of_large_operations(source):
    began = time.perf_counter()
    with pytest.raises(InvalidRequestError) as caught:
        render(source)
    assert caught.value.param == "messages"
    assert len(str(caught.value)) < 1000
    assert time.perf_counter() - began < 15


def theirs(source):
    return render_jinja_template([TURN], chat_template=source, bos_token="<s>")[0][0]


LONG = "{% set long = 'a'*1000 %}"
ORDINARY = [
    "{{ messages[0].content|trim|upper|title }}{{ messages[-1]['content'][1:-1:2] }}{{ messages|length == 1 }}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index0 % 2 == 0 }}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(', ') }}{{ 'x' in messages[0] }}",
    "{% macro f(a, b=2) %}{{ a * b }}{% endmacro %}{{ f(3) }}{{ f('é', b=3) }}{{ {'a' ~ 1: [1.5, none]}|tojson }}",
    "{% set ns = namespace(a=[]) %}{% for c in 'abc' %}{% set ns.a = ns.a + [c] %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{{ messages[0].items()|list }}{% for k, v in messages[0]|dictsort %}{{ k }}{% endfor %}{{ 7 // 2 }}{{ -3 ** 2 }}",
    "{{ messages|tojson(indent=2) }}{{ [3, 1, 2]|sort|reverse|list }}{{ 'a b'.split(' ')[-1] }}{{ 'ab'|list|first }}",
    "{{ bos_token is defined and tools is not none }}{{ '<b>'|safe ~ '<' }}{{ 'a\nb'|indent(3) }}{{ [1]|unique|list }}",
    "{% filter upper %}a{{ 'b' }}{% endfilter %}{% with x = 1 %}{{ x }}{% endwith %}{{ 1 if missing else 2 }}",
]
UNUSUAL = [
    *(f"{{{{ 'a b\tc'|{name} }}}}" for name in ("e", "wordcount", "urlencode", "center(9)", "wordwrap(1)", "pprint")),
    *(f"{{{{ 'a{{0}}\t%s'.{call} }}}}" for call in ("format(3)", "expandtabs(4)", "zfill(9)", "encode().hex()")),
    "{{ 1 < 2 < 3 }}{{ '%s-%s' % ('a', 1) }}{{ [1, 2]|sum }}{{ 2.7|round }}{{ [1, 2, 3]|batch(2)|list }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ dict(a=1).keys()|list }}{{ 9|filesizeformat }}",
    "{% autoescape true %}{{ '<b>' }}{% endautoescape %}{% block b %}{{ self.b is callable }}{% endblock %}",
    "{{ [{'a': 1}, {'a': 2}]|groupby('a')|length }}{{ 'aXb'.swapcase().rsplit('x', maxsplit=1) }}",
    LONG + "{{ long.rfind(long) }}{{ 'b'.strip(long) }}{{ (long|int) }}{{ [1]|join(long) }}",
]


@pytest.mark.parametrize("source", ORDINARY)
def test_ordinary_templates_are_rendered_in_this_process_as_transformers_does(source):
    template = ChatTemplate(source)
    assert template.render({"messages": TURN, "tools": None, "bos_token": "<s>"}) == theirs(source)
    assert not template.outside


@pytest.mark.parametrize("source", UNUSUAL)
def test_unusual_templates_are_rendered_as_transformers_does(source):
    assert render(source, seconds=30) == theirs(source)


@pytest.mark.parametrize("name", sorted(set(FILTERS) - {"random", "urlize", "tojson"}))
def test_every_filter_gives_what_transformers_gives(name):
    for value in ("messages[0].content", "'abc'", "[2, 1]", "{'b': 1, 'a': 2}", "3.25"):
        source = f"{{{{ {value}|{name} }}}}|{{{{ {value}|{name}|string|length }}}}"
        try:
            expected = theirs(source)
        except Exception:
            with pytest.raises(InvalidRequestError):
                render(source, seconds=30)
        else:
            if " object " not in expected:  # An address, of a generator.
                assert render(source, seconds=30) == expected


def test_a_message_of_raise_exception_is_cut():
    for source in ("{{ raise_exception('roles ' * 1000) }}", "{{ raise_exception('roles'|center(5000)) }}"):
        with pytest.raises(InvalidRequestError, match=r"refused: (roles|   )") as caught:
            render(source, seconds=30)
        assert len(str(caught.value)) < 600


OUTSIDE = "{{ messages[0].content|center(40) }}"


def contexts(count):
    return [{"messages": [{"role": "user", "content": f"number {index}"}]} for index in range(count)]


def test_threads_share_one_process_and_get_their_own_texts():
    template = ChatTemplate(OUTSIDE, seconds=30)
    many = contexts(24)
    found = [""] * len(many)

    def work(first):
        for index in range(first, len(many), 4):
            found[index] = template.render(many[index])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [context["messages"][0]["content"].center(40) for context in many]


def child_of(template):
    return template._worker._finalizer.peek()[2][0]


def test_a_process_that_dies_or_is_killed_is_started_again():
    template = ChatTemplate("{{ 2|round(messages[0].content|int, 'floor')|string|length }}", seconds=3)
    other = {"messages": [{"role": "user", "content": "1"}]}
    with pytest.raises(InvalidRequestError, match=r"takes too long|Memory"):
        template.render({"messages": [{"role": "user", "content": "1000000000"}]})
    assert template.render(other) == "3"
    os.kill(child_of(template).pid, signal.SIGKILL)
    with pytest.raises(InvalidRequestError, match="its process ended"):
        template.render(other)
    assert template.render(other) == "3"


def test_the_process_ends_with_its_template():
    template = ChatTemplate(OUTSIDE, seconds=30)
    template.render({"messages": TURN})
    child = child_of(template)
    assert child.poll() is None
    del template
    assert child.wait(30) is not None


def test_two_megabytes_of_messages_are_ordinary():
    many = [{"role": "user", "content": "word " * 400} for _ in range(1000)]
    source = (
        "{% for m in messages %}{% if m.role == 'user' and (loop.first or messages[loop.index0 - 1].role == 'user') %}"
        "<{{ m.role }}>{{ m.content | trim }}{{ m.content.split('x')[-1][:3] }}</>{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source, seconds=60)
    assert len(template.render({"messages": many})) == 1000 * (6 + 1999 + 3 + 3)
    assert not template.outside

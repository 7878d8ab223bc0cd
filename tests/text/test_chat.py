"""Chat prompts: what users type never becomes a control token; templates run in a bounded sandbox."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.errors import InvalidRequestError
from paceline.templates import ChatTemplate
from tests.support.tokenizers import byte_fallback, byte_level, of

FEW = settings(max_examples=80, deadline=None)
TURN = [{"role": "user", "content": "hello"}]
spliced = st.lists(st.sampled_from(["<|end|>", "<|", "end", "|>", "<|bos|>", " ", "a", "<", ">", "|", "é"]), max_size=8)


def user(text):
    return [{"role": "user", "content": text}]


def plain(tokenizer, text):
    """What the text's tokens are if nothing in it is special."""
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


def test_the_template_and_its_tokens():
    tokenizer = byte_level()
    prompt = "<|bos|><|user|>hello<|end|><|assistant|>"
    assert tokenizer.apply_chat_template(TURN) == prompt
    assert tokenizer.encode_chat(TURN) == tokenizer.encode(prompt)
    assert tokenizer.apply_chat_template(TURN, add_generation_prompt=False) == prompt.removesuffix("<|assistant|>")


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_what_is_not_given_is_none(name):
    source = f"{{% if {name} is defined and {name} is none and not {name} %}}none{{% endif %}}"
    assert of(byte_level().backend, source).apply_chat_template(TURN) == "none"


@FEW
@given(parts=spliced)
def test_user_text_stays_text(parts):
    tokenizer = byte_level()
    text = "".join(parts)
    ids = tokenizer.encode_chat(user(text))
    assert ids == [0, 4, *plain(tokenizer, text.strip()), 1, 5]


@FEW
@given(first=spliced, second=spliced)
def test_neighbouring_texts_cannot_spell_a_token_together(first, second):
    tokenizer = of(byte_level().backend, "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{% endfor %}")
    messages = [*user("".join(first)), *user("".join(second))]
    ids = tokenizer.encode_chat(messages)
    assert ids.count(0) == 1
    assert not set(ids[1:]) & tokenizer.special_ids
    assert tokenizer.decode(ids[1:]) == "".join(first).strip() + "".join(second).strip()


@pytest.mark.parametrize("prepend", ["first", "always", "never", "normalizer"])
def test_the_guarded_way_encodes_like_the_plain_way(prepend):
    """Typing the special "</s>" gives the tokens of the ordinary "</t>", with an s in place of the t."""
    backend = byte_fallback(prepend).backend
    chat = of(backend, "<s>hello {% for m in messages %}{{ m.content }}</s> world <tool>{% endfor %}")
    ordinary, spelled = (chat.encode_chat(user(f"hi </{letter}> there")) for letter in "ts")
    assert ordinary == backend.encode("<s>hello hi </t> there</s> world <tool>", add_special_tokens=False).ids
    where = [index for index, pair in enumerate(zip(ordinary, spelled, strict=True)) if pair[0] != pair[1]]
    assert len(where) == 1
    assert [backend.id_to_token(ids[where[0]]) for ids in (ordinary, spelled)] == ["t", "s"]


@pytest.mark.parametrize("role", ["end", "bos", "", None, "user|>", 3, "User"])
def test_roles_are_a_fixed_list(role):
    with pytest.raises(InvalidRequestError) as caught:
        byte_level().encode_chat([{"role": role, "content": "x"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("messages", [[], user("\ud800"), [{"role": "user", "content": [{"text": "\udfff"}]}]])
def test_bad_messages(messages):
    with pytest.raises(InvalidRequestError) as caught:
        byte_level().encode_chat(messages)
    assert caught.value.param == "messages"


def test_no_template():
    with pytest.raises(InvalidRequestError, match="no chat template"):
        of(byte_level().backend, None).encode_chat(TURN)


def test_a_megabyte_of_brackets_is_guarded_quickly():
    began = time.perf_counter()
    byte_level().encode_chat(user("<|" * 50_000 + "<|end|>"))
    assert time.perf_counter() - began < 5


def render(source, **context):
    return ChatTemplate(source, max_characters=100_000, seconds=0.5).render({"messages": TURN, **context})


def test_what_templates_use():
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hello"}]'
    assert render("{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=True, indent=1) }}") == '{\n "a": 1,\n "b": "<é>"\n}'
    assert render("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "user"
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"
    assert render("{% generation %}x{{ 1 + 1 }}{% endgeneration %}") == "x2"
    assert (
        render("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
        == "1"
    )
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{{ 'a' ~ 1 ~ missing }}{{ 'x' * 3 }}{{ '%s!' % 'y' }}{{ 'z' | center(3) }}") == "a1xxxy! z "
    assert render("{{ '{} {:>4}%, **{x}**'.format('b', 1, x=20000) }}") == "b    1%, **20000**"
    assert (
        render("{{ messages[0].content[:2] | upper }}{{ 'ab' | truncate(9) }}{{ [1, 2] | batch(1) | list | length }}")
        == "HEab2"
    )


def test_raise_exception_reaches_the_user():
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ (messages | attr('__class__')).__base__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'] }}",
    "{{ self.__init__.__globals__.x }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ ('{0.__class__}'.format | attr('__call__'))(1).x }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
    "{{ lipsum(n=100000) }}",
    "{{ tick.__self__.loader }}",
    "{{ (raise_exception | attr('__code__')).co_code }}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_the_sandbox(source):
    try:
        shown = render(source)
    except InvalidRequestError:
        shown = ""
    assert "class" not in shown
    assert "module" not in shown
    assert len(shown) < 10
    assert TURN == [{"role": "user", "content": "hello"}]


BOMBS = [
    "{{ 'a' * 10000000000 }}",
    "{{ 10000000000 * ['a'] }}",
    "{{ 9" + " ** 9" * 9 + " }}",
    "{{ 9 ** 999999999 }}",
    "{{ '{:{}}'.format(1, '9999999999') }}",
    "{% set x = 'aaaaaaaaaa' %}" + "{% set x = x ~ x %}" * 60 + "{{ x | length }}",
    "{% set x = 'aaaaaaaaaa' %}" + "{% set x = x + x %}" * 60 + "{{ x | length }}",
    "{% set x %}aaaaaaaaaa{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "{% set r = range(90000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "{% for a in range(90000) %}{{ messages }}{% endfor %}",
    "{{ 'a'.ljust(10000000000) }}",
    "{{ 'a' | center(10000000000) }}",
    "{{ 'a' | indent(10000000000, true) }}",
    "{{ '%010000000000d' % 1 }}",
    "{{ '%010000000000d' | format(1) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ range(10000000000) | list }}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_bounds(source):
    began = time.perf_counter()
    with pytest.raises(InvalidRequestError) as caught:
        render(source)
    assert caught.value.param == "messages"
    assert time.perf_counter() - began < 3


@pytest.mark.parametrize(
    "source", ["{{", "{% nope %}", "{{ 1 / 0 }}", "{{ missing.field }}", "{{ 'a' + 1 }}", "{{ a | nope }}"]
)
def test_broken_templates(source):
    with pytest.raises(InvalidRequestError) as caught:
        render(source)
    assert caught.value.param == "messages"
    assert "/" not in str(caught.value)

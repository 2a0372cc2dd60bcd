"""Templates that come with adapters: rendered as transformers renders them, and unable to hurt anybody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.text.foreign import ForeignTemplates
from examples.tiny.model import CHAT_TEMPLATE, tiny_tokenizer

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "日本 {{ 7 * 7 }} \u2028"}]


@pytest.fixture(scope="module")
def templates() -> Iterator[ForeignTemplates]:
    templates = ForeignTemplates()
    yield templates
    templates.close()


def test_it_renders_what_transformers_renders(templates: ForeignTemplates) -> None:
    tokenizer = tiny_tokenizer()
    for template in (
        CHAT_TEMPLATE,
        "{{ bos_token }}{{ messages[1].content | tojson }}{% generation %}{% endgeneration %}",
    ):
        expected = tokenizer.apply_chat_template(
            TURNS, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        assert templates.render(template, TURNS, tokenizer.special_tokens_map) == expected


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('user first') }}", "{{ messages[7].content.x }}", "{% if %}", "{{ 1 / 0 }}"]
)
def test_a_template_that_rejects_the_turns_says_so(templates: ForeignTemplates, template: str) -> None:
    with pytest.raises(InvalidRequest, match="rejects these messages"):
        templates.render(template, TURNS, {})


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
        "{% set x = namespace(s='x') %}{% for a in range(99) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}",
        "{{ 'x' * 99999999 }}",
    ],
    ids=["loops", "memory", "doubling", "length"],
)
def test_one_that_does_not_end_is_ended_and_not_tried_again(templates: ForeignTemplates, template: str) -> None:
    for _ in range(2):
        with pytest.raises(AdapterRefused, match="another one"):
            templates.render(template, TURNS, {})
        assert templates._process is None
    assert templates.render("ok", TURNS, {}) == "ok"
    with pytest.raises(AdapterRefused, match="another one"):
        templates.render(template, TURNS, {})
    assert templates._process is not None


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ messages.__init__.__globals__ }}", "{% include '/etc/passwd' %}"]
)
def test_it_sees_the_conversation_and_nothing_else(templates: ForeignTemplates, template: str) -> None:
    with suppress(InvalidRequest):
        assert templates.render(template, TURNS, {}) == ""

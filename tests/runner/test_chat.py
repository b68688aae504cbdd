"""Chat templates, against transformers' own rendering."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import Tokenizer

from tests.runner.tiny_models import CHAT, tokenizer
from tkg.runner.chat import chat_prompt
from tkg.runner.errors import ModelError
from tkg.runner.vocabulary import Vocabulary

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}{% endfor %}"
)
INDENTED = """
{%- for message in messages %}
    {%- if message.role == 'nobody' %}
        {%- continue %}
    {%- endif %}
    {{- '<|' + message.role + '|>' }}
    {% if true %}
    {{ message.content | tojson }}
    {% endif %}
{%- endfor %}
{{ eos_token }}{{ strftime_now('%Y')[:2] }}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""


@pytest.fixture(scope="module")
def made() -> Tokenizer:
    return tokenizer()


@pytest.mark.parametrize("template", [CHAT, LLAMA2, INDENTED], ids=["chatml", "llama2", "indented"])
@pytest.mark.parametrize("message", ["Hi!", " two\nlines & <b>tags</b> 'quoted' \"é\" "])
def test_prompts_are_those_of_transformers(made: Tokenizer, template: str, message: str) -> None:
    vocabulary = Vocabulary(made, frozenset(), "<s>", "</s>", template)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>"
    ).apply_chat_template(
        [{"role": "user", "content": message}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert chat_prompt(vocabulary, message) == theirs


def test_a_model_without_a_template_says_so(made: Tokenizer) -> None:
    with pytest.raises(ModelError, match="no chat template; --raw continues the prompt"):
        chat_prompt(Vocabulary(made, frozenset()), "Hi!")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "template fails: no system role"),
        ("{% if %}", "template fails: Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "template fails: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "template fails: access to attribute 'append' of 'list'"),
        ("{{ 1 + 'a' }}", "template fails: unsupported operand"),
    ],
)
def test_failing_templates_are_reported(made: Tokenizer, template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        chat_prompt(Vocabulary(made, frozenset(), chat_template=template), "Hi!")

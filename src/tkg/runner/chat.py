"""A prompt as the model's own chat template puts it."""

from __future__ import annotations

import json
from datetime import datetime
from functools import partial
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tkg.runner.errors import ModelError
from tkg.runner.vocabulary import Vocabulary


def chat_prompt(vocabulary: Vocabulary, message: str) -> str:
    """The text in which a user has said `message` and the model's answer comes next.

    Raises:
        ModelError: the model has no chat template, or its template fails.
    """
    if vocabulary.chat_template is None:
        raise ModelError("the model has no chat template; --raw continues the prompt as it stands")
    # The options and names that Hugging Face's templates are written for.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # Jinja's is for HTML
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(vocabulary.chat_template).render(
            messages=[{"role": "user", "content": message}],
            add_generation_prompt=True,
            bos_token=vocabulary.bos,
            eos_token=vocabulary.eos,
        )
    except (TemplateError, TypeError) as error:
        raise ModelError(f"the model's chat template fails: {error}") from error


def _refuse(message: str) -> Any:
    raise TemplateError(message)

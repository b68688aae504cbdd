"""A model's tokens: text to ids, ids to text, and the ids that end a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

END_TOKENS = (
    "</s>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|im_end|>",
)
"""Names of tokens that end a text or a turn of a chat, in the families that the runner knows."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and what goes with it.

    Attributes:
        tokenizer: of Hugging Face's `tokenizers`.
        end_ids: any of these tokens ends a text.
        bos, eos: the texts of the tokens that start and end a text; `""` if there is none.
        chat_template: in Jinja, or `None` for a model that was not made to chat.
    """

    tokenizer: Tokenizer
    end_ids: frozenset[int]
    bos: str = ""
    eos: str = ""
    chat_template: str | None = None

    def encode(self, text: str, *, whole: bool = True) -> list[int]:
        """Ids of `text`; if it is a `whole` text, with what the model expects at its start."""
        return self.tokenizer.encode(text, add_special_tokens=whole).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without control tokens; U+FFFD for bytes that are no UTF-8."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def end_ids(tokenizer: Tokenizer, declared: Iterable[int | None]) -> frozenset[int]:
    """The declared end tokens, and the vocabulary's own tokens of `END_TOKENS`."""
    own = (tokenizer.token_to_id(token) for token in END_TOKENS)
    return frozenset(token for token in (*declared, *own) if token is not None)


class TextStream:
    """Turns generated ids into text piece by piece, never ending inside a character.

    A character may be spread over several tokens, and a token's text may depend on the one
    before it (SentencePiece drops a leading space), so a short window of ids is decoded anew.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._window = list(prompt)
        self._shown = vocabulary.decode(self._window)
        self._pending = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; `""` inside a character."""
        self._window.append(token)
        self._pending += 1
        text = self._vocabulary.decode(self._window)
        piece = text[len(self._shown) :]
        if not piece or text.endswith("\ufffd"):
            return ""
        # Cut only here, where the text is whole, so that the window starts with a whole character.
        self._window = self._window[-self._pending :]
        self._shown = self._vocabulary.decode(self._window)
        self._pending = 0
        return piece

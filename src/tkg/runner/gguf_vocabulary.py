"""The tokenizer in a GGUF file's metadata, as one of Hugging Face's `tokenizers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

from tkg.runner.errors import ModelError
from tkg.runner.vocabulary import Vocabulary, end_ids

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's `tokenizer.ggml.token_type` (gguf.TokenType)."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SYMBOLS_AND_SPACE}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Split:
    """How a byte-level BPE cuts text into words before it merges within them.

    Attributes:
        regex: the words; `None` for GPT-2's own.
        single_digits: each digit is a word, before the rest is cut.
        whole_words: a word that is a token is not built by merges.
        nfc: text is brought to Unicode's NFC first.
        bos: texts start with the bos token where the file does not say.
    """

    regex: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    nfc: bool = False
    bos: bool = False


_LLAMA3_SPLIT = Split(_LLAMA3, whole_words=True, bos=True)
_QWEN2_SPLIT = Split(_QWEN2, nfc=True)

SPLITS = {
    "gpt-2": Split(),
    "smollm": Split(single_digits=True),
    "llama-bpe": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "deepseek-r1-qwen": _QWEN2_SPLIT,
    "tekken": Split(_TEKKEN, whole_words=True, bos=True),
}
"""By `tokenizer.ggml.pre`. The regexes are those of the models' own tokenizer.json files."""


def gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that a GGUF file's metadata describe.

    Raises:
        ModelError: the kind of tokenizer is not known here, or its data do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ModelError(
            f"tokenizer.ggml.token_type must have an entry for each of {len(tokens)} tokens; "
            f"got {len(types)}"
        )
    if kind == "gpt2":
        split = _split(metadata)
        tokenizer, bos_default = _byte_level(metadata, split), split.bos
    elif kind == "llama":
        tokenizer, bos_default = _sentencepiece(metadata, types), True
    else:
        raise ModelError(f"tokenizer.ggml.model must be gpt2 or llama; got {kind!r}")
    _add_special(tokenizer, tokens, types)
    bos, eos = (_special_text(metadata, tokens, name) for name in ("bos", "eos"))
    if bos and metadata.get("tokenizer.ggml.add_bos_token", bos_default):
        first = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=first)
    declared = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    template = metadata.get("tokenizer.chat_template")
    return Vocabulary(tokenizer, end_ids(tokenizer, declared), bos, eos, template)


def _split(metadata: Mapping[str, Any]) -> Split:
    name = metadata.get("tokenizer.ggml.pre")
    if name not in SPLITS:
        raise ModelError(
            f"tokenizer.ggml.pre must be one of {', '.join(SPLITS)}; got {name!r}. Another "
            "pre-tokenizer would silently give other tokens; a safetensors folder with its "
            "tokenizer.json works for any"
        )
    return SPLITS[name]


def _byte_level(metadata: Mapping[str, Any], split: Split) -> Tokenizer:
    """GPT-2's kind: merges over bytes that are written as printable characters."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
    try:
        model = models.BPE(ids, merges, ignore_merges=split.whole_words)  # pyright: ignore
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"tokenizer.ggml.merges do not fit the tokens: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre.PreTokenizer] = []
    if split.single_digits:
        steps.append(pre.Digits(individual_digits=True))
    if split.regex is not None:
        steps.append(pre.Split(Regex(split.regex), behavior="isolated"))
    own = split.regex is None
    steps.append(pre.ByteLevel(add_prefix_space=False, use_regex=own))
    tokenizer.pre_tokenizer = pre.Sequence(steps)
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE: the pair whose union has the best score is merged first."""
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise ModelError(
            f"tokenizer.ggml.scores must have an entry for each of {len(tokens)} tokens; "
            f"got {len(scores)}"
        )
    ids = {token: i for i, token in enumerate(tokens)}
    unknown = tokens[types.index(UNKNOWN)] if UNKNOWN in types else None
    merges = _merges({token: i for token, i in ids.items() if types[i] == NORMAL}, scores)
    tokenizer = Tokenizer(
        models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in types)
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    back: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback()]
    back.append(decoders.Fuse())
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges(ids: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to build a token from two others, best score first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-scores[i], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_special(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Make the tokens that text is not split into: they are found before anything else."""
    pairs = list(zip(tokens, types, strict=True))
    control = [AddedToken(t, special=True, normalized=False) for t, k in pairs if k == CONTROL]
    user = [AddedToken(t, special=False, normalized=False) for t, k in pairs if k == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(user)


def _special_text(metadata: Mapping[str, Any], tokens: list[str], name: str) -> str:
    token = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if token is None:
        return ""
    if not 0 <= token < len(tokens):
        rule = f"must be below the number of tokens, {len(tokens)}"
        raise ModelError(f"tokenizer.ggml.{name}_token_id {rule}; got {token}")
    return tokens[token]

"""Tokens of GGUF's tokenizers against independent ones; text that streams out whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter

from tests.runner.texts import many
from tkg.runner.errors import ModelError
from tkg.runner.gguf_vocabulary import gguf_vocabulary
from tkg.runner.vocabulary import TextStream

TEXTS = many(300)


def byte_level(single_digits: bool) -> Tokenizer:
    """A byte-level BPE trained on `TEXTS`."""
    made = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def metadata(made: Tokenizer, pre: str) -> dict[str, Any]:
    """A byte-level BPE's vocabulary as a GGUF file has it."""
    model = json.loads(made.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
    }


def independent(made: Tokenizer, pre: str) -> Any:
    """The same vocabulary in a tokenizer whose way to split text is not ours."""
    if pre in ("gpt-2", "smollm"):
        return made
    model = json.loads(made.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    if pre == "qwen2":
        return transformers.Qwen2Tokenizer(vocab=model["vocab"], merges=merges)._tokenizer
    assert pre == "llama-bpe"
    llama = Tokenizer(models.BPE(model["vocab"], merges, ignore_merges=True))
    pattern = TikTokenConverter(vocab_file="none").pattern
    llama.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    llama.decoder = decoders.ByteLevel()
    llama.add_special_tokens([AddedToken("<|endoftext|>"), AddedToken("<|im_end|>")])
    return llama


@pytest.fixture(scope="module", params=[False, True], ids=["digits together", "digits apart"])
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return byte_level(request.param)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_byte_level_tokens_are_those_of_an_independent_tokenizer(
    trained: Tokenizer, pre: str
) -> None:
    if pre == "gpt-2" and json.loads(trained.to_str())["pre_tokenizer"]["pretokenizers"][1:]:
        pre = "smollm"  # trained with digits apart
    ours, theirs = gguf_vocabulary(metadata(trained, pre)), independent(trained, pre)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)


def test_the_ways_to_split_differ() -> None:
    made = byte_level(False)
    ids = {
        pre: [gguf_vocabulary(metadata(made, pre)).encode(text) for text in TEXTS]
        for pre in ("gpt-2", "smollm", "qwen2", "llama-bpe", "tekken")
    }
    for one in ids:
        for other in ids:
            assert one == other or ids[one] != ids[other], (one, other)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "tekken"])
def test_byte_level_text_comes_back(pre: str) -> None:
    vocabulary = gguf_vocabulary(metadata(byte_level(False), pre))
    for text in TEXTS:
        assert vocabulary.decode(vocabulary.encode(text)) == text


def sentencepiece() -> dict[str, Any]:
    """A vocabulary as SentencePiece's BPE trainer makes it: scores 0, -1, -2, ... by merge."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, limit_alphabet=60, show_progress=False)
    )
    model = json.loads(made.to_str())["model"]
    merged = ["".join(merge) for merge in model["merges"]]
    letters = [token for token in model["vocab"] if token not in set(merged)]
    unique = list(dict.fromkeys(merged))
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = special + unique + letters
    scores = [0.0] * len(special) + [-float(i) for i in range(len(unique) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def sentencepiece_ids(data: dict[str, Any], text: str) -> list[int]:
    """SentencePiece's BPE as its paper has it: merge the neighbours whose union scores best."""
    tokens = data["tokenizer.ggml.tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    scores = data["tokenizer.ggml.scores"]
    parts = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        pairs = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        able = [(-scores[ids[pair]], i) for i, pair in enumerate(pairs) if pair in ids]
        if not able:
            break
        _, i = min(able)
        parts[i : i + 2] = [pairs[i]]
    out = []
    for part in parts:
        raw = [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        out += [ids[part]] if part in ids else raw
    return [1, *out]


def test_sentencepiece_tokens_are_those_of_its_algorithm() -> None:
    data = sentencepiece()
    vocabulary = gguf_vocabulary(data)
    for text in TEXTS:
        assert vocabulary.encode(text) == sentencepiece_ids(data, text), repr(text)
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_sentencepiece_without_a_space_in_front() -> None:
    data = {**sentencepiece(), "tokenizer.ggml.add_space_prefix": False}
    vocabulary = gguf_vocabulary(data)
    with_space = gguf_vocabulary(sentencepiece())
    assert vocabulary.encode(" the cat") == with_space.encode("the cat")
    assert vocabulary.decode(vocabulary.encode(" the cat")) == " the cat"


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_streamed_text_is_the_text_and_never_half_a_character(kind: str) -> None:
    data = sentencepiece() if kind == "sentencepiece" else metadata(byte_level(False), "gpt-2")
    vocabulary = gguf_vocabulary(data)
    for text in TEXTS:
        ids = vocabulary.encode(text)
        for start in {0, len(ids) // 2}:
            prompt, new = ids[:start], ids[start:]
            if vocabulary.decode(prompt).endswith("\ufffd"):
                continue  # the prompt itself ends inside a character
            stream = TextStream(vocabulary, prompt)
            pieces = [stream.push(token) for token in new]
            assert vocabulary.decode(prompt) + "".join(pieces) == text
            assert not any("\ufffd" in piece for piece in pieces)


def test_a_cut_character_is_not_printed() -> None:
    vocabulary = gguf_vocabulary(metadata(byte_level(False), "gpt-2"))
    tokens = metadata(byte_level(False), "gpt-2")["tokenizer.ggml.tokens"]
    ids = [tokens.index(token) for token in ("a", "ð", "Ł")]  # the bytes 61, F0, 9F
    stream = TextStream(vocabulary, [])
    assert [stream.push(token) for token in ids] == ["a", "", ""]


def test_control_tokens_are_found_in_text_and_not_shown() -> None:
    vocabulary = gguf_vocabulary(metadata(byte_level(False), "gpt-2"))
    ids = vocabulary.encode("<|im_end|>the<|endoftext|>")
    assert (ids[0], ids[-1], vocabulary.decode(ids)) == (1, 0, "the")


def test_user_defined_tokens_are_found_and_shown() -> None:
    data = metadata(byte_level(False), "gpt-2")
    data["tokenizer.ggml.tokens"].append("<tool>")
    data["tokenizer.ggml.token_type"].append(4)
    vocabulary = gguf_vocabulary(data)
    ids = vocabulary.encode("a<tool>b")
    assert ids[1] == len(data["tokenizer.ggml.tokens"]) - 1
    assert vocabulary.decode(ids) == "a<tool>b"


def starts(data: dict[str, Any], **changes: Any) -> tuple[list[int], list[int]]:
    """Ids of "a" as a whole text and as a part of one."""
    added = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    vocabulary = gguf_vocabulary({**data, **added})
    return vocabulary.encode("a"), vocabulary.encode("a", whole=False)


def test_bos_is_added_where_the_model_expects_it() -> None:
    data = metadata(byte_level(False), "gpt-2")
    letter = data["tokenizer.ggml.tokens"].index("a")
    assert starts(data, bos_token_id=1) == ([letter], [letter])
    assert starts(data, bos_token_id=1, add_bos_token=True) == ([1, letter], [letter])
    llama = {**data, "tokenizer.ggml.pre": "llama-bpe"}
    assert starts(llama, bos_token_id=1) == ([1, letter], [letter])
    assert starts(llama, bos_token_id=1, add_bos_token=False) == ([letter], [letter])


def test_every_end_token_ends() -> None:
    data = metadata(byte_level(False), "gpt-2")
    assert gguf_vocabulary(data).end_ids == {0, 1}
    assert gguf_vocabulary({**data, "tokenizer.ggml.eot_token_id": 9}).end_ids == {0, 1, 9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "model must be gpt2 or llama; got 'bert'"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model must be gpt2 or llama; got None"),
        ({"tokenizer.ggml.pre": "jina-v2"}, "tokenizer.ggml.pre must be one of.*got 'jina-v2'"),
        ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre must be one of.*got 'default'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre must be one of.*got None"),
        ({"tokenizer.ggml.merges": ["x y z"]}, "merges do not fit the tokens"),
        ({"tokenizer.ggml.merges": ["nothere atall"]}, "merges do not fit the tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type must have an entry for each of 900"),
        ({"tokenizer.ggml.eos_token_id": 900}, "eos_token_id must be below .* 900; got 900"),
        ({"tokenizer.ggml.model": "llama"}, "scores must have an entry for each of 900 tokens"),
    ],
)
def test_unknown_and_damaged_tokenizers_are_refused(changes: dict[str, Any], message: str) -> None:
    data = {**metadata(byte_level(False), "gpt-2"), **changes}
    assert len(data["tokenizer.ggml.tokens"]) == 900
    with pytest.raises(ModelError, match=message):
        gguf_vocabulary(data)

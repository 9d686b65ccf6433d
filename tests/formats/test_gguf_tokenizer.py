"""Tokenizers in GGUF files: ours come back equal, those of others are read if their words are known.

tests/formats/test_llama_cpp.py compares the ids with llama.cpp. Here, they are compared with a simple implementation of
its rules.
"""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer
from mlx_gpt.data.bytelevel import BYTES
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats.gguf_tokenizer import PRE, read_tokenizer, to_metadata

TEXT = "the café's mat 12 \U0001f600, and the\u0301 log\n  x\n" * 20
FILE = Path("model.gguf")
TOKENIZERS = [
    CharTokenizer.train([TEXT]),
    CharTokenizer.train(["abc"]),
    CharTokenizer.train(["<|eos|> bos"]),
    BPETokenizer.train([TEXT], 60, set(TEXT)),
    ByteBPETokenizer.train([TEXT], 300, set()),
]


def by_the_rules(metadata, text: str) -> list[int]:
    """Encodes one word of Unicode text by llama.cpp's rules: the merge with the lowest rank first, the leftmost first.

    Characters that are not tokens are dropped.
    """
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    raw = metadata["tokenizer.ggml.pre"] == "sarvam-moe"
    characters = {byte: c for c, byte in BYTES.items()}
    parts = list(text.replace(" ", "\u2581")) if raw else [characters[byte] for byte in text.encode()]
    while pairs := [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks]:
        _, i = min(pairs)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return [ids[part] for part in parts if part in ids]


@pytest.mark.parametrize("tokenizer", TOKENIZERS[:4], ids=["char", "ascii", "names", "bpe"])
def test_the_rules_of_llama_cpp_give_our_ids(tokenizer):
    metadata, draw = to_metadata(tokenizer), random.Random(0)
    for _ in range(200):
        text = "".join(draw.choices(sorted(set(TEXT) - {"\n"}), k=draw.randint(0, 40)))
        if tokenizer.kind == "char":
            text += draw.choice(["\U0001f601", "\u00ea", "", "<|eos|>"])
        assert by_the_rules(metadata, text) == tokenizer.encode(text, Counter()).tolist(), text


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["char", "ascii", "names", "bpe", "byte-bpe"])
def test_our_tokenizers_come_back_equal(tokenizer):
    metadata = to_metadata(tokenizer)
    assert read_tokenizer(FILE, metadata).to_dict() == tokenizer.to_dict()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(set(tokens)) == len(types) == tokenizer.vocab_size
    assert {i for i, kind in enumerate(types) if kind == 3} == {tokenizer.bos_id, tokenizer.eos_id}
    assert metadata["tokenizer.ggml.merges"] and not metadata["tokenizer.ggml.add_bos_token"]


@pytest.mark.parametrize(
    "vocab, merges, reason",
    [
        (["a", "b", "a"], [], "a string occurs twice"),
        (["a", "b", "ab", "<|eos|>"], [("a", "b")], "a string occurs twice"),
        (["a", "b", "aba", "ab"], [("a", "b"), ("ab", "a")], "a merged string has a lower id than one of its parts"),
        (["a", "\u2581"], [], r"U\+2581"),
    ],
)
def test_irregular_vocabularies_are_refused_with_the_reason(vocab, merges, reason):
    with pytest.raises(UserError, match=f"gguf cannot hold this vocabulary: .*{reason}"):
        to_metadata(BPETokenizer(["<|bos|>", "<|eos|>", *vocab], merges))


def test_no_text_of_characters_spells_the_name_of_a_special_token():
    """llama.cpp looks for these names in a prompt."""
    for tokenizer in TOKENIZERS[:3]:
        for name in to_metadata(tokenizer)["tokenizer.ggml.tokens"][:2]:
            assert not set(name) <= set(tokenizer.characters)


def test_merges_over_a_newline_are_left_out_because_they_have_no_effect():
    tokenizer = BPETokenizer(["<|bos|>", "<|eos|>", "\n", "a", "\n\n", "aa"], [("\n", "\n"), ("a", "a")])
    metadata = to_metadata(tokenizer)
    assert metadata["tokenizer.ggml.merges"] == ["a a"]
    assert tokenizer.encode("\n\naa").tolist() == by_the_rules(metadata, "\n\naa") == [2, 2, 5]


def edited(change) -> ByteBPETokenizer:
    facts = json.loads(TOKENIZERS[4].to_json())
    change(facts)
    return ByteBPETokenizer(json.dumps(facts))


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda f: f["model"].update(byte_fallback=True), "byte_fallback=True"),
        (lambda f: f["model"]["vocab"].update({"[PAD500]": 501}), "a string occurs twice"),
        (lambda f: f["model"]["merges"].append(f["model"]["merges"][0]), "a merge is listed twice"),
        (lambda f: f["model"].update(ignore_merges=True), "its pre_tokenizer is none of trillion"),
        (lambda f: f["pre_tokenizer"].update(add_prefix_space=True), "its pre_tokenizer is none of trillion"),
        (lambda f: f["added_tokens"].append(f["added_tokens"][0] | {"id": 300, "content": "x!", "special": False,
         "lstrip": True}), "added token 'x!'"),
    ],
)  # fmt: skip
def test_byte_level_tokenizers_that_llama_cpp_does_not_have_are_refused(change, reason):
    with pytest.raises(UserError, match=reason):
        to_metadata(edited(change))


# -- tokenizers of others -------------------------------------------------------------------------------------------


def foreign(**changes):
    """Metadata of another program, with four special tokens and the bytes."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("12", "3")]
    specials = ["<|pad|>", "<|begin_of_text|>", "<|im_end|>", "<tool>"]
    tokens = [*specials, *BYTES, *(left + right for left, right in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([5, 3, 3, 4] + [1] * (len(tokens) - 4), np.int32),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@pytest.mark.parametrize("pre", PRE)
def test_a_tokenizer_of_others_has_its_words_and_its_special_tokens(pre):
    tokenizer = read_tokenizer(FILE, foreign(pre=pre))
    assert (tokenizer.kind, tokenizer.bos_id, tokenizer.eos_id) == ("byte-bpe", 1, 2)
    text = "the the 1234<|im_end|><tool> \u00e9"
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text and 3 in ids and 2 not in ids
    pieces = [tokenizer.decode([i]) for i in ids]
    assert pieces[:2] == ["the", " the"]
    digits = {"llama-bpe": ["123", "4"], "trillion": ["123", "4"], "gpt-2": ["123", "4"]}
    expected = digits.get(pre, ["1", "2", "3", "4"])
    assert pieces[3 : 3 + len(expected)] == expected
    again = read_tokenizer(FILE, to_metadata(tokenizer))
    assert again.to_dict() == tokenizer.to_dict() and again.special_names == ("<|begin_of_text|>", "<|im_end|>")


def test_without_bos_it_is_eos():
    metadata = foreign()
    del metadata["tokenizer.ggml.bos_token_id"]
    assert read_tokenizer(FILE, metadata).bos_id == 2
    assert read_tokenizer(FILE, {"tokenizer.ggml.model": "no_vocab"}) is None is read_tokenizer(FILE, {})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": "llama"}, "has the vocabulary type 'llama'; gpt2"),
        ({"pre": "default"}, "tokenizer.ggml.pre is 'default'; trillion, gpt-2"),
        ({"pre": 3}, "tokenizer.ggml.pre is '3'"),
        ({"tokens": [*foreign()["tokenizer.ggml.tokens"], "the"]}, "a string occurs twice"),
        ({"tokens": [*foreign()["tokenizer.ggml.tokens"], "more"]}, "is not complete: ValueError"),
        ({"tokens": 3}, "are not lists of strings"),
        ({"merges": ["th e", "th  e"]}, "two strings with a space between them"),
        ({"merges": ["x y"]}, "gives a string that is not a token"),
        ({"token_type": np.full(265, 6, np.int32)}, "token 0, '<|pad|>', has the type 6"),
        ({"token_type": np.full(265, 2, np.int32)}, "has the type 2"),
        ({"eos_token_id": np.uint32(999)}, "eos_token_id is 999, expected 0 to 264"),
        ({"eos_token_id": "2"}, "eos_token_id is 2"),
    ],
)
def test_a_tokenizer_that_is_not_read_is_refused_by_name(changes, words):
    with pytest.raises(BadFile, match=words.replace("|", r"\|")) as caught:
        read_tokenizer(FILE, foreign(**changes))
    assert str(caught.value).startswith("model.gguf: ") and "\n" not in str(caught.value)


def test_a_token_that_is_no_text_is_refused():
    metadata = foreign()
    metadata["tokenizer.ggml.tokens"][10] = "a b"
    with pytest.raises(BadFile, match="token 10, 'a b', is not spelled in GPT-2's characters for bytes"):
        read_tokenizer(FILE, metadata)

"""Tokenizers in the metadata of GGUF files.

llama.cpp encodes text with the vocabulary type "gpt2" in three steps: a regular expression, which the key
tokenizer.ggml.pre names, divides the text into words; each word becomes characters; merges are applied in their order.
Its characters are GPT-2's characters for bytes (data/bytelevel.py), or for some names Unicode characters.

    ours        pre             tokens
    char        qwen2           one character each; merges only within characters of several bytes
    bpe         sarvam-moe      Unicode text, with U+2581 for the space; merges in the order of ids
    byte-bpe    trillion, ...   those of the tokenizer.json; PRE names the regular expressions

The key mlxgpt.tokenizer holds the to_dict() of our tokenizer. llama.cpp ignores it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer
from mlx_gpt.data.bytelevel import BYTES
from mlx_gpt.data.tokenizer import FIM, SPECIALS, CharTokenizer, Tokenizer, character_specials
from mlx_gpt.data.vocabularies import tokenizer_from_dict
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats.gguf import Metadata
from mlx_gpt.parse import parse_json

OWN = "mlxgpt.tokenizer"
SPACE = "\u2581"  # stands for the space in vocabularies of Unicode characters
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # values of tokenizer.ggml.token_type

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(numbers: str) -> list[dict]:
    """The steps of a tokenizer.json that split by a regular expression, and then convert bytes to characters."""
    pattern = {"Regex": _WORDS.format(numbers=numbers)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]


_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# Values of tokenizer.ggml.pre: the steps of pre_tokenizer in a tokenizer.json that divide a text into the same words,
# and whether a word that is a token is not merged. "trillion" has GPT-2's expression too. With "gpt-2", llama.cpp
# removes spaces before punctuation when it decodes, so files are written with "trillion".
PRE = {
    "trillion": ([_GPT2], False),
    "gpt-2": ([_GPT2], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _GPT2], False),
    "llama-bpe": (_split(r"\p{N}{1,3}"), True),
    "qwen2": (_split(r"\p{N}"), False),
}


class Vocabulary(NamedTuple):
    """A vocabulary of the type "gpt2": the name of its regular expression, its tokens with their types, its merges."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]


# -- writing --------------------------------------------------------------------------------------------------------


def to_metadata(tokenizer: Tokenizer) -> Metadata:
    """Returns the metadata of a tokenizer.

    Raises:
        UserError: llama.cpp would encode text to other ids. The message has the reason.
    """
    convert = {"char": _of_characters, "bpe": _of_character_merges, "byte-bpe": _of_bytes}[tokenizer.kind]
    found = convert(tokenizer)
    if len(set(found.tokens)) < len(found.tokens):
        raise _refused("a string occurs twice in it")
    if len(set(found.merges)) < len(found.merges):
        raise _refused("a merge is listed twice")
    bos, eos = found.tokens[tokenizer.bos_id], found.tokens[tokenizer.eos_id]
    # llama.cpp refuses a vocabulary without merges. This one has no effect: no text becomes these two tokens.
    merges = found.merges or [(bos, eos)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": found.pre,
        "tokenizer.ggml.tokens": found.tokens,
        "tokenizer.ggml.token_type": np.array(found.types, np.int32),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        "tokenizer.ggml.bos_token_id": np.uint32(tokenizer.bos_id),
        "tokenizer.ggml.eos_token_id": np.uint32(tokenizer.eos_id),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        OWN: json.dumps(tokenizer.to_dict(), ensure_ascii=False, sort_keys=True),
    }


def _refused(reason: str) -> UserError:
    return UserError(f"gguf cannot hold this vocabulary: {reason}; keep the safetensors file, or export a folder")


def _of_characters(tokenizer: CharTokenizer) -> Vocabulary:
    tokens, merges = [_byte_characters(c) for c in tokenizer.characters], {}
    for token in tokens:  # byte by byte, from left to right; a dict, because characters share their first bytes
        merges |= {(token[:i], token[i]): None for i in range(1, len(token))}
    specials = character_specials(tokenizer.characters)
    fim = character_specials(tokenizer.characters, FIM) if tokenizer.fim_ids else ()
    return Vocabulary("qwen2", [*specials, *tokens, *fim], _types(len(tokens), len(fim)), list(merges))


def _of_character_merges(tokenizer: BPETokenizer) -> Vocabulary:
    if not tokenizer.has_json():
        raise _refused(
            "a string occurs twice in it, two merges give the same string, or a merged string has a lower id than one "
            "of its parts"
        )
    fim = tokenizer.fim_names
    strings = tokenizer.vocab[len(SPECIALS) : tokenizer.vocab_size - len(fim)]
    if any(SPACE in string for string in strings):
        raise _refused("it has the character U+2581, which stands for the space in llama.cpp")
    tokens = [string.replace(" ", SPACE) for string in strings]
    # A newline is always a token of its own, so a merge with one has no effect. llama.cpp would apply it.
    pairs = [(left, right) for left, right in tokenizer.merges_by_id() if "\n" not in left + right]
    merges = [(left.replace(" ", SPACE), right.replace(" ", SPACE)) for left, right in pairs]
    names = [*tokenizer.special_names, *tokens, *fim]
    return Vocabulary("sarvam-moe", names, _types(len(tokens), len(fim)), merges)


def _of_bytes(tokenizer: ByteBPETokenizer) -> Vocabulary:
    facts = parse_json(tokenizer.to_json(), "tokenizer.json")
    model, added = facts["model"], {token["id"]: token for token in facts.get("added_tokens", [])}
    for option in ("unk_token", "byte_fallback"):
        if model.get(option):
            raise _refused(f"its model has {option}={model[option]!r}, which llama.cpp does not implement")
    for token in added.values():
        if any(token.get(option) for option in ("single_word", "lstrip", "rstrip")) and not token.get("special"):
            raise _refused(f"its added token {token['content']!r} takes the spaces around it, or only whole words")
    pre = facts["pre_tokenizer"]
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    name = next((n for n in PRE if _same(steps, PRE[n][0]) and PRE[n][1] == bool(model.get("ignore_merges"))), None)
    if name is None:
        raise _refused(f"its pre_tokenizer is none of {', '.join(PRE)}")
    strings = {i: string for string, i in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    ids = range(tokenizer.vocab_size)
    kinds = {i: CONTROL if token.get("special") else USER_DEFINED for i, token in added.items()}
    types = [kinds.get(i, NORMAL if i in strings else UNUSED) for i in ids]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return Vocabulary(name, [strings.get(i, f"[PAD{i}]") for i in ids], types, merges)


def _same(steps: list[dict], wanted: list[dict]) -> bool:
    """Whether the steps of a pre_tokenizer are the wanted ones. Further options, such as trim_offsets, have no effect
    on ids."""
    return len(steps) == len(wanted) and all(a | b == a for a, b in zip(steps, wanted, strict=True))


def _types(count: int, num_fim: int) -> list[int]:
    """The types of two special tokens, `count` other tokens, and `num_fim` special tokens for fill-in-the-middle."""
    return [CONTROL] * len(SPECIALS) + [NORMAL] * count + [CONTROL] * num_fim


_CHARACTERS = {byte: character for character, byte in BYTES.items()}


def _byte_characters(text: str) -> str:
    """The UTF-8 bytes of a text in GPT-2's characters for bytes."""
    return "".join(_CHARACTERS[byte] for byte in text.encode())


# -- reading --------------------------------------------------------------------------------------------------------


def read_tokenizer(path: Path, metadata: Metadata) -> Tokenizer | None:
    """Makes the tokenizer of the metadata of a file.

    Args:
        path: The file, for messages.
        metadata: Its metadata.

    Returns:
        The tokenizer that was written, for a file of mlxgpt. For another file, a ByteBPETokenizer. None if the file has
        no tokenizer.

    Raises:
        BadFile: The metadata are not valid, or mlxgpt has no such tokenizer.
    """
    model = metadata.get("tokenizer.ggml.model", "no_vocab")
    if model == "no_vocab" and OWN not in metadata:
        return None
    try:
        if OWN in metadata:
            return _own(metadata)
        if model != "gpt2":
            raise BadFile(f"has the vocabulary type {str(model)[:60]!r}; gpt2, a byte-pair encoding of bytes, is read")
        return _foreign(metadata)
    except UserError as error:
        raise BadFile(f"{path}: its tokenizer: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadFile(f"{path}: its tokenizer is not complete: {type(error).__name__} {str(error)[:80]}") from None


def _own(metadata: Metadata) -> Tokenizer:
    tokenizer = tokenizer_from_dict(parse_json(metadata[OWN], OWN))
    expected = to_metadata(tokenizer)
    for key in expected.keys() | {key for key in metadata if key.startswith("tokenizer.ggml.")}:
        if not _equal(expected.get(key), metadata.get(key)):
            raise BadFile(f"{key} is not that of {OWN}; the file was changed, remove {OWN} from it")
    return tokenizer


def _equal(a: Any, b: Any) -> bool:
    """Whether two metadata values are equal."""
    if isinstance(a, (str, list)) or isinstance(b, (str, list)):
        return type(a) is type(b) and a == b
    return a is not None and b is not None and np.array_equal(a, b)


def _foreign(metadata: Metadata) -> ByteBPETokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in PRE:
        raise BadFile(f"its tokenizer.ggml.pre is {str(pre)[:60]!r}; {', '.join(PRE)} are read")
    tokens, merges = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
    if not isinstance(tokens, list) or not isinstance(merges, list) or not tokens:
        raise BadFile("its tokens and merges are not lists of strings")
    if len(set(tokens)) < len(tokens):
        raise BadFile("a string occurs twice in it")
    types = metadata.get("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL)).tolist()
    eos = _id(metadata, "eos", tokens, None)
    bos = _id(metadata, "bos", tokens, eos)
    added = []
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in (NORMAL, CONTROL, USER_DEFINED, UNUSED):
            raise BadFile(f"its token {i}, {token[:60]!r}, has the type {kind}, which is not supported")
        special = kind in (CONTROL, UNUSED) or i in (bos, eos)
        if not special and not set(token) <= BYTES.keys():
            raise BadFile(f"its token {i}, {token[:60]!r}, is not spelled in GPT-2's characters for bytes")
        if special or kind == USER_DEFINED:
            options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": i, "content": token, **options, "special": special})
    pairs = [merge.split(" ") for merge in merges]
    if not all(len(pair) == 2 for pair in pairs):
        raise BadFile("one of its merges is not two strings with a space between them")
    steps, ignore_merges = PRE[pre]
    text = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"trim_offsets": True} | step for step in steps]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": pairs,
        },
    }
    return ByteBPETokenizer(json.dumps(text, ensure_ascii=False), [tokens[bos], tokens[eos]])


def _id(metadata: Metadata, name: str, tokens: list[str], default: int | None) -> int:
    """The id of BOS or EOS. Raises BadFile if it is not an id, or if the file has none and there is no default."""
    found = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    if found is None or not isinstance(found, (int, np.integer)) or not 0 <= found < len(tokens):
        raise BadFile(f"its tokenizer.ggml.{name}_token_id is {str(found)[:60]}, expected 0 to {len(tokens) - 1}")
    return int(found)
